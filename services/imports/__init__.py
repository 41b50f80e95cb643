"""Import: exports of chat programs, read as a stream of records that `user_import` takes."""

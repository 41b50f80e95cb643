-- The distribution column of `memories`: a hash of the user's id, the same for all owners of a user. In a table that an
-- earlier release has filled it is 0 everywhere, of owners and memories, until `ltm partition` puts a partitioned one in
-- its place; that of an empty database is made by the hook of this step (partitioning.py).
LOCK TABLE users IN EXCLUSIVE MODE;
LOCK TABLE memories, users IN ACCESS EXCLUSIVE MODE;
ALTER TABLE users ADD COLUMN user_hash bigint NOT NULL DEFAULT 0;
ALTER TABLE memories ADD COLUMN user_hash bigint NOT NULL DEFAULT 0;

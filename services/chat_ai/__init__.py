"""The chat service: searches the long-term memory, builds a prompt, replies. Its parts are usable alone."""

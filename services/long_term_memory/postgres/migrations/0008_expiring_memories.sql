-- A step of its own: searches go on while an index is built, but not while a column is added.
CREATE INDEX memories_expiring ON memories (expires_at) WHERE expires_at IS NOT NULL;

-- Of the column before, in another step: searches wait while a column is added, and go on while an index is built.
CREATE INDEX IF NOT EXISTS memories_outdated ON memories (number) WHERE analysis < 2;

-- The engines of the default embedder that workers have opened this database with. Their vectors may be mixed in one
-- column, so this tells, and refuses none.
ALTER TABLE embedders ADD COLUMN engines text[] NOT NULL DEFAULT ARRAY[]::text[];

-- The engines of the default embedder that workers have opened this database with. Their vectors may be mixed in one
-- column, so this tells, and refuses none.
ALTER TABLE embedders ADD COLUMN engines text[] NOT NULL DEFAULT ARRAY[]::text[];

-- Which embedder filled which column of `memories`: `vector`, and `new_vector` while `ltm reembed` fills it.
CREATE TABLE embedders (
    vector_column text PRIMARY KEY,
    provider text NOT NULL,
    model text NOT NULL,
    dimensions int NOT NULL,
    -- A digest of the projection of queries, which stored vectors do not depend on; '' for none.
    projection text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);

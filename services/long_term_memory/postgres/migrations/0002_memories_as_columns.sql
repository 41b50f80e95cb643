CREATE TABLE users (number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id text NOT NULL UNIQUE);

DROP INDEX memories_of_user;
ALTER TABLE memories RENAME TO memories_of_mem0;
ALTER INDEX memories_pkey RENAME TO memories_of_mem0_pkey;

CREATE TABLE memories (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL UNIQUE,
    user_number bigint NOT NULL REFERENCES users,
    session bigint NOT NULL,
    said_at timestamptz NOT NULL,
    source text NOT NULL CHECK (source IN ('user', 'ai')),
    content text NOT NULL,
    payload jsonb NOT NULL,
    terms bytea NOT NULL,
    traits bytea NOT NULL,
    vector halfvec({dimensions}) NOT NULL
) WITH (
    toast_tuple_target = 8160,  -- vectors stay beside their rows, where a scan finds them
    -- Searches read the index alone where the pages are known to be visible to all; vacuum is what knows.
    autovacuum_vacuum_insert_scale_factor = 0.01,
    autovacuum_vacuum_scale_factor = 0.02
);

-- What a search reads, in the order of the conversation: its place in this index is a memory's position in its
-- session. An index row holds 2,704 bytes: larger vectors than these stay in the table.
DO $$ BEGIN
    EXECUTE 'CREATE INDEX memories_of_user ON memories (user_number, session, said_at, number)'
        ' INCLUDE (traits, terms'
        || CASE WHEN {dimensions} <= 480 THEN ', vector)' ELSE ')' END;
    -- One in conversation.SAMPLE memories, for users with more than a search can read.
    EXECUTE 'CREATE INDEX memories_sample ON memories (user_number, session, said_at, number)'
        ' INCLUDE (traits, terms'
        || CASE WHEN {dimensions} <= 480 THEN ', vector)' ELSE ')' END
        || ' WHERE number % 7 = 0';
END $$;

CREATE EXTENSION IF NOT EXISTS vector;

-- The shape of Mem0's own pgvector store, without its HNSW index: filtered afterwards it finds next to nothing of
-- one user among many.
CREATE TABLE memories (id uuid PRIMARY KEY, vector vector({dimensions}), payload jsonb);
CREATE INDEX memories_of_user ON memories ((payload ->> 'user_id'));

CREATE TABLE memory_history (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL,
    memory_id text NOT NULL,
    old_memory text,
    new_memory text,
    event text NOT NULL,
    created_at text,
    updated_at text,
    is_deleted boolean NOT NULL,
    actor_id text,
    role text
);
CREATE INDEX memory_history_of_memory ON memory_history (memory_id, number);

CREATE TABLE last_messages (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session_scope text NOT NULL,
    role text,
    content text,
    name text,
    created_at text NOT NULL
);
CREATE INDEX last_messages_of_scope ON last_messages (session_scope, number);

CREATE TABLE profiles (
    user_id text PRIMARY KEY,
    profile jsonb NOT NULL,
    version bigint NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE TABLE profile_history (
    user_id text NOT NULL,
    version bigint NOT NULL,
    patch jsonb NOT NULL,
    request_id text,
    changed_at timestamptz NOT NULL,
    PRIMARY KEY (user_id, version)
);

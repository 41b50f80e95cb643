-- Locks in the order of those who work meanwhile: writers take users first, searches take memories first.
LOCK TABLE users IN EXCLUSIVE MODE;
-- Lists of a user's memories by time. Searches go on while it is built; what follows locks them out, for a moment.
CREATE INDEX memories_by_time ON memories (user_number, said_at, number);
LOCK TABLE memories, users IN ACCESS EXCLUSIVE MODE;

-- A row of `users` is an owner of memories: a user, or one character of the AI (an agent) for a user; '' is the user's
-- shared memories. `memories.user_number` is the owner's number, so no memory changes.
ALTER TABLE users ADD COLUMN agent_id text NOT NULL DEFAULT '';
ALTER TABLE users DROP CONSTRAINT users_user_id_key, ADD UNIQUE (user_id, agent_id);

ALTER TABLE profiles ADD COLUMN agent_id text NOT NULL DEFAULT '';
ALTER TABLE profiles DROP CONSTRAINT profiles_pkey, ADD PRIMARY KEY (user_id, agent_id);
ALTER TABLE profile_history ADD COLUMN agent_id text NOT NULL DEFAULT '';
ALTER TABLE profile_history DROP CONSTRAINT profile_history_pkey, ADD PRIMARY KEY (user_id, agent_id, version);

-- When a memory is to be deleted; NULL for never.
ALTER TABLE memories ADD COLUMN expires_at timestamptz;
-- When the event or request of a memory arrived, which a deletion goes by; NULL of earlier releases' and of imports.
ALTER TABLE memories ADD COLUMN arrived_at timestamptz;

-- Tombstones: the ids of memories that were deleted. The events that they came from may arrive again.
CREATE TABLE tombstones (memory_id uuid PRIMARY KEY, deleted_at timestamptz NOT NULL DEFAULT clock_timestamp());

-- Deletions of a user's memories by conditions, NULL for any: an event that arrived before the deletion, and is indexed
-- after it, is dropped. The digests are SHA-256 of the ids.
CREATE TABLE deletions (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_digest bytea NOT NULL,
    agent_digests bytea[],
    session bigint,
    -- Four bytes of the hash of a speaker's name, and of that of the id, as `traits` has them.
    speaker_name bytea,
    speaker_id bytea,
    source text,
    since timestamptz,
    until timestamptz,
    -- A folded text, behind two others by which the content is folded.
    contains text[],
    -- Of a user who was forgotten; that row stays.
    everything boolean NOT NULL DEFAULT false,
    deleted_at timestamptz NOT NULL
);
CREATE INDEX deletions_of_user ON deletions (user_digest);

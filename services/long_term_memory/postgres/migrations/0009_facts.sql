-- Owners by what their memories are: messages (and what was added by request), facts that an LLM found in messages, and
-- facts that others superseded. A user's facts are no turns of a conversation, so they stand apart from the messages.
ALTER TABLE users ADD COLUMN kind text NOT NULL DEFAULT 'message' CHECK (kind IN ('message', 'fact', 'superseded'));
ALTER TABLE users DROP CONSTRAINT users_user_id_agent_id_key, ADD UNIQUE (user_id, agent_id, kind);

-- The messages that a fact was found in. No foreign keys: `ltm reembed` puts another table in the place of `memories`.
CREATE TABLE fact_evidence (
    fact_number bigint NOT NULL,
    memory_number bigint NOT NULL,
    PRIMARY KEY (fact_number, memory_number)
);
CREATE INDEX fact_evidence_of_memory ON fact_evidence (memory_number);

CREATE TABLE superseded_facts (
    fact_number bigint PRIMARY KEY,
    superseded_by bigint NOT NULL,
    superseded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX superseded_facts_by ON superseded_facts (superseded_by);

-- Who changed a profile, `service` (also where it is NULL) or `extraction`, and by the words of which memories.
ALTER TABLE profile_history ADD COLUMN source text, ADD COLUMN evidence uuid[];
-- By which a deletion knows the few profiles that extraction has written to.
CREATE INDEX profile_history_with_evidence ON profile_history (user_id, agent_id) WHERE evidence IS NOT NULL;

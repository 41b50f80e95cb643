-- Of 50,000 memories, putting the columns together one by one took longer than finding them: what ranks a memory
-- and has a fixed size is one value, as rows.HEAD reads it.
ALTER TABLE memories ADD COLUMN head bytea NOT NULL
    GENERATED ALWAYS AS (int8send(number) || int8send(session) || timestamptz_send(said_at) || traits) STORED;

DROP INDEX memories_of_user, memories_sample;
DO $$ DECLARE included text := 'head, terms' || CASE WHEN {dimensions} <= 480 THEN ', vector' ELSE '' END;
BEGIN
    EXECUTE 'CREATE INDEX memories_of_user ON memories (user_number, session, said_at, number) INCLUDE ('
        || included || ')';
    EXECUTE 'CREATE INDEX memories_sample ON memories (user_number, session, said_at, number) INCLUDE ('
        || included || ') WHERE number % 7 = 0';
END $$;

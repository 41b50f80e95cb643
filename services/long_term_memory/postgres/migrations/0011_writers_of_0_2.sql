-- Writers of release 0.2 and before know no deletions, characters or facts. Of all writers, they alone leave the columns
-- below to their defaults, which from now on raise an error that they retry: a message waits for an indexer of this
-- release. Searches of theirs go on.
CREATE OR REPLACE FUNCTION refuse_release_0_2() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
    RAISE EXCEPTION 'a newer release has migrated the database: stop this process of release 0.2, which may not write to it'
        USING ERRCODE = 'object_not_in_prerequisite_state';
END $$;
ALTER TABLE users ALTER COLUMN agent_id SET DEFAULT refuse_release_0_2();
ALTER TABLE profiles ALTER COLUMN agent_id SET DEFAULT refuse_release_0_2();

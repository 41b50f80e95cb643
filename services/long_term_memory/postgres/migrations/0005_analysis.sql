-- The version of the analysis that `terms` and `traits` come from (rows.ANALYSIS). A release that changes it does not wait
-- for the writers of the one before: what they still store has the default, and the next process that starts renews it.
ALTER TABLE memories ADD COLUMN analysis smallint NOT NULL DEFAULT 1;
CREATE INDEX memories_outdated ON memories (number) WHERE analysis < 2;

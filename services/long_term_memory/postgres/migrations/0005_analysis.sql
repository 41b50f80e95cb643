-- The version of the analysis that `terms` and `traits` come from (rows.ANALYSIS). What the writers of the release before
-- still store has the default, and the next process that starts renews it.
ALTER TABLE memories ADD COLUMN analysis smallint NOT NULL DEFAULT 1;

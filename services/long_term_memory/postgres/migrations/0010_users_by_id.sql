-- Users by a prefix of their ids, in the order of code points whatever the database's locale is; with those who have a
-- profile alone.
CREATE INDEX users_by_id ON users (user_id COLLATE "C");
CREATE INDEX profiles_by_id ON profiles (user_id COLLATE "C");

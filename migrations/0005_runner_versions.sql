-- Which version of GitHub's runner a host gives to its guests: the oldest one, where images have their own. It is
-- shown with the day on which GitHub cuts it off. Null: nobody said.
ALTER TABLE hosts ADD COLUMN runner_version text;

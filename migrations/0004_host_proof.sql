-- What a host proves before it takes work, and whom it works for.

-- In which world the host's daemon runs: this boot, this macOS, this flyci. Null: it tests nothing before work.
ALTER TABLE hosts ADD COLUMN world text;
-- The only tenants that the host serves, by our own ids; null: all. Empty: none of those it is for is known yet.
ALTER TABLE hosts ADD COLUMN dedicated_to uuid[];
-- The world in which the image last booted to ready on this host.
ALTER TABLE host_images ADD COLUMN proven_in text;

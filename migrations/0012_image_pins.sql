-- Which image a tag stands for, the same in the whole fleet: a tag that moves in its registry moves nothing here.

CREATE TABLE image_pins (
    reference    text PRIMARY KEY,  -- HOST/REPOSITORY:TAG, as profiles name it
    digest       text NOT NULL,
    previous     text,              -- where a rollback goes
    pinned_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    pinned_by    text NOT NULL,
    -- An update under way: one host tries the candidate before the others take it.
    candidate    text,
    canary       uuid REFERENCES hosts ON DELETE SET NULL,
    jobs_wanted  integer NOT NULL DEFAULT 0,
    candidate_at timestamptz,
    candidate_by text,
    -- The last candidate that was given up, and why.
    rejected     text,
    rejected_why text,
    rejected_at  timestamptz,
    CHECK ((candidate IS NULL) = (candidate_at IS NULL))
);

-- What a host fetches now, or could not fetch: it goes when the image is there.
CREATE TABLE image_pulls (
    host_id    uuid NOT NULL REFERENCES hosts ON DELETE CASCADE,
    reference  text NOT NULL,
    image      text NOT NULL,
    total      bigint NOT NULL DEFAULT 0,  -- bytes as the registry has them; 0: not known yet
    done       bigint NOT NULL DEFAULT 0,
    replaces   boolean NOT NULL DEFAULT false,
    trouble    text,
    begun_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (host_id, reference)
);

-- A host pins what nobody has pinned, and can change no pin.
GRANT SELECT, UPDATE ON image_pins TO flyci_gateway;
GRANT SELECT, INSERT ON image_pins TO flyci_host;
GRANT SELECT, DELETE ON image_pulls TO flyci_gateway;
GRANT SELECT, INSERT, UPDATE, DELETE ON image_pulls TO flyci_host;
DO $$
DECLARE
    of_table text;
BEGIN
    FOREACH of_table IN ARRAY ARRAY['image_pins', 'image_pulls'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', of_table);
        EXECUTE format('CREATE POLICY migrate ON %I TO flyci_migrate USING (true) WITH CHECK (true)', of_table);
        EXECUTE format('CREATE POLICY gateway ON %I TO flyci_gateway USING (true) WITH CHECK (true)', of_table);
        EXECUTE format('CREATE POLICY host ON %I TO flyci_host USING (true) WITH CHECK (true)', of_table);
    END LOOP;
END $$;

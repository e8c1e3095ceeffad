-- What the passes that compare the tables with GitHub remember from one round to the next.

-- Of several gateways one does a pass at a time.
CREATE TABLE pass_leases (
    pass   text PRIMARY KEY,
    holder uuid NOT NULL,
    until  timestamptz NOT NULL
);

-- How far GitHub's log of deliveries is read: one row. Times are GitHub's clock, but for read_at.
CREATE TABLE delivery_log (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    etag      text,         -- of the newest page, when all of it was handled
    read_to   timestamptz,  -- attempts until then were looked at, but for those below the cursor
    cursor    text,         -- where a long reading goes on
    floor     timestamptz,  -- and where it ends
    read_at   timestamptz,
    good_at   timestamptz   -- the newest attempt that was answered 2xx
);
INSERT INTO delivery_log DEFAULT VALUES;

-- Deliveries that GitHub tried in vain, until they come. The attempt's number means something to the App alone.
CREATE TABLE missed_deliveries (
    guid      uuid PRIMARY KEY,
    attempt   bigint NOT NULL,
    failed_at timestamptz NOT NULL,
    asked     integer NOT NULL DEFAULT 0,
    asked_at  timestamptz
);

-- Until when GitHub holds calls back: what one gateway was told, all obey. An empty look-up is the App itself.
CREATE TABLE github_holds (
    installation_lookup bytea NOT NULL,
    budget              text NOT NULL,
    until               timestamptz NOT NULL,
    PRIMARY KEY (installation_lookup, budget)
);

ALTER TABLE repositories
    ADD COLUMN scanned_at   timestamptz,  -- when its open jobs were listed last
    ADD COLUMN scan_etag    text,
    ADD COLUMN swept_at     timestamptz,  -- when its registrations were listed last
    ADD COLUMN verify_since timestamptz;
CREATE INDEX repositories_doubtful ON repositories (verify_since) WHERE verify_since IS NOT NULL;

ALTER TABLE jobs
    ADD COLUMN confirmed_at    timestamptz,  -- when GitHub last said that it is as we have it
    ADD COLUMN ask_after       timestamptz,  -- GitHub did not answer: not asked before
    ADD COLUMN rerun_asked_at  timestamptz,  -- GitHub was asked to run it again: at most once
    ADD COLUMN rerun_after     timestamptz;
CREATE INDEX jobs_repository ON jobs (repository_id, received_at DESC);
CREATE INDEX jobs_repository_open ON jobs (repository_id) WHERE state IN ('waiting', 'queued', 'running');
CREATE INDEX jobs_lost ON jobs (ended_at) WHERE state = 'lost';
CREATE INDEX runner_names_tried ON runner_names (tried_at);

-- What a host says of the profiles: those that it can boot, and those that its configuration has otherwise than the
-- gateway published them. Null: nothing said yet.
ALTER TABLE hosts
    ADD COLUMN can_boot text[],
    ADD COLUMN differs  text[];

GRANT SELECT, INSERT, UPDATE, DELETE ON pass_leases, missed_deliveries, github_holds TO flyci_gateway;
GRANT SELECT, UPDATE ON delivery_log TO flyci_gateway;
GRANT SELECT ON delivery_log, missed_deliveries TO flyci_web, flyci_host;

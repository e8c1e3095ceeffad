-- The first schema. Rows are keyed by random ids of our own. What identifies a person, an account
-- or a repository (names and GitHub's ids alike) is stored sealed (bytea) and found by a keyed
-- HMAC (columns named *_lookup). Nothing of a job's code, branch, commit, workflow or steps has a column.

-- Roles: nobody who serves requests owns or bypasses anything.
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['flyci_owner', 'flyci_migrate', 'flyci_gateway', 'flyci_web', 'flyci_host'] LOOP
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB', name);
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- made by another database of this cluster
        END;
    END LOOP;
END $$;

-- One row: which fleet this database is of, and who may read it.
CREATE TABLE fleet (
    singleton   boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id          uuid NOT NULL DEFAULT gen_random_uuid(),
    schema      integer NOT NULL,
    min_reader  integer NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO fleet (schema, min_reader) VALUES (1, 1);

-- The accounts that installed the App.
CREATE TABLE tenants (
    id                  uuid PRIMARY KEY,
    installation_lookup bytea NOT NULL UNIQUE,
    account_lookup      bytea NOT NULL,
    wrapped_keys        bytea NOT NULL,
    installation_id     bytea NOT NULL,
    account_id          bytea NOT NULL,
    account             bytea NOT NULL,
    account_kind        text  NOT NULL,
    admission           text  NOT NULL,
    suspended_at        timestamptz,
    uninstalled_at      timestamptz,
    vm_limit            integer,
    verify_since        timestamptz,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX tenants_account ON tenants (account_lookup);
CREATE INDEX tenants_doubtful ON tenants (verify_since) WHERE verify_since IS NOT NULL;

CREATE TABLE repositories (
    id            uuid PRIMARY KEY,
    tenant_id     uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    github_lookup bytea NOT NULL,
    github_id     bytea NOT NULL,
    name          bytea NOT NULL,
    visibility    text NOT NULL,
    removed_at    timestamptz,
    UNIQUE (tenant_id, github_lookup)
);

-- Webhook deliveries: what came and what was done with it, never what was in it.
CREATE TABLE deliveries (
    guid        uuid PRIMARY KEY,
    event       text NOT NULL,
    action      text,
    outcome     text NOT NULL,
    reason      text,
    received_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX deliveries_received ON deliveries (received_at);

-- GitHub's jobs: follows GitHub alone.
CREATE TABLE jobs (
    id                  uuid PRIMARY KEY,
    tenant_id           uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    repository_id       uuid NOT NULL REFERENCES repositories ON DELETE CASCADE,
    github_lookup       bytea NOT NULL,
    github_id           bytea NOT NULL,
    run_id              bytea NOT NULL,
    run_attempt         integer NOT NULL,
    initiator           bytea,
    profile             text NOT NULL,
    labels              text[] NOT NULL,
    class               bigint NOT NULL,
    origin              text NOT NULL,
    state               text NOT NULL,
    reason              text,
    conclusion          text,
    received_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    queued_at           timestamptz,
    github_created_at   timestamptz,
    github_started_at   timestamptz,
    github_completed_at timestamptz,
    ended_at            timestamptz,
    vm_id               uuid,
    attempts            integer NOT NULL DEFAULT 0,
    not_before          timestamptz,
    verify_since        timestamptz,
    UNIQUE (tenant_id, github_lookup)
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.01);
-- The only index that a claim reads.
CREATE INDEX jobs_wait ON jobs (profile, tenant_id, class, queued_at) WHERE state = 'queued';
CREATE INDEX jobs_open ON jobs (state) WHERE state IN ('waiting', 'running');
CREATE INDEX jobs_vm ON jobs (vm_id) WHERE vm_id IS NOT NULL;
CREATE INDEX jobs_received ON jobs (received_at);

-- Jobs that we do not serve: enough to say why.
CREATE TABLE refusals (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant_id      uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    github_lookup  bytea NOT NULL,
    reason         text NOT NULL,
    nearest_profile text,
    label          text,
    refused_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (tenant_id, github_lookup)
);
CREATE INDEX refusals_refused ON refusals (refused_at);

CREATE TABLE hosts (
    id           uuid PRIMARY KEY,
    name         text NOT NULL UNIQUE,
    public_key   bytea NOT NULL,
    hypervisor   text NOT NULL,
    hardware     text NOT NULL,
    os           text NOT NULL,
    architecture text NOT NULL,
    slots        integer NOT NULL,
    cpus         integer NOT NULL,
    memory       bigint NOT NULL,
    version      text NOT NULL,
    session      bigint NOT NULL DEFAULT 0,
    seq          bigint NOT NULL DEFAULT 0,
    beat_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    draining     boolean NOT NULL DEFAULT false,
    drain_reason text,
    drained_by   text,
    drained_at   timestamptz
);

-- Whether an image boots on a host: failures are the pair's, never the job's.
CREATE TABLE host_images (
    host_id           uuid NOT NULL REFERENCES hosts ON DELETE CASCADE,
    image             text NOT NULL,
    failures          integer NOT NULL DEFAULT 0,
    last_failure      text,
    quarantined_until timestamptz,
    PRIMARY KEY (host_id, image)
);

-- One clone of an image, booted once. Written by its host alone.
CREATE TABLE vms (
    id            uuid PRIMARY KEY,
    host_id       uuid NOT NULL REFERENCES hosts,
    session       bigint NOT NULL,
    slot          integer NOT NULL,
    profile       text NOT NULL,
    image         text NOT NULL,
    cpus          integer NOT NULL,
    memory        bigint NOT NULL,
    tenant_id     uuid REFERENCES tenants ON DELETE SET NULL,
    repository_id uuid REFERENCES repositories ON DELETE SET NULL,
    class         bigint,
    state         text NOT NULL,
    reason        text,
    runner_status integer,
    release_asked_at timestamptz,
    kill_asked    text,
    planned_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    cloned_at     timestamptz,
    booted_at     timestamptz,
    ready_at      timestamptz,
    bound_at      timestamptz,
    minted_at     timestamptz,
    delivering_at timestamptz,
    serving_at    timestamptz,
    stopping_at   timestamptz,
    gone_at       timestamptz
) WITH (fillfactor = 70);
CREATE INDEX vms_live ON vms (host_id) WHERE state <> 'gone';
CREATE INDEX vms_active ON vms (tenant_id, profile) WHERE state <> 'gone';
CREATE INDEX vms_class ON vms (class) WHERE state <> 'gone';
CREATE UNIQUE INDEX vms_slot ON vms (host_id, slot) WHERE state <> 'gone';
CREATE INDEX vms_gone ON vms (gone_at) WHERE state = 'gone';

-- GitHub's registration of one vm for one job.
CREATE TABLE runners (
    id             uuid PRIMARY KEY,
    vm_id          uuid NOT NULL REFERENCES vms ON DELETE CASCADE,
    host_id        uuid NOT NULL REFERENCES hosts,
    tenant_id      uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    repository_id  uuid NOT NULL REFERENCES repositories ON DELETE CASCADE,
    labels         text[] NOT NULL,
    class          bigint NOT NULL,
    state          text NOT NULL,
    reason         text,
    name           bytea,
    github_lookup  bytea,
    github_id      bytea,
    sealed_jit     bytea,
    tries          integer NOT NULL DEFAULT 0,
    trouble        text,
    minting_by     uuid,
    minting_until  timestamptz,
    not_before     timestamptz,
    requested_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    minted_at      timestamptz,
    busy_at        timestamptz,
    ended_at       timestamptz,
    removed_at     timestamptz
);
-- At most one registration of a vm can be waiting for, or serving, a job.
CREATE UNIQUE INDEX runners_vm_live ON runners (vm_id)
    WHERE state IN ('requested', 'minting', 'minted', 'delivering', 'online', 'busy');
CREATE INDEX runners_open ON runners (state) WHERE state NOT IN ('removed', 'void');
CREATE INDEX runners_github ON runners (repository_id, github_lookup) WHERE github_lookup IS NOT NULL;
CREATE INDEX runners_vm ON runners (vm_id);

-- Every name that was ever offered to GitHub, written before the call. Append-only.
CREATE TABLE runner_names (
    lookup    bytea PRIMARY KEY,
    runner_id uuid NOT NULL REFERENCES runners ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    tried_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX runner_names_runner ON runner_names (runner_id);

-- Fairness: who of a profile was served last.
CREATE SEQUENCE claim_order;
CREATE TABLE lanes (
    tenant_id  uuid NOT NULL REFERENCES tenants ON DELETE CASCADE,
    profile    text NOT NULL,
    last_claim bigint NOT NULL,
    PRIMARY KEY (tenant_id, profile)
) WITH (fillfactor = 50);

-- What is on offer, as the gateway's configuration says.
CREATE TABLE profiles (
    label       text PRIMARY KEY,
    description jsonb NOT NULL,
    published_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Who did what from where. Append-only; each row carries the hash of the one before.
CREATE TABLE audit (
    seq      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor    text NOT NULL,
    action   text NOT NULL,
    subject  text NOT NULL,
    detail   text,
    previous bytea NOT NULL,
    hash     bytea NOT NULL
);

-- Grants: each role can do what its work needs and no more.
GRANT USAGE ON SCHEMA public TO flyci_gateway, flyci_web, flyci_host;
GRANT SELECT ON fleet TO flyci_gateway, flyci_web, flyci_host;
GRANT SELECT, INSERT, UPDATE, DELETE ON tenants, repositories, deliveries, jobs, refusals, runners, profiles TO flyci_gateway;
GRANT SELECT, INSERT, DELETE ON runner_names TO flyci_gateway;
GRANT SELECT, INSERT ON audit TO flyci_gateway, flyci_host;
GRANT SELECT, UPDATE, DELETE ON vms, hosts TO flyci_gateway;
GRANT SELECT, DELETE ON lanes, host_images TO flyci_gateway;
GRANT SELECT ON jobs, profiles, host_images TO flyci_host;
GRANT UPDATE (attempts, not_before, verify_since) ON jobs TO flyci_host;
GRANT SELECT (id, admission, suspended_at, uninstalled_at, vm_limit) ON tenants TO flyci_host;
GRANT SELECT, INSERT, UPDATE ON hosts, host_images, vms, lanes TO flyci_host;
GRANT SELECT, INSERT, UPDATE ON runners TO flyci_host;
GRANT USAGE ON SEQUENCE claim_order TO flyci_host;
GRANT SELECT ON tenants, repositories, deliveries, jobs, refusals, runners, vms, hosts, host_images, lanes, profiles TO flyci_web;

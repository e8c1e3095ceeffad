-- Keys that rotate, tenants that can be erased, an audit trail that cannot be written anew, and
-- row-level security on every table: what a role may see is the database's rule, not only a query's.

-- Whoever migrates later must see the rows that it moves: row-level security is forced on owners too.
DO $$
BEGIN
    EXECUTE format('GRANT flyci_migrate TO %I', current_user);
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'the login that migrates must be a member of flyci_migrate'
        USING HINT = format('as an administrator of the server: GRANT flyci_migrate TO %I', current_user);
END $$;
GRANT USAGE ON SCHEMA public TO flyci_migrate;

-- The trail has a chain per writer; `hash` is a MAC under a key that only the master key opens. Rows of
-- before are the chain '': hashed without a key, and named by the first row of the chains that follow.
ALTER TABLE audit ADD COLUMN chain text NOT NULL DEFAULT '', ADD COLUMN position bigint;
UPDATE audit SET position = numbered.position
    FROM (SELECT seq, row_number() OVER (ORDER BY seq) AS position FROM audit) numbered WHERE numbered.seq = audit.seq;
ALTER TABLE audit ALTER COLUMN position SET NOT NULL, ALTER COLUMN chain DROP DEFAULT;
CREATE UNIQUE INDEX audit_chain ON audit (chain, position);
CREATE INDEX audit_at ON audit (at);

-- The key of the trail, wrapped by the master key.
CREATE TABLE audit_key (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id        uuid NOT NULL,
    wrapped   bytea NOT NULL,
    made_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Every master key that was ever in use, by its id. Destroyed is one that no gateway holds any more.
CREATE TABLE master_keys (
    id           bytea PRIMARY KEY,
    first_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    destroyed_at timestamptz
);

-- The gateways that run, with the master keys that each holds, the one it wraps with first.
CREATE TABLE gateways (
    id          uuid PRIMARY KEY,
    name        text NOT NULL,
    master_keys bytea[] NOT NULL,
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Tenants that were erased, by our own random id; final once the master key of then is destroyed and
-- the backups of before are gone.
CREATE TABLE erasures (
    tenant_id  uuid PRIMARY KEY,
    erased_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    master_key bytea NOT NULL,
    final_from timestamptz
);
ALTER TABLE tenants ADD COLUMN erase_asked_at timestamptz;
CREATE INDEX tenants_erased ON tenants (erase_asked_at) WHERE erase_asked_at IS NOT NULL;

-- Only this removes rows of the trail: whole beginnings of a chain, up to where a checkpoint says, and
-- none younger than 30 days, whoever asks.
CREATE FUNCTION audit_prune(of_chain text, up_to bigint) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public AS $$
    WITH gone AS (
        DELETE FROM public.audit WHERE chain = of_chain AND position <= up_to AND at < now() - interval '30 days'
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
REVOKE EXECUTE ON FUNCTION audit_prune FROM PUBLIC;
GRANT EXECUTE ON FUNCTION audit_prune TO flyci_gateway;

GRANT SELECT ON audit_key, master_keys, gateways, erasures TO flyci_gateway;
GRANT INSERT, UPDATE ON audit_key, master_keys, erasures TO flyci_gateway;
GRANT INSERT, UPDATE, DELETE ON gateways TO flyci_gateway;
-- What a dashboard for customers may read: what is theirs, and nothing that is wrapped or sealed for others.
REVOKE SELECT ON deliveries, delivery_log, missed_deliveries, hosts, host_images, lanes, tenants, runners FROM flyci_web;
GRANT SELECT (id, account, account_kind, admission, suspended_at, uninstalled_at, vm_limit, created_at)
    ON tenants TO flyci_web;
GRANT SELECT (id, vm_id, tenant_id, repository_id, labels, state, reason, name, requested_at, minted_at, busy_at,
              ended_at, removed_at) ON runners TO flyci_web;

-- Row-level security, forced: without a policy a role sees nothing, a table's owner included.
DO $$
DECLARE
    of_table text;
BEGIN
    FOR of_table IN SELECT relname FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> '_sqlx_migrations'
    LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY', of_table);
        EXECUTE format('CREATE POLICY migrate ON %I TO flyci_migrate USING (true) WITH CHECK (true)', of_table);
    END LOOP;
    -- The gateway serves every tenant.
    FOREACH of_table IN ARRAY ARRAY['tenants', 'repositories', 'deliveries', 'jobs', 'refusals', 'runners', 'profiles',
        'runner_names', 'vms', 'hosts', 'lanes', 'host_images', 'audit_key', 'master_keys', 'gateways', 'erasures',
        'pass_leases', 'delivery_log', 'missed_deliveries', 'github_holds']
    LOOP
        EXECUTE format('CREATE POLICY gateway ON %I TO flyci_gateway USING (true) WITH CHECK (true)', of_table);
    END LOOP;
    -- A host runs jobs of every tenant that it is not kept from.
    FOREACH of_table IN ARRAY ARRAY['tenants', 'jobs', 'runners', 'profiles', 'vms', 'hosts', 'lanes', 'host_images',
        'delivery_log', 'missed_deliveries']
    LOOP
        EXECUTE format('CREATE POLICY host ON %I TO flyci_host USING (true) WITH CHECK (true)', of_table);
    END LOOP;
    -- The web role acts for one tenant: SET LOCAL flyci.tenant in its transaction. Unset: no rows.
    FOREACH of_table IN ARRAY ARRAY['repositories', 'jobs', 'refusals', 'runners', 'vms']
    LOOP
        EXECUTE format('CREATE POLICY web ON %I FOR SELECT TO flyci_web
            USING (tenant_id = nullif(current_setting(''flyci.tenant'', true), '''')::uuid)', of_table);
    END LOOP;
END $$;
CREATE POLICY web ON tenants FOR SELECT TO flyci_web
    USING (id = nullif(current_setting('flyci.tenant', true), '')::uuid);
CREATE POLICY web ON profiles FOR SELECT TO flyci_web USING (true);
CREATE POLICY everybody ON fleet FOR SELECT TO PUBLIC USING (true);
-- Written and read, never changed: nobody but who migrates has a policy, or a grant, to update or delete.
CREATE POLICY reads ON audit FOR SELECT TO flyci_gateway USING (true);
CREATE POLICY appends ON audit FOR INSERT TO flyci_gateway WITH CHECK (chain <> '');
REVOKE ALL ON audit FROM flyci_host;

UPDATE fleet SET schema = 2, min_reader = 2;

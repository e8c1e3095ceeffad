-- Hosts of their own database login, rows that say who wrote them, and rights of a host that end at its own rows.

ALTER TABLE hosts
    -- The login that the host's rows belong to.
    ADD COLUMN login      text NOT NULL DEFAULT session_user,
    -- A gateway's word that the public key is this host's: a MAC under a key that is not in the database.
    ADD COLUMN mac        bytea,
    -- The host's word to a gateway, by the token that it was given, that the public key is its own.
    ADD COLUMN join_proof bytea,
    ADD COLUMN revoked_at timestamptz;

-- Who may join, and until when. The token itself is nowhere: a gateway makes it anew out of the nonce and its own key.
CREATE TABLE invitations (
    name  text PRIMARY KEY,
    login text NOT NULL,
    nonce bytea NOT NULL,
    until timestamptz NOT NULL
);

-- Intake's word that the row is a job that it took in, with these labels: a MAC under the tenant's key.
ALTER TABLE jobs ADD COLUMN mac bytea;

GRANT SELECT, INSERT, UPDATE, DELETE ON invitations TO flyci_gateway;
ALTER TABLE invitations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
CREATE POLICY migrate ON invitations TO flyci_migrate USING (true) WITH CHECK (true);
CREATE POLICY gateway ON invitations TO flyci_gateway USING (true) WITH CHECK (true);

-- A host is its login, never what it says. It sees what it must count, and writes its own rows alone; a revoked one
-- writes none.
DROP POLICY host ON hosts;
CREATE POLICY host_reads ON hosts FOR SELECT TO flyci_host USING (login = session_user);
CREATE POLICY host_joins ON hosts FOR INSERT TO flyci_host WITH CHECK (login = session_user);
CREATE POLICY host_writes ON hosts FOR UPDATE TO flyci_host
    USING (login = session_user AND revoked_at IS NULL) WITH CHECK (login = session_user AND revoked_at IS NULL);
REVOKE INSERT, UPDATE ON hosts FROM flyci_host;
GRANT INSERT (id, name, public_key, join_proof, hypervisor, hardware, os, architecture, slots, cpus, memory, version,
              runner_version, session, seq, beat_at, world, dedicated_to) ON hosts TO flyci_host;
GRANT UPDATE (public_key, join_proof, hypervisor, hardware, os, architecture, slots, cpus, memory, version,
              runner_version, session, seq, beat_at, world, dedicated_to, can_boot, differs) ON hosts TO flyci_host;

DROP POLICY host ON vms;
CREATE POLICY host_reads ON vms FOR SELECT TO flyci_host USING (true);
CREATE POLICY host_plans ON vms FOR INSERT TO flyci_host
    WITH CHECK (host_id IN (SELECT id FROM hosts WHERE login = session_user AND revoked_at IS NULL));
CREATE POLICY host_writes ON vms FOR UPDATE TO flyci_host
    USING (host_id IN (SELECT id FROM hosts WHERE login = session_user AND revoked_at IS NULL));
-- What only a gateway decides: an operator's word, and which vm is whose is never changed.
REVOKE UPDATE ON vms FROM flyci_host;
GRANT UPDATE (session, tenant_id, repository_id, class, state, reason, runner_status, release_asked_at, cloned_at,
              booted_at, ready_at, bound_at, minted_at, delivering_at, serving_at, stopping_at, gone_at)
    ON vms TO flyci_host;

-- The sealed configs of other hosts are not seen, and what a runner is for cannot be changed.
DROP POLICY host ON runners;
CREATE POLICY host ON runners TO flyci_host
    USING (host_id IN (SELECT id FROM hosts WHERE login = session_user AND revoked_at IS NULL));
REVOKE INSERT, UPDATE ON runners FROM flyci_host;
GRANT INSERT (id, vm_id, host_id, tenant_id, repository_id, labels, class, state) ON runners TO flyci_host;
GRANT UPDATE (state, reason, sealed_jit, busy_at, ended_at, removed_at) ON runners TO flyci_host;

DROP POLICY host ON host_images;
CREATE POLICY host ON host_images TO flyci_host
    USING (host_id IN (SELECT id FROM hosts WHERE login = session_user AND revoked_at IS NULL));

DROP POLICY host ON image_pulls;
CREATE POLICY host_reads ON image_pulls FOR SELECT TO flyci_host USING (true);
CREATE POLICY host ON image_pulls TO flyci_host
    USING (host_id IN (SELECT id FROM hosts WHERE login = session_user AND revoked_at IS NULL));

-- Demand is counted by all; only who serves a class may put its jobs in doubt, or count a failed try.
DROP POLICY host ON jobs;
CREATE POLICY host_reads ON jobs FOR SELECT TO flyci_host USING (true);
CREATE POLICY host_doubts ON jobs FOR UPDATE TO flyci_host
    USING (EXISTS (SELECT 1 FROM vms v JOIN hosts h ON h.id = v.host_id
                   WHERE h.login = session_user AND h.revoked_at IS NULL AND v.state <> 'gone'
                     AND (v.class = jobs.class OR v.id = jobs.vm_id)));
REVOKE SELECT ON jobs FROM flyci_host;
GRANT SELECT (id, tenant_id, repository_id, profile, labels, class, state, reason, received_at, queued_at,
              github_created_at, github_started_at, ended_at, vm_id, attempts, not_before, verify_since)
    ON jobs TO flyci_host;

-- Whose turn it is: written for a vm that its caller has just bound, and by nobody at will.
CREATE FUNCTION lane_served(of_tenant uuid, of_profile text) RETURNS void
    LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
    INSERT INTO public.lanes (tenant_id, profile, last_claim)
    SELECT of_tenant, of_profile, nextval('public.claim_order')
    WHERE EXISTS (SELECT 1 FROM public.vms v JOIN public.hosts h ON h.id = v.host_id
                  WHERE h.login = session_user AND v.tenant_id = of_tenant AND v.profile = of_profile
                    AND v.state = 'bound')
    ON CONFLICT (tenant_id, profile) DO UPDATE SET last_claim = EXCLUDED.last_claim
$$;
REVOKE EXECUTE ON FUNCTION lane_served FROM PUBLIC;
GRANT EXECUTE ON FUNCTION lane_served TO flyci_host;
REVOKE INSERT, UPDATE ON lanes FROM flyci_host;
REVOKE USAGE ON SEQUENCE claim_order FROM flyci_host;

UPDATE fleet SET schema = 3, min_reader = 3;

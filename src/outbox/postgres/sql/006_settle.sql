-- Settling, members and ownership.
--
-- Whoever settles holds the member's advisory lock in shared mode until its commit is visible, and checks under it that the member
-- lives and owns the lanes. Whoever takes lanes away holds it exclusively. So no settlement commits after its lane has left.

-- Waits for a member's settlements under way, and keeps new ones out until the end of the transaction. A connection that broke in
-- the middle of a settlement may leave a server process that waits for the rest of it: that one is ended, if this login may.
CREATE FUNCTION sendoff._exclude(p_member bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_advisory_xact_lock(p_member);
EXCEPTION WHEN lock_not_available THEN
  BEGIN
    PERFORM pg_terminate_backend(l.pid) FROM pg_locks l
      WHERE l.locktype = 'advisory' AND l.granted AND l.pid <> pg_backend_pid() AND l.objsubid = 1
        AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
        AND l.classid::bigint = p_member >> 32 AND l.objid::bigint = p_member & 4294967295;
  EXCEPTION WHEN insufficient_privilege THEN
    NULL;
  END;
  PERFORM pg_advisory_xact_lock(p_member);
END $$;

-- Refuses a member that is not alive (SO001). Holds its lock in shared mode until the end of the transaction.
CREATE FUNCTION sendoff._mine(p_member bigint, p_session bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  m record;
BEGIN
  PERFORM sendoff._read_committed();
  PERFORM pg_advisory_xact_lock_shared(p_member);
  -- A statement of its own, so that its snapshot is taken after the wait.
  SELECT x.alive, x.gone, x.session INTO m FROM sendoff.member x WHERE x.id = p_member;
  IF m.alive IS NOT TRUE THEN
    RAISE EXCEPTION USING ERRCODE = 'SO001', MESSAGE = 'sendoff: this daemon is no longer a member: another one has taken its lanes',
      DETAIL = coalesce(m.gone, 'unknown');
  ELSIF m.session > p_session THEN
    RAISE EXCEPTION USING ERRCODE = 'SO002', MESSAGE = 'sendoff: a later connection of this daemon settles by now';
  END IF;
END $$;

-- Begins a new settle session after a reconnect: settlements that were sent before are finished or will be refused.
CREATE FUNCTION sendoff.new_session(p_member bigint) RETURNS bigint LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
  v_session bigint;
BEGIN
  PERFORM sendoff._read_committed();
  PERFORM sendoff._exclude(p_member);
  PERFORM sendoff._mine(p_member, 9223372036854775807);
  UPDATE sendoff.member m SET session = m.session + 1 WHERE m.id = p_member RETURNING m.session INTO v_session;
  RETURN v_session;
END $$;

-- Writes the results of leased events, all of them or none. Returns the lanes of the call that this member does not own: nothing
-- was written for their events. Repeating a call changes nothing: what has left the outbox stays gone.
CREATE FUNCTION sendoff.settle(p_member bigint, p_session bigint,
  p_done_lanes bigint[], p_done_ids uuid[],
  p_retry_lanes bigint[], p_retry_ids uuid[], p_retry_places smallint[], p_retry_dues bigint[], p_retry_histories bytea[],
  p_bury_lanes bigint[], p_bury_ids uuid[], p_bury_dues bigint[], p_bury_ats bigint[], p_bury_reasons smallint[], p_bury_histories bytea[],
  p_ship_lanes bigint[], p_ship_ids uuid[],
  p_reship_lanes bigint[], p_reship_ids uuid[], p_reship_dues bigint[], p_reship_histories bytea[],
  p_proven bigint[],
  p_outlive_families smallint[], p_outlive_digests uuid[], p_outlive_firsts uuid[])
RETURNS bigint[] LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
  c sendoff.control;
  v_all bigint[];
  v_owned bigint[];
  v_now bigint;
  v_known record;
  r record;
BEGIN
  PERFORM sendoff._mine(p_member, p_session);
  v_all := ARRAY(SELECT DISTINCT o.lane FROM unnest(p_done_lanes || p_retry_lanes || p_bury_lanes || p_ship_lanes || p_reship_lanes) o (lane));
  v_owned := ARRAY(SELECT l.id FROM sendoff.lane l WHERE l.id = ANY (v_all) AND l.owner = p_member);

  -- Each row is looked up by its key: a join may be planned, while the tables are small, as a reading of all of them.
  IF p_done_ids <> '{}' THEN
    DELETE FROM sendoff.event e WHERE e.ctid = ANY (ARRAY(SELECT x.ctid FROM unnest(p_done_lanes, p_done_ids) s (lane, id)
      CROSS JOIN LATERAL (SELECT x.ctid FROM sendoff.event x WHERE x.lane = s.lane AND x.id = s.id LIMIT 1) x WHERE s.lane = ANY (v_owned)));
    DELETE FROM sendoff.later w WHERE w.ctid = ANY (ARRAY(SELECT x.ctid FROM unnest(p_done_lanes, p_done_ids) s (lane, id)
      CROSS JOIN LATERAL (SELECT x.ctid FROM sendoff.later x WHERE x.lane = s.lane AND x.id = s.id LIMIT 1) x WHERE s.lane = ANY (v_owned)));
  END IF;
  FOR r IN SELECT s.* FROM unnest(p_retry_lanes, p_retry_ids, p_retry_places, p_retry_dues, p_retry_histories) s (lane, id, place, due, history)
    WHERE s.lane = ANY (v_owned) LOOP
    -- Only for an event that is stored: a row without an event would stand before the others.
    INSERT INTO sendoff.later AS w (lane, due, id, place, history)
      SELECT r.lane, r.due, r.id, r.place, r.history WHERE EXISTS (SELECT FROM sendoff.event e WHERE e.lane = r.lane AND e.id = r.id)
      ON CONFLICT (lane, id) DO UPDATE SET due = excluded.due, place = excluded.place, history = excluded.history;
  END LOOP;
  FOR r IN SELECT s.* FROM unnest(p_bury_lanes, p_bury_ids, p_bury_dues, p_bury_ats, p_bury_reasons, p_bury_histories) s (lane, id, due, at, reason, history)
    WHERE s.lane = ANY (v_owned) LOOP
    WITH e AS (
      DELETE FROM sendoff.event e WHERE e.lane = r.lane AND e.id = r.id RETURNING e.deliver_at, e.expires_at, e.bytes, e.redrives, e.key_source,
        e.key_value, e.address, e.qualifier, e.region, e.trace, e.context, e.tenant, e.durable, e.payload
    )
    INSERT INTO sendoff.dead (lane, deliver_at, expires_at, id, due, buried_at, bytes, redrives, key_source, reason, key_value, address, qualifier, region,
        trace, context, tenant, durable, history, payload)
      SELECT r.lane, e.deliver_at, e.expires_at, r.id, r.due, r.at, e.bytes, e.redrives, e.key_source, r.reason, e.key_value, e.address, e.qualifier, e.region,
        e.trace, e.context, e.tenant, e.durable, r.history, e.payload FROM e;
    IF FOUND THEN
      DELETE FROM sendoff.later w WHERE w.lane = r.lane AND w.id = r.id;
    ELSE
      UPDATE sendoff.dead d SET due = r.due, buried_at = r.at, reason = r.reason, history = r.history WHERE d.lane = r.lane AND d.id = r.id;
    END IF;
  END LOOP;
  IF p_ship_ids <> '{}' THEN
    DELETE FROM sendoff.dead d WHERE d.ctid = ANY (ARRAY(SELECT x.ctid FROM unnest(p_ship_lanes, p_ship_ids) s (lane, id)
      CROSS JOIN LATERAL (SELECT x.ctid FROM sendoff.dead x WHERE x.lane = s.lane AND x.id = s.id LIMIT 1) x WHERE s.lane = ANY (v_owned)));
  END IF;
  FOR r IN SELECT s.* FROM unnest(p_reship_lanes, p_reship_ids, p_reship_dues, p_reship_histories) s (lane, id, due, history) WHERE s.lane = ANY (v_owned) LOOP
    UPDATE sendoff.dead d SET due = r.due, history = r.history WHERE d.lane = r.lane AND d.id = r.id;
  END LOOP;
  IF p_proven <> '{}' THEN
    UPDATE sendoff.lane l SET proven = true WHERE l.id = ANY (p_proven) AND l.owner = p_member AND NOT l.proven;
  END IF;

  -- Events that left late: their keys are remembered for one window from now.
  IF p_outlive_digests <> '{}' THEN
    c := sendoff._gate();
    v_now := sendoff._clock(c.test_clock);
    FOR r IN SELECT o.family = 1 AS sdk, o.digest, o.first FROM unnest(p_outlive_families, p_outlive_digests, p_outlive_firsts) o (family, digest, first) ORDER BY o.digest LOOP
      v_known := sendoff._known(c, r.sdk, r.digest);
      CONTINUE WHEN v_known.first IS DISTINCT FROM r.first;
      PERFORM sendoff._set_key(CASE WHEN r.sdk THEN c.sdk_current ELSE c.given_current END, r.digest, r.first, v_known.print,
        v_now + CASE WHEN r.sdk THEN c.sdk_ms ELSE c.given_ms END);
    END LOOP;
  END IF;
  RETURN ARRAY(SELECT o.lane FROM unnest(v_all) o (lane) WHERE o.lane <> ALL (v_owned));
END $$;

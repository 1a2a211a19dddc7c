-- Members: who is alive, and who owns which lanes. No clocks are compared: a daemon is taken for dead when another one has seen
-- the same beat for long enough on its own clock.

-- Becomes a member. If somebody alive has the name, answers with its id and beat. Wait for longer than a beat and call again with
-- these: if it has not moved, its process is gone, and this one takes its place.
CREATE FUNCTION sendoff.join(p_id bigint, p_name text, p_realm text, p_home_region text, p_home_account text, p_other bigint, p_other_beat bigint,
  p_version text)
RETURNS TABLE (joined boolean, other bigint, other_beat bigint) LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
  c record;
BEGIN
  PERFORM sendoff._read_committed();
  SELECT x.realm, x.home_region, x.home_account INTO c FROM sendoff.control x;
  IF c.realm <> p_realm THEN
    RAISE EXCEPTION USING ERRCODE = 'SO004', MESSAGE = format('sendoff: this outbox belongs to %s, not to %s', c.realm, p_realm),
      HINT = 'Give each region, account and endpoint a database of its own.';
  ELSIF (c.realm, c.home_region, c.home_account) IS DISTINCT FROM (p_realm, p_home_region, p_home_account) THEN
    UPDATE sendoff.control SET realm = p_realm, home_region = p_home_region, home_account = p_home_account;
  END IF;
  IF p_other IS NOT NULL THEN
    PERFORM sendoff._fence(p_other, p_other_beat, 'replaced');
  END IF;
  INSERT INTO sendoff.member (id, name, since, version) VALUES (p_id, p_name, sendoff.now_ms(), p_version) ON CONFLICT DO NOTHING;
  IF FOUND THEN
    RETURN QUERY SELECT true, NULL::bigint, NULL::bigint;
  ELSE
    RETURN QUERY SELECT m.id = p_id, m.id, m.beat FROM sendoff.member m WHERE m.name = p_name AND m.alive;
  END IF;
END $$;

-- Ends a member whose beat has not moved. Returns whether this call did.
CREATE FUNCTION sendoff._fence(p_id bigint, p_beat bigint, p_why text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  -- Before anything that could disturb it.
  PERFORM FROM sendoff.member m WHERE m.id = p_id AND m.alive AND m.beat = p_beat;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  PERFORM sendoff._exclude(p_id);
  UPDATE sendoff.member m SET alive = false, gone = p_why WHERE m.id = p_id AND m.alive AND m.beat = p_beat;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  -- In the same transaction: the row of a member may be deleted one day, but no lane may belong to it then.
  UPDATE sendoff.lane l SET owner = NULL WHERE l.owner = p_id;
  RETURN true;
END $$;

CREATE FUNCTION sendoff.fence(p_me bigint, p_id bigint, p_beat bigint) RETURNS boolean LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
  PERFORM sendoff._read_committed();
  PERFORM FROM sendoff.member m WHERE m.id = p_me AND m.alive;
  IF NOT FOUND OR p_me = p_id THEN
    RETURN false;
  END IF;
  RETURN sendoff._fence(p_id, p_beat, 'fenced');
END $$;

-- Shows that a member lives, and tells it of all that do: one row each.
CREATE FUNCTION sendoff.beat(p_id bigint, p_news_xid bigint, p_events bigint, p_bytes bigint)
RETURNS TABLE (now_ms bigint, incarnation text, unowned bigint, paused bigint[], full_of text, id bigint, name text, beat bigint, lanes bigint, events bigint, bytes bigint,
  since bigint, version text, draining boolean)
LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
  m record;
BEGIN
  PERFORM sendoff._read_committed();
  -- A beat that was sent before a claim must not undo what the claim has noted.
  UPDATE sendoff.member x SET beat = x.beat + 1, events = p_events, bytes = p_bytes,
    news_xid = coalesce(p_news_xid, CASE WHEN EXISTS (SELECT FROM sendoff.lane l WHERE l.owner = p_id) THEN x.news_xid END) WHERE x.id = p_id AND x.alive;
  IF NOT FOUND THEN
    SELECT x.gone INTO m FROM sendoff.member x WHERE x.id = p_id;
    RAISE EXCEPTION USING ERRCODE = 'SO001', MESSAGE = 'sendoff: this daemon is no longer a member: another one has taken its lanes',
      DETAIL = coalesce(m.gone, 'unknown');
  END IF;
  RETURN QUERY SELECT sendoff.now_ms(), sendoff._incarnation(),
      (SELECT count(*) FROM (SELECT FROM sendoff.lane l WHERE l.owner IS NULL AND NOT l.retired LIMIT 100000) l),
      ARRAY(SELECT l.id FROM sendoff.lane l WHERE l.owner = p_id AND l.paused), (SELECT c.full_of FROM sendoff.control c),
      x.id, x.name, x.beat, (SELECT count(*) FROM sendoff.lane l WHERE l.owner = x.id), x.events, x.bytes,
      x.since, x.version, x.draining
    FROM sendoff.member x WHERE x.alive ORDER BY x.id;
END $$;

-- All lanes of a member.
CREATE FUNCTION sendoff.my_lanes(p_member bigint) RETURNS TABLE (lane bigint, function text, paused boolean, proven boolean, retired boolean, hour bigint, attempts bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY SELECT l.id, l.function, l.paused, l.proven, l.retired, s.hour, s.attempts
    FROM sendoff.lane l LEFT JOIN sendoff.lane_spent s ON s.lane = l.id WHERE l.owner = p_member ORDER BY l.owner, l.id;
END $$;

-- Takes lanes without an owner, and returns them. In this release one member owns all lanes: nothing, while another one has any
-- and does not drain. A member that drains takes none.
CREATE FUNCTION sendoff.claim(p_member bigint, p_max int) RETURNS TABLE (lane bigint, function text, paused boolean, proven boolean, retired boolean, hour bigint, attempts bigint)
LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
  v_lanes bigint[];
BEGIN
  PERFORM sendoff._mine(p_member, 9223372036854775807);
  -- One claim at a time.
  PERFORM pg_advisory_xact_lock(1936027236, 1);
  IF EXISTS (SELECT FROM sendoff.member m WHERE m.id = p_member AND m.draining)
    OR EXISTS (SELECT FROM sendoff.member m WHERE m.alive AND NOT m.draining AND m.id <> p_member AND EXISTS (SELECT FROM sendoff.lane l WHERE l.owner = m.id)) THEN
    RETURN;
  END IF;
  -- Arrivals from here on are kept until this member has been told of them.
  UPDATE sendoff.member m SET news_xid = pg_snapshot_xmin(pg_current_snapshot())::text::bigint WHERE m.id = p_member AND m.news_xid IS NULL;
  WITH free AS (SELECT l.id FROM sendoff.lane l WHERE l.owner IS NULL ORDER BY l.owner, l.id LIMIT p_max FOR UPDATE SKIP LOCKED),
    taken AS (UPDATE sendoff.lane l SET owner = p_member FROM free WHERE l.id = free.id RETURNING l.id)
    SELECT coalesce(array_agg(t.id), '{}') INTO v_lanes FROM taken t;
  RETURN QUERY SELECT l.lane, l.function, l.paused, l.proven, l.retired, l.hour, l.attempts FROM sendoff.my_lanes(p_member) l WHERE l.lane = ANY (v_lanes);
END $$;

-- From here on the member gives its lanes back, and claims none.
CREATE FUNCTION sendoff.drain(p_member bigint) RETURNS void LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
  PERFORM sendoff._read_committed();
  -- After a claim that is under way.
  PERFORM pg_advisory_xact_lock(1936027236, 1);
  UPDATE sendoff.member m SET draining = true WHERE m.id = p_member AND NOT m.draining;
END $$;

-- Lets lanes go, after the member's settlements under way.
CREATE FUNCTION sendoff.release(p_member bigint, p_lanes bigint[]) RETURNS int LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
  v_released int;
BEGIN
  PERFORM sendoff._read_committed();
  PERFORM sendoff._exclude(p_member);
  UPDATE sendoff.lane l SET owner = NULL WHERE l.id = ANY (p_lanes) AND l.owner = p_member;
  GET DIAGNOSTICS v_released = ROW_COUNT;
  RETURN v_released;
END $$;

-- Lets all lanes go and stops being a member.
CREATE FUNCTION sendoff.leave(p_member bigint) RETURNS void LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
  PERFORM sendoff._read_committed();
  PERFORM sendoff._exclude(p_member);
  UPDATE sendoff.member m SET alive = false, gone = 'left' WHERE m.id = p_member AND m.alive;
  UPDATE sendoff.lane l SET owner = NULL WHERE l.owner = p_member;
END $$;

-- Pauses or resumes a function. Its lane's owner leases nothing of it once this has returned.
CREATE FUNCTION sendoff.pause(p_function text, p_paused boolean) RETURNS void LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
  PERFORM sendoff._read_committed();
  IF p_paused THEN
    PERFORM sendoff._make_lanes(ARRAY[p_function], ARRAY[sendoff.lane_id(p_function)], false);
  END IF;
  UPDATE sendoff.lane l SET paused = p_paused, retired = l.retired AND NOT p_paused WHERE l.id = sendoff.lane_id(p_function);
END $$;

-- Marks own lanes as retired (only those that hold nothing), or as in use again. Returns those that are marked now.
CREATE FUNCTION sendoff.retire(p_member bigint, p_lanes bigint[], p_retired boolean) RETURNS bigint[] LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
  v_lanes bigint[];
BEGIN
  PERFORM sendoff._read_committed();
  WITH marked AS (
    UPDATE sendoff.lane l SET retired = p_retired WHERE l.id = ANY (p_lanes) AND l.owner = p_member
      AND (NOT p_retired OR NOT EXISTS (SELECT FROM sendoff.event e WHERE e.lane = l.id) AND NOT EXISTS (SELECT FROM sendoff.dead d WHERE d.lane = l.id))
      RETURNING l.id)
    SELECT coalesce(array_agg(x.id), '{}') INTO v_lanes FROM marked x;
  RETURN v_lanes;
END $$;

-- Housekeeping: arrivals of which everybody who owns lanes has been told. Returns how many were deleted.
CREATE FUNCTION sendoff.tend_arrivals(p_max int) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  v_told bigint;
  v_deleted int;
BEGIN
  PERFORM sendoff._read_committed();
  IF NOT pg_try_advisory_xact_lock(1936027236, 3) THEN
    RETURN 0;
  END IF;
  PERFORM set_config('synchronous_commit', 'local', true);
  -- Whoever claims lanes reads them after its claim. So what this statement sees, and deletes, it has seen too.
  SELECT min(m.news_xid) INTO v_told FROM sendoff.member m WHERE m.alive;
  DELETE FROM sendoff.arrival a WHERE a.ctid = ANY (ARRAY(SELECT b.ctid FROM sendoff.arrival b WHERE b.xid < v_told ORDER BY b.xid LIMIT p_max));
  GET DIAGNOSTICS v_deleted = ROW_COUNT;
  RETURN v_deleted;
END $$;

-- Housekeeping: members that are gone and began more than a day ago, and questions whose time has passed.
CREATE FUNCTION sendoff.tend_members() RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  v_deleted int;
BEGIN
  DELETE FROM sendoff.command c WHERE c.until < sendoff.now_ms() - 60000;
  DELETE FROM sendoff.member m WHERE NOT m.alive AND m.since < sendoff.now_ms() - 86400000 AND NOT EXISTS (SELECT FROM sendoff.lane l WHERE l.owner = m.id);
  GET DIAGNOSTICS v_deleted = ROW_COUNT;
  RETURN v_deleted;
END $$;

-- Why enqueue refuses events from now on; NULL: it accepts.
CREATE FUNCTION sendoff.set_full(p_why text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  UPDATE sendoff.control SET full_of = p_why WHERE full_of IS DISTINCT FROM p_why;
END $$;

-- What the server is, and what the outbox takes.
CREATE FUNCTION sendoff.stats() RETURNS TABLE (disk_bytes bigint, members int, lanes bigint, keys_estimate bigint, in_recovery boolean, fsync text, synchronous_commit text,
  synchronous_standby_names text, version int, incarnation text, system_id bigint, copied boolean) LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY SELECT
    (SELECT sum(pg_total_relation_size(k.oid))::bigint FROM pg_class k WHERE k.relnamespace = 'sendoff'::regnamespace AND k.relkind = 'r'),
    (SELECT count(*)::int FROM sendoff.member m WHERE m.alive), (SELECT count(*) FROM sendoff.lane),
    (SELECT sum(greatest(k.reltuples, 0))::bigint FROM pg_class k WHERE k.relnamespace = 'sendoff'::regnamespace AND k.relname ~ '^key_[0-5]$'),
    pg_is_in_recovery(), current_setting('fsync'), current_setting('synchronous_commit'), current_setting('synchronous_standby_names'),
    current_setting('server_version_num')::int, sendoff._incarnation(), s.system_identifier, s.system_identifier <> c.system_id
    FROM pg_control_system() s, sendoff.control c;
END $$;

-- After a logical copy (blue/green, upgrade), transaction ids have begun anew: what was told is void. Call it before any member
-- joins. Returns whether the database had been copied.
CREATE FUNCTION sendoff.adopt_copy() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  UPDATE sendoff.control SET system_id = s.system_identifier FROM pg_control_system() s WHERE system_id <> s.system_identifier;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  DELETE FROM sendoff.arrival;
  UPDATE sendoff.member SET alive = false, gone = 'fenced' WHERE alive;
  UPDATE sendoff.lane SET owner = NULL WHERE owner IS NOT NULL;
  RETURN true;
END $$;

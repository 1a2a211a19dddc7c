-- Reading: news, leases, views of lanes. The readers hold no lock on any event.

-- Where news begins. Ask for it after claiming lanes and before reading them.
CREATE FUNCTION sendoff.position() RETURNS TABLE (xmax bigint, open bigint[], xmin bigint, incarnation text) LANGUAGE plpgsql AS $$
BEGIN
  RETURN QUERY SELECT pg_snapshot_xmax(s.snap)::text::bigint, ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s.snap) x),
    pg_snapshot_xmin(s.snap)::text::bigint, sendoff._incarnation() FROM (SELECT pg_current_snapshot() AS snap) s;
END $$;

-- What has been committed since a position: by transactions that began after it (p_from is its xmax), and by those that were open
-- then (p_open). Each committed transaction is told exactly once, however late it commits. The first row is the new position, and says
-- whether somebody asks this member something.
CREATE FUNCTION sendoff.news(p_from bigint, p_open bigint[], p_member bigint) RETURNS TABLE (xmax bigint, open bigint[], xmin bigint, incarnation text, lane bigint, n int,
  n_later int, bytes bigint, bytes_later bigint, due bigint, expiry bigint, first uuid, last uuid, xid bigint, asked boolean) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  PERFORM sendoff._read_committed();
  -- One statement, so one snapshot.
  RETURN QUERY
    SELECT pg_snapshot_xmax(s.snap)::text::bigint, ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(s.snap) x), pg_snapshot_xmin(s.snap)::text::bigint,
      sendoff._incarnation(), NULL::bigint, NULL::int, NULL::int, NULL::bigint, NULL::bigint, NULL::bigint, NULL::bigint, NULL::uuid, NULL::uuid, NULL::bigint,
      EXISTS (SELECT FROM sendoff.command c WHERE c.member = p_member AND NOT c.taken)
      FROM (SELECT pg_current_snapshot() AS snap) s
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, a.lane, a.n, a.n_later, a.bytes, a.bytes_later, a.due, a.expiry, a.first, a.last, a.xid, NULL FROM sendoff.arrival a WHERE a.xid >= p_from
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, a.lane, a.n, a.n_later, a.bytes, a.bytes_later, a.due, a.expiry, a.first, a.last, a.xid, NULL FROM sendoff.arrival a WHERE a.xid = ANY (p_open);
END $$;

-- Writes what lanes have spent, for lanes of this member. Within one hour it never goes back, as a late copy of a call would.
CREATE FUNCTION sendoff._note_spent(p_member bigint, p_lanes bigint[], p_hours bigint[], p_attempts bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO sendoff.lane_spent AS s (lane, hour, attempts)
    SELECT o.lane, o.hour, o.attempts FROM unnest(p_lanes, p_hours, p_attempts) o (lane, hour, attempts)
      WHERE o.hour IS NOT NULL AND EXISTS (SELECT FROM sendoff.lane l WHERE l.id = o.lane AND l.owner = p_member)
    ON CONFLICT (lane) DO UPDATE SET hour = excluded.hour,
      attempts = CASE WHEN s.hour = excluded.hour THEN greatest(s.attempts, excluded.attempts) ELSE excluded.attempts END;
END $$;

-- The events to lease. p_which: 0 due, then ready; 1 ready, then due; 2 expired; 3 dead letters to ship.
--
-- Ready events are read in the order of acceptance after p_after, at most p_reads_max rows of each lane: rows that have a row in
-- later, or are in flight (p_busy), are passed over. A row with place -1 ends each such reading: its id is the last one that was
-- read, and due is 1 if the lane has no more. Payload bytes: the first event whatever its size, then until the limit is reached.
CREATE FUNCTION sendoff.lease(p_member bigint, p_now bigint, p_bytes_max bigint, p_lanes bigint[], p_which smallint[], p_events_max int[],
  p_lane_bytes_max bigint[], p_after uuid[], p_cutoff bigint[], p_due_floor bigint[], p_busy uuid[], p_reads_max int,
  p_spent_hour bigint[], p_spent_attempts bigint[])
RETURNS TABLE (lane bigint, place smallint, id uuid, due bigint, history bytea, bytes int, redrives int, key_source smallint, deliver_at bigint,
  expires_at bigint, key_value text, address text, qualifier text, region text, trace text, context text, tenant text, durable text, payload bytea)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  c_zero CONSTANT uuid := '00000000-0000-0000-0000-000000000000';
  v_left bigint := p_bytes_max;  -- Payload bytes that the rest of the lanes may take.
  v_lane_left bigint;
  v_paused boolean;
  v_wanted int;
  v_part text;
  v_read int;
  v_last uuid;
  v_ids uuid[];
  v_orphans uuid[] := '{}';
  v_orphan_lanes bigint[] := '{}';
BEGIN
  IF p_spent_hour IS NOT NULL AND array_remove(p_spent_hour, NULL) <> '{}' THEN
    PERFORM sendoff._note_spent(p_member, p_lanes, p_spent_hour, p_spent_attempts);
  END IF;
  FOR i IN 1 .. coalesce(array_length(p_lanes, 1), 0) LOOP
    EXIT WHEN v_left <= 0;
    SELECT l.paused INTO v_paused FROM sendoff.lane l WHERE l.id = p_lanes[i] AND l.owner = p_member;
    CONTINUE WHEN NOT FOUND OR v_paused AND p_which[i] IN (0, 1);
    v_wanted := p_events_max[i];
    v_lane_left := least(v_left, p_lane_bytes_max[i]);
    v_left := v_left - v_lane_left;
    FOREACH v_part IN ARRAY CASE p_which[i] WHEN 0 THEN ARRAY['due', 'ready'] WHEN 1 THEN ARRAY['ready', 'due'] WHEN 2 THEN ARRAY['expired'] ELSE ARRAY['buried'] END LOOP
      CONTINUE WHEN v_wanted <= 0 OR v_lane_left <= 0;
      IF v_part = 'due' THEN
        FOR lane, place, id, due, history, bytes, redrives, key_source, deliver_at, expires_at, key_value, address, qualifier, region, trace, context, tenant, durable, payload IN
          SELECT w.lane, w.place, w.id, w.due, w.history, e.bytes, e.redrives, e.key_source, e.deliver_at, e.expires_at, e.key_value, e.address, e.qualifier,
            e.region, e.trace, e.context, e.tenant, e.durable, e.payload
          -- LATERAL with LIMIT: one look-up for each row, whatever the planner thinks of the tables.
          FROM sendoff.later w LEFT JOIN LATERAL (SELECT * FROM sendoff.event e WHERE e.lane = w.lane AND e.id = w.id LIMIT 1) e ON true
          WHERE w.lane = p_lanes[i] AND w.due >= coalesce(p_due_floor[i], 0) AND w.due <= p_now ORDER BY w.lane, w.due, w.id LOOP
          CONTINUE WHEN id = ANY (p_busy);
          IF payload IS NULL THEN
            -- No event has this row. There should be none, and if there is one, it must not stand before the others for ever.
            v_orphans := v_orphans || id;
            v_orphan_lanes := v_orphan_lanes || lane;
            CONTINUE;
          END IF;
          RETURN NEXT;
          v_lane_left := v_lane_left - greatest(octet_length(payload), 1);
          v_wanted := v_wanted - 1;
          EXIT WHEN v_wanted <= 0 OR v_lane_left <= 0;
        END LOOP;
      ELSIF v_part = 'ready' THEN
        v_read := 0;
        v_last := NULL;
        FOR lane, place, id, bytes, redrives, key_source, deliver_at, expires_at, key_value, address, qualifier, region, trace, context, tenant, durable, payload IN
          SELECT e.lane, coalesce(w.place, 0)::smallint, e.id, e.bytes, e.redrives, e.key_source, e.deliver_at, e.expires_at, e.key_value, e.address, e.qualifier, e.region,
            e.trace, e.context, e.tenant, e.durable, e.payload
          FROM sendoff.event e LEFT JOIN LATERAL (SELECT w.place FROM sendoff.later w WHERE w.lane = e.lane AND w.id = e.id LIMIT 1) w ON true
          WHERE e.lane = p_lanes[i] AND e.id > coalesce(p_after[i], c_zero) ORDER BY e.lane, e.id LIMIT p_reads_max LOOP
          v_read := v_read + 1;
          v_last := id;
          CONTINUE WHEN place <> 0 OR id = ANY (p_busy);
          due := NULL;
          history := NULL;
          RETURN NEXT;
          v_lane_left := v_lane_left - greatest(octet_length(payload), 1);
          v_wanted := v_wanted - 1;
          EXIT WHEN v_wanted <= 0 OR v_lane_left <= 0;
        END LOOP;
        lane := p_lanes[i]; place := -1; id := v_last; history := NULL; payload := NULL;
        due := CASE WHEN v_wanted > 0 AND v_lane_left > 0 AND v_read < p_reads_max THEN 1 ELSE 0 END;
        RETURN NEXT;
      ELSIF v_part = 'expired' THEN
        -- Accepted too long ago and not scheduled; due too long ago; past their own time. First the ids, then the events.
        SELECT array_agg(x.id) INTO v_ids FROM (
          SELECT s.id FROM (SELECT e.lane, e.id FROM sendoff.event e WHERE e.lane = p_lanes[i] AND e.id > coalesce(p_after[i], c_zero)
              AND e.id < sendoff._least_id(p_cutoff[i]) ORDER BY e.lane, e.id LIMIT p_reads_max) s
            LEFT JOIN LATERAL (SELECT w.place FROM sendoff.later w WHERE w.lane = s.lane AND w.id = s.id LIMIT 1) w ON true WHERE w.place IS DISTINCT FROM 2
          UNION ALL (SELECT w.id FROM sendoff.later w WHERE w.lane = p_lanes[i] AND w.due < p_cutoff[i] ORDER BY w.lane, w.due, w.id LIMIT p_reads_max)
          UNION ALL (SELECT e.id FROM sendoff.event e WHERE e.lane = p_lanes[i] AND e.expires_at <= p_now AND e.expires_at IS NOT NULL ORDER BY e.lane, e.expires_at LIMIT p_reads_max)) x;
        FOR lane, place, id, due, history, bytes, redrives, key_source, deliver_at, expires_at, key_value, address, qualifier, region, trace, context, tenant, durable, payload IN
          SELECT e.lane, coalesce(w.place, 0)::smallint, e.id, w.due, w.history, e.bytes, e.redrives, e.key_source, e.deliver_at, e.expires_at, e.key_value,
            e.address, e.qualifier, e.region, e.trace, e.context, e.tenant, e.durable, e.payload
          FROM (SELECT DISTINCT o.id FROM unnest(v_ids) o (id) ORDER BY o.id) o
          JOIN LATERAL (SELECT * FROM sendoff.event e WHERE e.lane = p_lanes[i] AND e.id = o.id LIMIT 1) e ON true
          LEFT JOIN LATERAL (SELECT w.place, w.due, w.history FROM sendoff.later w WHERE w.lane = p_lanes[i] AND w.id = o.id LIMIT 1) w ON true
          ORDER BY o.id LOOP
          CONTINUE WHEN id = ANY (p_busy);
          RETURN NEXT;
          v_lane_left := v_lane_left - greatest(octet_length(payload), 1);
          v_wanted := v_wanted - 1;
          EXIT WHEN v_wanted <= 0 OR v_lane_left <= 0;
        END LOOP;
      ELSE
        FOR lane, place, id, due, history, bytes, redrives, key_source, deliver_at, expires_at, key_value, address, qualifier, region, trace, context, tenant, durable, payload IN
          SELECT d.lane, 3::smallint, d.id, d.due, d.history, d.bytes, d.redrives, d.key_source, d.deliver_at, d.expires_at, d.key_value, d.address, d.qualifier,
            d.region, d.trace, d.context, d.tenant, d.durable, d.payload
          FROM sendoff.dead d WHERE d.lane = p_lanes[i] AND d.due >= coalesce(p_due_floor[i], 0) AND d.due <= p_now ORDER BY d.lane, d.due, d.id LOOP
          CONTINUE WHEN id = ANY (p_busy);
          RETURN NEXT;
          v_lane_left := v_lane_left - greatest(octet_length(payload), 1);
          v_wanted := v_wanted - 1;
          EXIT WHEN v_wanted <= 0 OR v_lane_left <= 0;
        END LOOP;
      END IF;
    END LOOP;
    v_left := v_left + greatest(v_lane_left, 0);
  END LOOP;
  IF v_orphans <> '{}' THEN
    -- Looked at again: an event may have come since (it never should), or have left with its row.
    DELETE FROM sendoff.later w USING unnest(v_orphan_lanes, v_orphans) o (lane, id)
      WHERE w.lane = o.lane AND w.id = o.id AND NOT EXISTS (SELECT FROM sendoff.event e WHERE e.lane = o.lane AND e.id = o.id);
  END IF;
END $$;

-- What own lanes hold (p_lanes, or all after p_after), of one snapshot, which each row repeats. Counts stop at p_count_max rows (whole is false then).
CREATE FUNCTION sendoff.lane_views(p_member bigint, p_lanes bigint[], p_after bigint, p_lanes_max int, p_count_max int)
RETURNS TABLE (lane bigint, function text, paused boolean, proven boolean, retired boolean, hour bigint, attempts bigint, first uuid, n bigint, bytes bigint,
  whole boolean, waiting bigint, waiting_bytes bigint, scheduled bigint, scheduled_bytes bigint, buried bigint, buried_bytes bigint, due bigint, ship bigint,
  expiry bigint, xmax bigint, open bigint[]) LANGUAGE plpgsql STABLE AS $$
#variable_conflict use_column
DECLARE
  v_snap pg_snapshot := pg_current_snapshot();  -- STABLE: all statements here see the caller's snapshot.
BEGIN
  xmax := pg_snapshot_xmax(v_snap)::text::bigint;
  open := ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(v_snap) x);
  FOR lane, function, paused, proven, retired, hour, attempts IN
    SELECT l.id, l.function, l.paused, l.proven, l.retired, s.hour, s.attempts FROM sendoff.lane l LEFT JOIN sendoff.lane_spent s ON s.lane = l.id
      WHERE l.owner = p_member AND l.id > coalesce(p_after, -1) AND (p_lanes IS NULL OR l.id = ANY (p_lanes)) ORDER BY l.owner, l.id LIMIT p_lanes_max LOOP
    SELECT count(*), coalesce(sum(x.bytes), 0), (array_agg(x.id))[1] INTO n, bytes, first
      FROM (SELECT e.id, e.bytes FROM sendoff.event e WHERE e.lane = lane_views.lane ORDER BY e.lane, e.id LIMIT p_count_max) x;
    SELECT count(*) FILTER (WHERE x.place = 1), coalesce(sum(x.bytes) FILTER (WHERE x.place = 1), 0), count(*) FILTER (WHERE x.place = 2),
        coalesce(sum(x.bytes) FILTER (WHERE x.place = 2), 0), count(*) < p_count_max
      INTO waiting, waiting_bytes, scheduled, scheduled_bytes, whole
      FROM (SELECT w.place, e.bytes FROM (SELECT w.lane, w.id, w.place FROM sendoff.later w WHERE w.lane = lane_views.lane ORDER BY w.lane, w.due, w.id LIMIT p_count_max) w
        CROSS JOIN LATERAL (SELECT e.bytes FROM sendoff.event e WHERE e.lane = w.lane AND e.id = w.id LIMIT 1) e) x;
    SELECT count(*), coalesce(sum(x.bytes), 0) INTO buried, buried_bytes
      FROM (SELECT d.bytes FROM sendoff.dead d WHERE d.lane = lane_views.lane ORDER BY d.lane, d.due, d.id LIMIT p_count_max) x;
    whole := whole AND n < p_count_max AND buried < p_count_max;
    SELECT w.due INTO due FROM sendoff.later w WHERE w.lane = lane_views.lane ORDER BY w.lane, w.due, w.id LIMIT 1;
    SELECT d.due INTO ship FROM sendoff.dead d WHERE d.lane = lane_views.lane ORDER BY d.lane, d.due, d.id LIMIT 1;
    SELECT e.expires_at INTO expiry FROM sendoff.event e WHERE e.lane = lane_views.lane AND e.expires_at IS NOT NULL ORDER BY e.lane, e.expires_at LIMIT 1;
    RETURN NEXT;
  END LOOP;
END $$;

-- The next times of lanes, without what is in flight: when one is due, may be shipped, expires. NULL where it was not asked for, or
-- where there is none. oldest: the first event that is not scheduled, in flight or not, among the first p_reads_max.
--
-- While a transaction holds a snapshot, index entries of rows that have left stay, and a reading from the start of a lane passes
-- all of them. So the owner says from where on there can be something (p_.._from; NULL: from the start): what it was told last.
CREATE FUNCTION sendoff.peeks(p_lanes bigint[], p_due boolean[], p_ship boolean[], p_expiry boolean[], p_oldest boolean[], p_busy uuid[], p_reads_max int,
  p_oldest_from uuid[] DEFAULT NULL, p_due_from bigint[] DEFAULT NULL, p_expiry_from bigint[] DEFAULT NULL)
RETURNS TABLE (lane bigint, due bigint, ship bigint, expiry bigint, oldest uuid) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_oldest uuid;
  v_due bigint;
  v_expiry bigint;
BEGIN
  FOR i IN 1 .. coalesce(array_length(p_lanes, 1), 0) LOOP
    lane := p_lanes[i]; due := NULL; ship := NULL; expiry := NULL; oldest := NULL;
    v_oldest := coalesce(p_oldest_from[i], '00000000-0000-0000-0000-000000000000');
    v_due := coalesce(p_due_from[i], 0);
    v_expiry := coalesce(p_expiry_from[i], 0);
    IF p_due[i] THEN
      SELECT w.due INTO due FROM sendoff.later w WHERE w.lane = p_lanes[i] AND w.due >= v_due AND w.id <> ALL (p_busy) ORDER BY w.lane, w.due, w.id LIMIT 1;
    END IF;
    IF p_ship[i] THEN
      SELECT d.due INTO ship FROM sendoff.dead d WHERE d.lane = p_lanes[i] AND d.id <> ALL (p_busy) ORDER BY d.lane, d.due, d.id LIMIT 1;
    END IF;
    IF p_expiry[i] THEN
      SELECT e.expires_at INTO expiry FROM sendoff.event e WHERE e.lane = p_lanes[i] AND e.expires_at IS NOT NULL AND e.expires_at >= v_expiry
        AND e.id <> ALL (p_busy) ORDER BY e.lane, e.expires_at LIMIT 1;
    END IF;
    IF p_oldest[i] THEN
      SELECT s.id INTO oldest FROM (SELECT e.lane, e.id FROM sendoff.event e WHERE e.lane = p_lanes[i] AND e.id >= v_oldest ORDER BY e.lane, e.id LIMIT p_reads_max) s
        WHERE NOT EXISTS (SELECT FROM sendoff.later w WHERE w.lane = s.lane AND w.id = s.id AND w.place = 2 OFFSET 0) ORDER BY s.id LIMIT 1;
    END IF;
    RETURN NEXT;
  END LOOP;
END $$;

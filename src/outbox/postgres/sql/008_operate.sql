-- Operators' calls. Those that change events are called by the owner of the lane, which keeps away from what is in flight. Other
-- members ask it to (ask).

-- The living owners of lanes that are shown. A lane that nobody has comes without one.
CREATE FUNCTION sendoff.owners(p_lanes bigint[]) RETURNS TABLE (lane bigint, owner bigint, name text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY SELECT l.id, m.id, m.name FROM unnest(p_lanes) o (lane) CROSS JOIN LATERAL (SELECT * FROM sendoff.lane l WHERE l.id = o.lane AND NOT l.retired LIMIT 1) l
    LEFT JOIN LATERAL (SELECT * FROM sendoff.member m WHERE m.id = l.owner AND m.alive LIMIT 1) m ON true;
END $$;

-- Asks a member. Returns whether it lives. Nobody needs a question after a crash, so nobody waits for a flush.
CREATE FUNCTION sendoff.ask(p_id bigint, p_asker bigint, p_member bigint, p_wait_ms bigint, p_question text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  INSERT INTO sendoff.command (id, member, asker, until, question)
    SELECT p_id, p_member, p_asker, sendoff.now_ms() + p_wait_ms, p_question WHERE EXISTS (SELECT FROM sendoff.member m WHERE m.id = p_member AND m.alive);
  RETURN FOUND;
END $$;

-- Takes up to p_max questions to a member: each is taken once, and none after its time.
CREATE FUNCTION sendoff.asked(p_member bigint, p_max int) RETURNS TABLE (id bigint, question text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_now bigint := sendoff.now_ms();
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  DELETE FROM sendoff.command c WHERE c.member = p_member AND NOT c.taken AND c.until < v_now;
  RETURN QUERY UPDATE sendoff.command c SET taken = true
    WHERE c.id = ANY (ARRAY(SELECT o.id FROM sendoff.command o WHERE o.member = p_member AND NOT o.taken ORDER BY o.member, o.id LIMIT p_max FOR UPDATE SKIP LOCKED))
    RETURNING c.id, c.question;
END $$;

CREATE FUNCTION sendoff.answer(p_id bigint, p_answer text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  UPDATE sendoff.command c SET answer = p_answer WHERE c.id = p_id AND c.taken;
END $$;

-- What became of a question: whether it was taken, whether the member that was asked lives, and the answer. No row: it is gone. An
-- answer is read once.
CREATE FUNCTION sendoff.answered(p_id bigint) RETURNS TABLE (taken boolean, alive boolean, answer text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  RETURN QUERY DELETE FROM sendoff.command c WHERE c.id = p_id AND c.answer IS NOT NULL RETURNING c.taken, true, c.answer;
  IF NOT FOUND THEN
    RETURN QUERY SELECT c.taken, EXISTS (SELECT FROM sendoff.member m WHERE m.id = c.member AND m.alive), c.answer FROM sendoff.command c WHERE c.id = p_id;
  END IF;
END $$;

-- Takes a question back. Returns whether nobody had taken it: then nothing was done.
CREATE FUNCTION sendoff.withdraw(p_id bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  DELETE FROM sendoff.command c WHERE c.id = p_id AND NOT c.taken;
  RETURN FOUND;
END $$;

-- One event, wherever it is.
CREATE FUNCTION sendoff.find(p_id uuid, p_payload boolean) RETURNS TABLE (function text, payload_bytes int, lane bigint, place smallint, id uuid, due bigint, history bytea, bytes int,
  redrives int, key_source smallint, deliver_at bigint, expires_at bigint, key_value text, address text, qualifier text, region text, trace text,
  context text, tenant text, durable text, payload bytea) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
    SELECT l.function, octet_length(e.payload), e.lane, coalesce(w.place, 0)::smallint, e.id, w.due, w.history, e.bytes, e.redrives, e.key_source, e.deliver_at,
        e.expires_at, e.key_value, e.address, e.qualifier, e.region, e.trace, e.context, e.tenant, e.durable, CASE WHEN p_payload THEN e.payload END
      FROM sendoff.lane l CROSS JOIN LATERAL (SELECT * FROM sendoff.event e WHERE e.lane = l.id AND e.id = p_id LIMIT 1) e
        LEFT JOIN LATERAL (SELECT * FROM sendoff.later w WHERE w.lane = l.id AND w.id = p_id LIMIT 1) w ON true
      WHERE l.tag = sendoff._tag_of(p_id)
    UNION ALL
    SELECT l.function, octet_length(d.payload), d.lane, 3::smallint, d.id, d.due, d.history, d.bytes, d.redrives, d.key_source, d.deliver_at,
        d.expires_at, d.key_value, d.address, d.qualifier, d.region, d.trace, d.context, d.tenant, d.durable, CASE WHEN p_payload THEN d.payload END
      FROM sendoff.lane l CROSS JOIN LATERAL (SELECT * FROM sendoff.dead d WHERE d.lane = l.id AND d.id = p_id LIMIT 1) d
      WHERE l.tag = sendoff._tag_of(p_id);
END $$;

-- Events of these lanes by their ids, without payloads, wherever they are.
CREATE FUNCTION sendoff.heads(p_lanes bigint[], p_ids uuid[]) RETURNS TABLE (payload_bytes int, lane bigint, place smallint, id uuid, due bigint, history bytea, bytes int,
  redrives int, key_source smallint, deliver_at bigint, expires_at bigint, key_value text, address text, qualifier text, region text, trace text,
  context text, tenant text, durable text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  RETURN QUERY
    SELECT octet_length(e.payload), e.lane, coalesce(w.place, 0)::smallint, e.id, w.due, w.history, e.bytes, e.redrives, e.key_source, e.deliver_at,
        e.expires_at, e.key_value, e.address, e.qualifier, e.region, e.trace, e.context, e.tenant, e.durable
      FROM unnest(p_lanes, p_ids) o (lane, id) CROSS JOIN LATERAL (SELECT * FROM sendoff.event e WHERE e.lane = o.lane AND e.id = o.id LIMIT 1) e
        LEFT JOIN LATERAL (SELECT * FROM sendoff.later w WHERE w.lane = o.lane AND w.id = o.id LIMIT 1) w ON true
    UNION ALL
    SELECT octet_length(d.payload), d.lane, 3::smallint, d.id, d.due, d.history, d.bytes, d.redrives, d.key_source, d.deliver_at,
        d.expires_at, d.key_value, d.address, d.qualifier, d.region, d.trace, d.context, d.tenant, d.durable
      FROM unnest(p_lanes, p_ids) o (lane, id) CROSS JOIN LATERAL (SELECT * FROM sendoff.dead d WHERE d.lane = o.lane AND d.id = o.id LIMIT 1) d;
END $$;

-- Events in the order of the given lanes and of acceptance, after an id of the first lane. place NULL: all, dead letters included.
-- At most p_max events, and at most p_reads_max rows of each lane: a row with place -1 says where a reading stopped for that.
CREATE FUNCTION sendoff.list(p_lanes bigint[], p_after uuid, p_place smallint, p_max int, p_reads_max int)
RETURNS TABLE (lane bigint, id uuid, place smallint, due bigint, history bytea) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_after uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
  v_left int := p_max;
  v_read int;
BEGIN
  FOR i IN 1 .. coalesce(array_length(p_lanes, 1), 0) LOOP
    v_read := 0;
    FOR lane, id, place, due, history IN
      SELECT x.lane, x.id, x.place, x.due, x.history FROM (
        (SELECT e.lane, e.id, coalesce(w.place, 0)::smallint AS place, w.due, w.history FROM sendoff.event e
          LEFT JOIN LATERAL (SELECT w.place, w.due, w.history FROM sendoff.later w WHERE w.lane = e.lane AND w.id = e.id LIMIT 1) w ON true
          WHERE e.lane = p_lanes[i] AND e.id > v_after AND p_place IS DISTINCT FROM 1 AND p_place IS DISTINCT FROM 2 AND p_place IS DISTINCT FROM 3
          ORDER BY e.lane, e.id LIMIT p_reads_max)
        UNION ALL (SELECT w.lane, w.id, w.place, w.due, w.history FROM sendoff.later w
          WHERE w.lane = p_lanes[i] AND w.id > v_after AND p_place IN (1, 2) ORDER BY w.lane, w.id LIMIT p_reads_max)
        UNION ALL (SELECT d.lane, d.id, 3::smallint, d.due, d.history FROM sendoff.dead d
          WHERE d.lane = p_lanes[i] AND d.id > v_after AND (p_place IS NULL OR p_place = 3) ORDER BY d.lane, d.id LIMIT p_reads_max)) x
        ORDER BY x.id LIMIT p_reads_max LOOP
      v_read := v_read + 1;
      IF p_place IS NULL OR place = p_place THEN
        RETURN NEXT;
        v_left := v_left - 1;
        EXIT WHEN v_left <= 0;
      END IF;
    END LOOP;
    EXIT WHEN v_left <= 0;
    IF v_read = p_reads_max THEN
      place := -1; due := NULL; history := NULL;
      RETURN NEXT;
      EXIT;
    END IF;
    v_after := '00000000-0000-0000-0000-000000000000';
  END LOOP;
END $$;

-- Dead letters in the order of the given lanes and of acceptance, after an id of the first lane.
CREATE FUNCTION sendoff.buried(p_lanes bigint[], p_after uuid, p_max int, p_bytes_max bigint, p_payload boolean)
RETURNS TABLE (payload_bytes int, lane bigint, place smallint, id uuid, due bigint, history bytea, bytes int, redrives int, key_source smallint, deliver_at bigint,
  expires_at bigint, key_value text, address text, qualifier text, region text, trace text, context text, tenant text, durable text, payload bytea)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_after uuid := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
  v_left int := p_max;
  v_bytes bigint := p_bytes_max;
BEGIN
  FOR i IN 1 .. coalesce(array_length(p_lanes, 1), 0) LOOP
    FOR payload_bytes, lane, place, id, due, history, bytes, redrives, key_source, deliver_at, expires_at, key_value, address, qualifier, region, trace, context, tenant, durable, payload IN
      SELECT octet_length(d.payload), d.lane, 3::smallint, d.id, d.due, d.history, d.bytes, d.redrives, d.key_source, d.deliver_at, d.expires_at, d.key_value, d.address,
        d.qualifier, d.region, d.trace, d.context, d.tenant, d.durable, CASE WHEN p_payload THEN d.payload END
      FROM sendoff.dead d WHERE d.lane = p_lanes[i] AND d.id > v_after ORDER BY d.lane, d.id LOOP
      RETURN NEXT;
      v_left := v_left - 1;
      v_bytes := v_bytes - CASE WHEN p_payload THEN bytes ELSE 1024 END;
      EXIT WHEN v_left <= 0 OR v_bytes <= 0;
    END LOOP;
    EXIT WHEN v_left <= 0 OR v_bytes <= 0;
    v_after := '00000000-0000-0000-0000-000000000000';
  END LOOP;
END $$;

-- Removes events or dead letters of own lanes, each only if it is in the given place (NULL: in any). Returns what was removed.
CREATE FUNCTION sendoff.remove(p_member bigint, p_lanes bigint[], p_ids uuid[], p_places smallint[]) RETURNS TABLE (lane bigint, id uuid, place smallint, bytes int)
LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
  r record;
BEGIN
  PERFORM sendoff._mine(p_member, 9223372036854775807);
  FOR r IN SELECT o.lane, o.id, o.place FROM unnest(p_lanes, p_ids, p_places) o (lane, id, place) JOIN sendoff.lane l ON l.id = o.lane AND l.owner = p_member LOOP
    lane := r.lane; id := r.id; place := NULL; bytes := NULL;
    SELECT w.place INTO place FROM sendoff.later w WHERE w.lane = r.lane AND w.id = r.id;
    place := coalesce(place, 0);
    IF r.place IS NULL OR r.place = place THEN
      DELETE FROM sendoff.event e WHERE e.lane = r.lane AND e.id = r.id RETURNING e.bytes INTO bytes;
      IF FOUND THEN
        DELETE FROM sendoff.later w WHERE w.lane = r.lane AND w.id = r.id;
        RETURN NEXT;
        CONTINUE;
      END IF;
    END IF;
    IF r.place IS NULL OR r.place = 3 THEN
      place := 3;
      DELETE FROM sendoff.dead d WHERE d.lane = r.lane AND d.id = r.id RETURNING d.bytes INTO bytes;
      IF FOUND THEN
        RETURN NEXT;
      END IF;
    END IF;
  END LOOP;
END $$;

-- Makes a waiting or scheduled event due now.
CREATE FUNCTION sendoff.attempt_now(p_member bigint, p_lane bigint, p_id uuid, p_now bigint, p_history bytea) RETURNS boolean
LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
BEGIN
  PERFORM sendoff._mine(p_member, 9223372036854775807);
  UPDATE sendoff.later w SET due = p_now, history = p_history WHERE w.lane = p_lane AND w.id = p_id AND w.due > p_now
    AND EXISTS (SELECT FROM sendoff.lane l WHERE l.id = p_lane AND l.owner = p_member);
  RETURN FOUND;
END $$;

-- Makes events of dead letters again, under new ids. Returns the old ids of those that were there.
CREATE FUNCTION sendoff.revive(p_member bigint, p_lanes bigint[], p_ids uuid[], p_new_ids uuid[]) RETURNS uuid[]
LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
DECLARE
  v_revived uuid[] := '{}';
  r record;
BEGIN
  PERFORM sendoff._mine(p_member, 9223372036854775807);
  FOR r IN SELECT o.lane, o.id, o.new_id FROM unnest(p_lanes, p_ids, p_new_ids) o (lane, id, new_id) JOIN sendoff.lane l ON l.id = o.lane AND l.owner = p_member LOOP
    WITH d AS (
      DELETE FROM sendoff.dead d WHERE d.lane = r.lane AND d.id = r.id
        RETURNING d.bytes, d.redrives, d.key_source, d.key_value, d.address, d.qualifier, d.region, d.trace, d.context, d.tenant, d.durable, d.payload
    )
    INSERT INTO sendoff.event (lane, id, bytes, redrives, key_source, key_value, address, qualifier, region, trace, context, tenant, durable, payload)
      SELECT r.lane, r.new_id, d.bytes, d.redrives + 1, d.key_source, d.key_value, d.address, d.qualifier, d.region, d.trace, d.context, d.tenant, d.durable, d.payload FROM d;
    IF FOUND THEN
      v_revived := v_revived || r.id;
    END IF;
  END LOOP;
  RETURN v_revived;
END $$;

-- Stores exported dead letters under their own ids. Returns only what was not stored: 1 it is stored already, 3 to 5 as append.
CREATE FUNCTION sendoff.import(p_member bigint, p_room_events bigint, p_room_bytes bigint, p_functions_max int,
  p_functions text[], p_lanes bigint[], p_fn int[], p_id uuid[], p_deliver_at bigint[], p_expires_at bigint[], p_redrives int[],
  p_key_source smallint[], p_key_value text[], p_address text[], p_qualifier text[], p_region text[], p_trace text[], p_context text[],
  p_tenant text[], p_durable text[], p_payload bytea[], p_due bigint[], p_buried_at bigint[], p_reason smallint[], p_history bytea[])
RETURNS TABLE (ord int, verdict smallint) LANGUAGE plpgsql SET lock_timeout = '2s' AS $$
#variable_conflict use_column
DECLARE
  v_bytes int[];
  v_verdict smallint[];
BEGIN
  PERFORM sendoff._read_committed();
  v_bytes := ARRAY(SELECT 128 + octet_length(o.payload) + octet_length(o.value) + coalesce(octet_length(o.address), 0)
      + coalesce(octet_length(o.qualifier), 0) + coalesce(octet_length(o.region), 0) + coalesce(octet_length(o.trace), 0)
      + coalesce(octet_length(o.context), 0) + coalesce(octet_length(o.tenant), 0) + coalesce(octet_length(o.durable), 0)
    FROM unnest(p_payload, p_key_value, p_address, p_qualifier, p_region, p_trace, p_context, p_tenant, p_durable)
      o (payload, value, address, qualifier, region, trace, context, tenant, durable));
  v_verdict := ARRAY(SELECT CASE WHEN EXISTS (SELECT FROM sendoff.event e WHERE e.lane = p_lanes[o.fn] AND e.id = o.id)
      OR EXISTS (SELECT FROM sendoff.dead d WHERE d.lane = p_lanes[o.fn] AND d.id = o.id) THEN 1::smallint ELSE 0::smallint END FROM unnest(p_fn, p_id) o (fn, id));
  v_verdict := sendoff._refuse(p_room_events, p_room_bytes, p_functions_max, p_lanes, p_fn, v_bytes, v_verdict);
  PERFORM sendoff._make_lanes(p_functions, p_lanes, false);
  UPDATE sendoff.lane l SET retired = false WHERE l.id = ANY (p_lanes) AND l.retired;
  INSERT INTO sendoff.dead (lane, deliver_at, expires_at, id, due, buried_at, bytes, redrives, key_source, reason, key_value, address, qualifier, region,
      trace, context, tenant, durable, history, payload)
    SELECT p_lanes[o.fn], o.deliver_at, o.expires_at, o.id, o.due, o.buried_at, v_bytes[o.ord], o.redrives, o.source, o.reason, o.value, o.address, o.qualifier,
        o.region, o.trace, o.context, o.tenant, o.durable, o.history, o.payload
      FROM unnest(p_fn, p_deliver_at, p_expires_at, p_id, p_due, p_buried_at, p_redrives, p_key_source, p_reason, p_key_value, p_address, p_qualifier, p_region,
        p_trace, p_context, p_tenant, p_durable, p_history, p_payload) WITH ORDINALITY
        o (fn, deliver_at, expires_at, id, due, buried_at, redrives, source, reason, value, address, qualifier, region, trace, context, tenant, durable, history, payload, ord)
      WHERE v_verdict[o.ord] = 0
    ON CONFLICT (lane, id) DO NOTHING;
  -- Another owner, or whoever will have the lane, learns of it.
  INSERT INTO sendoff.arrival (xid, lane, n, n_later, bytes, bytes_later, first, last)
    SELECT pg_current_xact_id()::text::bigint, p_lanes[o.fn], 0, 0, 0, 0, min(o.id::text)::uuid, max(o.id::text)::uuid
      FROM unnest(p_fn, p_id) WITH ORDINALITY o (fn, id, ord)
      WHERE v_verdict[o.ord] = 0 AND NOT EXISTS (SELECT FROM sendoff.lane l WHERE l.id = p_lanes[o.fn] AND l.owner = p_member) GROUP BY o.fn;
  RETURN QUERY SELECT o.ord::int, o.verdict FROM unnest(v_verdict) WITH ORDINALITY o (verdict, ord) WHERE o.verdict <> 0;
END $$;

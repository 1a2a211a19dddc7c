-- Accepting events from daemons.

-- Makes the lanes that do not exist yet (NULL: none), in the order of their ids, so that two batches cannot wait for each other. Returns the
-- lanes that could not be made because an open transaction is making them (only if p_careful; otherwise 55P03).
CREATE FUNCTION sendoff._make_lanes(p_functions text[], p_lanes bigint[], p_careful boolean) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
  v_busy bigint[] := '{}';
  r record;
BEGIN
  FOR r IN SELECT DISTINCT o.lane, o.function FROM unnest(p_functions, p_lanes) o (function, lane)
    WHERE o.lane IS NOT NULL AND NOT EXISTS (SELECT FROM sendoff.lane l WHERE l.id = o.lane) ORDER BY o.lane LOOP
    IF p_careful THEN
      BEGIN
        INSERT INTO sendoff.lane (id, function, tag) VALUES (r.lane, r.function, sendoff.lane_tag(r.function)) ON CONFLICT DO NOTHING;
      EXCEPTION WHEN lock_not_available THEN
        v_busy := v_busy || r.lane;
      END;
    ELSE
      INSERT INTO sendoff.lane (id, function, tag) VALUES (r.lane, r.function, sendoff.lane_tag(r.function)) ON CONFLICT DO NOTHING;
    END IF;
  END LOOP;
  RETURN v_busy;
END $$;

-- Remembers the keys of these events of a batch, one by one. Sets the verdict of those that are known by now (1 or 2), and in
-- careful mode of those that an open transaction holds (6).
CREATE FUNCTION sendoff._put_each(p_ords int[], p_gen smallint, p_digest uuid[], p_id uuid[], p_print uuid[], p_until bigint, p_now bigint,
  p_careful boolean, INOUT p_verdict smallint[], INOUT p_first uuid[]) LANGUAGE plpgsql AS $$
DECLARE
  v_ord int;
  v record;
BEGIN
  FOREACH v_ord IN ARRAY p_ords LOOP
    IF p_careful THEN
      BEGIN
        v := sendoff._put(p_gen, p_digest[v_ord], p_id[v_ord], p_print[v_ord], p_until, p_now);
      EXCEPTION WHEN lock_not_available THEN
        p_verdict[v_ord] := 6;
        CONTINUE;
      END;
    ELSE
      v := sendoff._put(p_gen, p_digest[v_ord], p_id[v_ord], p_print[v_ord], p_until, p_now);
    END IF;
    p_verdict[v_ord] := v.verdict;
    p_first[v_ord] := v.first;
  END LOOP;
END $$;

-- Sets the verdict of events for which there is no room: 3 bytes, 4 events, 5 functions. In the order of the batch.
CREATE FUNCTION sendoff._refuse(p_room_events bigint, p_room_bytes bigint, p_functions_max int, p_lanes bigint[], p_fn int[], p_bytes int[],
  INOUT p_verdict smallint[]) LANGUAGE plpgsql AS $$
DECLARE
  v_events bigint := p_room_events;
  v_bytes bigint := p_room_bytes;
  v_lane bigint;
  v_live int;
  v_new bigint[] := ARRAY(SELECT o.lane FROM unnest(p_lanes) o (lane) WHERE NOT EXISTS (SELECT FROM sendoff.lane l WHERE l.id = o.lane AND NOT l.retired));
BEGIN
  IF v_new <> '{}' THEN
    v_live := (SELECT count(*) FROM sendoff.lane l WHERE NOT l.retired);
  END IF;
  FOR i IN 1 .. array_length(p_fn, 1) LOOP
    CONTINUE WHEN p_verdict[i] <> 0;
    v_lane := p_lanes[p_fn[i]];
    IF p_bytes[i] > v_bytes THEN
      p_verdict[i] := 3;
    ELSIF v_events < 1 THEN
      p_verdict[i] := 4;
    ELSIF v_lane = ANY (v_new) AND v_live >= p_functions_max THEN
      p_verdict[i] := 5;
    ELSE
      IF v_lane = ANY (v_new) THEN
        v_live := v_live + 1;
        v_new := array_remove(v_new, v_lane);
      END IF;
      v_events := v_events - 1;
      v_bytes := v_bytes - p_bytes[i];
    END IF;
  END LOOP;
END $$;

-- Stores a batch. Returns only what was not stored: ord (from 1) and 1 repeat, 2 the key is known with another payload, 3 no room
-- for its bytes, 4 no room for its events, 5 too many functions, 6 an open transaction holds its key or its function's row.
--
-- Once the call has returned, all of it is as durable as a commit is on this server, repeats included.
-- The digests of one call are distinct within a family. If it fails with 55P03, nothing is stored: call it again with p_careful,
-- which asks key by key for at most 10 ms each. p_member tells who asks; nothing depends on it. So an application with an open transaction delays only events with its key.
CREATE FUNCTION sendoff.append(p_member bigint, p_careful boolean, p_room_events bigint, p_room_bytes bigint, p_functions_max int,
  p_functions text[], p_lanes bigint[], p_fn int[], p_id uuid[], p_deliver_at bigint[], p_expires_at bigint[], p_redrives int[],
  p_key_source smallint[], p_key_value text[], p_address text[], p_qualifier text[], p_region text[], p_trace text[], p_context text[],
  p_tenant text[], p_durable text[], p_payload bytea[], p_family smallint[], p_digest uuid[], p_print uuid[])
RETURNS TABLE (ord int, verdict smallint, first uuid) LANGUAGE plpgsql SET lock_timeout = '250ms' AS $$
#variable_conflict use_column
DECLARE
  c sendoff.control;
  v_count int := coalesce(array_length(p_id, 1), 0);
  v_now bigint;
  v_until bigint;
  v_bytes int[];
  v_verdict smallint[] := array_fill(0::smallint, ARRAY[v_count]);
  v_first uuid[] := array_fill(NULL::uuid, ARRAY[v_count]);
  v_over boolean := false;  -- A key of this batch is stored, and its window is over.
  v_current smallint;
  v_previous smallint;
  v_ords int[];
  v_digests uuid[];
  v_lanes bigint[];
  v_busy bigint[];
  v_stored int;
  r record;
  i int;
BEGIN
  PERFORM sendoff._read_committed();
  c := sendoff._gate();
  v_now := sendoff._clock(c.test_clock);
  v_bytes := ARRAY(SELECT 128 + octet_length(o.payload) + octet_length(o.value) + coalesce(octet_length(o.address), 0)
      + coalesce(octet_length(o.qualifier), 0) + coalesce(octet_length(o.region), 0) + coalesce(octet_length(o.trace), 0)
      + coalesce(octet_length(o.context), 0) + coalesce(octet_length(o.tenant), 0) + coalesce(octet_length(o.durable), 0)
    FROM unnest(p_payload, p_key_value, p_address, p_qualifier, p_region, p_trace, p_context, p_tenant, p_durable)
      o (payload, value, address, qualifier, region, trace, context, tenant, durable));

  -- What is known already.
  FOR v_sdk IN 0 .. 1 LOOP
    SELECT array_agg(o.ord ORDER BY o.digest), array_agg(o.digest ORDER BY o.digest) INTO v_ords, v_digests
      FROM unnest(p_family, p_digest) WITH ORDINALITY o (family, digest, ord) WHERE (o.family = 1) = (v_sdk = 1);
    CONTINUE WHEN v_ords IS NULL;
    v_current := CASE v_sdk WHEN 1 THEN c.sdk_current ELSE c.given_current END;
    v_previous := CASE v_sdk WHEN 1 THEN c.sdk_previous ELSE c.given_previous END;
    FOR r IN SELECT k.digest, k.first, k.print, k.until FROM sendoff._look(v_current, v_digests) k
      UNION ALL SELECT k.digest, k.first, k.print, k.until FROM sendoff._look(v_previous, v_digests) k LOOP
      i := v_ords[array_position(v_digests, r.digest)];
      -- The current generation counts before the previous one.
      CONTINUE WHEN v_first[i] IS NOT NULL;
      v_first[i] := r.first;
      IF r.until > v_now OR sendoff._stored(r.first) THEN
        v_verdict[i] := CASE WHEN r.print = p_print[i] THEN 1 ELSE 2 END;
      ELSE
        v_over := true;
      END IF;
    END LOOP;
  END LOOP;

  v_verdict := sendoff._refuse(p_room_events, p_room_bytes, p_functions_max, p_lanes, p_fn, v_bytes, v_verdict);
  IF p_careful THEN
    PERFORM set_config('lock_timeout', '10ms', true);
  END IF;
  -- Only lanes that get an event.
  v_lanes := p_lanes;
  IF 0 <> ANY (v_verdict) THEN
    v_lanes := ARRAY(SELECT CASE WHEN EXISTS (SELECT FROM unnest(v_verdict, p_fn) x (verdict, fn) WHERE x.verdict = 0 AND x.fn = o.ord) THEN o.lane END
      FROM unnest(p_lanes) WITH ORDINALITY o (lane, ord));
  END IF;
  v_busy := sendoff._make_lanes(p_functions, v_lanes, p_careful);
  IF v_busy <> '{}' THEN
    v_verdict := ARRAY(SELECT CASE WHEN v = 0 AND p_lanes[f] = ANY (v_busy) THEN 6::smallint ELSE v END FROM unnest(v_verdict, p_fn) o (v, f));
  END IF;
  UPDATE sendoff.lane l SET retired = false WHERE l.id = ANY (v_lanes) AND l.retired;

  -- Remember the others, in the order of the digests, so that two batches cannot wait for each other. Plain insertions cost less
  -- than ON CONFLICT; equal keys from two sides at the same time are rare.
  FOR v_sdk IN 0 .. 1 LOOP
    SELECT array_agg(o.ord ORDER BY o.digest) INTO v_ords FROM unnest(p_family, p_digest) WITH ORDINALITY o (family, digest, ord)
      WHERE (o.family = 1) = (v_sdk = 1) AND v_verdict[o.ord] = 0;
    CONTINUE WHEN v_ords IS NULL;
    v_current := CASE v_sdk WHEN 1 THEN c.sdk_current ELSE c.given_current END;
    v_until := v_now + CASE v_sdk WHEN 1 THEN c.sdk_ms ELSE c.given_ms END;
    IF NOT v_over AND NOT p_careful THEN
      BEGIN
        INSERT INTO sendoff.key (gen, digest, first, print, until)
          SELECT v_current, p_digest[o.ord], p_id[o.ord], p_print[o.ord], v_until FROM unnest(v_ords) o (ord);
        CONTINUE;
      EXCEPTION WHEN unique_violation THEN
        NULL;
      END;
    END IF;
    SELECT p.p_verdict, p.p_first INTO v_verdict, v_first
      FROM sendoff._put_each(v_ords, v_current, p_digest, p_id, p_print, v_until, v_now, p_careful, v_verdict, v_first) p;
  END LOOP;

  WITH e AS (
    INSERT INTO sendoff.event (lane, deliver_at, expires_at, id, bytes, redrives, key_source, key_value, address, qualifier, region, trace, context,
        tenant, durable, payload)
      SELECT p_lanes[o.fn], o.deliver_at, o.expires_at, o.id, v_bytes[o.ord], o.redrives, o.source, o.value, o.address, o.qualifier, o.region, o.trace,
          o.context, o.tenant, o.durable, o.payload
        FROM unnest(p_fn, p_deliver_at, p_expires_at, p_id, p_redrives, p_key_source, p_key_value, p_address, p_qualifier, p_region, p_trace, p_context,
          p_tenant, p_durable, p_payload) WITH ORDINALITY
          o (fn, deliver_at, expires_at, id, redrives, source, value, address, qualifier, region, trace, context, tenant, durable, payload, ord)
        WHERE v_verdict[o.ord] = 0
      RETURNING lane, id, deliver_at, expires_at, bytes
  ), l AS (
    INSERT INTO sendoff.later (lane, due, id, place) SELECT e.lane, e.deliver_at, e.id, 2 FROM e WHERE e.deliver_at > v_now
  )
  INSERT INTO sendoff.arrival (xid, lane, n, n_later, bytes, bytes_later, due, expiry, first, last)
    SELECT pg_current_xact_id()::text::bigint, s.lane, s.n, s.n_later, s.bytes, s.bytes_later, s.due, s.expiry, s.ids[1], s.ids[array_upper(s.ids, 1)]
    FROM (SELECT e.lane, count(*) FILTER (WHERE (e.deliver_at > v_now) IS NOT TRUE) AS n, count(*) FILTER (WHERE e.deliver_at > v_now) AS n_later,
        coalesce(sum(e.bytes) FILTER (WHERE (e.deliver_at > v_now) IS NOT TRUE), 0) AS bytes, coalesce(sum(e.bytes) FILTER (WHERE e.deliver_at > v_now), 0) AS bytes_later,
        min(e.deliver_at) FILTER (WHERE e.deliver_at > v_now) AS due, min(e.expires_at) AS expiry, array_agg(e.id ORDER BY e.id) AS ids
      FROM e GROUP BY e.lane) s;
  GET DIAGNOSTICS v_stored = ROW_COUNT;

  IF v_stored = 0 THEN
    PERFORM sendoff._write_something();
  END IF;
  RETURN QUERY SELECT o.ord::int, o.verdict, CASE WHEN o.verdict <= 2 THEN o.first END
    FROM unnest(v_verdict, v_first) WITH ORDINALITY o (verdict, first, ord) WHERE o.verdict <> 0;
END $$;

-- A repeat is answered as accepted, but the transaction that stored the first event may be visible before it is durable: it used
-- synchronous_commit = off, or its wait for a standby was cut off. A commit that has written anything waits for all before it,
-- here and on the standby. A transaction that has an id but wrote nothing does not wait.
CREATE FUNCTION sendoff._write_something() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM pg_logical_emit_message(true, 'sendoff', '');
END $$;

-- Events and keys that come from other stores: a hand-off, or the import of a local store (src/outbox/handoff.rs has the rules).

-- Whether a lane has an event, in any state.
CREATE FUNCTION sendoff._has(p_lane bigint, p_id uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  RETURN EXISTS (SELECT FROM sendoff.event e WHERE e.lane = p_lane AND e.id = p_id)
    OR EXISTS (SELECT FROM sendoff.dead d WHERE d.lane = p_lane AND d.id = p_id);
END $$;

-- What an event that is about to be adopted may do with its key. 0: nothing, it has none, or the key is another event's; 1: claim it;
-- 2: the event repeats the event first, which is stored here. A redriven event and a dead letter share their key with an earlier
-- event on purpose, so they repeat nothing.
CREATE FUNCTION sendoff._claim(c sendoff.control, p_lane bigint, p_id uuid, p_family smallint, p_digest uuid, p_print uuid, p_redrives int, p_place smallint, p_now bigint,
  OUT claim int, OUT first uuid) LANGUAGE plpgsql AS $$
DECLARE
  v_known record;
BEGIN
  claim := 0;
  IF p_digest IS NULL THEN
    RETURN;
  END IF;
  v_known := sendoff._known(c, p_family = 1, p_digest);
  IF v_known.first IS NULL OR v_known.until <= p_now AND NOT sendoff._stored(v_known.first) THEN
    claim := 1;
  ELSIF v_known.first <> p_id AND v_known.print = p_print AND p_redrives = 0 AND p_place <> 3 AND sendoff._has(p_lane, v_known.first) THEN
    claim := 2;
    first := v_known.first;
  END IF;
END $$;

-- Stores events of another store under their own ids, each in its place (0 ready, 1 waiting, 2 scheduled, 3 dead letter). Returns only
-- what was not stored: 1 its id is or was here, 2 it repeats the event first, 3 to 5 as append. Repeating a call changes nothing: an
-- adoption is remembered like a key (p_adopted), as long as the event is stored, and for a window.
CREATE FUNCTION sendoff.adopt(p_room_events bigint, p_room_bytes bigint, p_functions_max int,
  p_functions text[], p_lanes bigint[], p_fn int[], p_id uuid[], p_deliver_at bigint[], p_expires_at bigint[], p_redrives int[],
  p_key_source smallint[], p_key_value text[], p_address text[], p_qualifier text[], p_region text[], p_trace text[], p_context text[],
  p_tenant text[], p_durable text[], p_payload bytea[], p_family smallint[], p_digest uuid[], p_print uuid[], p_adopted uuid[],
  p_place smallint[], p_due bigint[], p_buried_at bigint[], p_reason smallint[], p_history bytea[], p_paused boolean[])
RETURNS TABLE (ord int, verdict smallint, first uuid) LANGUAGE plpgsql SET lock_timeout = '250ms' AS $$
#variable_conflict use_column
DECLARE
  c sendoff.control;
  v_now bigint;
  v_bytes int;
  v_events bigint := p_room_events;
  v_room bigint := p_room_bytes;
  v_room_for smallint[];
  v_lane bigint;
  v_window bigint;
  v_known record;
  v_claim record;
  v_verdicts smallint[] := array_fill(0::smallint, ARRAY[coalesce(cardinality(p_id), 0)]);
  r record;
BEGIN
  PERFORM sendoff._read_committed();
  c := sendoff._gate();
  v_now := sendoff._clock(c.test_clock);
  -- Which functions are too many, as if each event were the only one.
  v_room_for := sendoff._refuse(9223372036854775807, 9223372036854775807, p_functions_max, p_lanes, p_fn, array_fill(0, ARRAY[cardinality(p_id)]), v_verdicts);
  FOR r IN SELECT o.* FROM unnest(p_fn, p_id, p_deliver_at, p_expires_at, p_redrives, p_key_source, p_key_value, p_address, p_qualifier, p_region, p_trace,
      p_context, p_tenant, p_durable, p_payload, p_family, p_digest, p_print, p_adopted, p_place, p_due, p_buried_at, p_reason, p_history, p_paused)
      WITH ORDINALITY
      o (fn, id, deliver_at, expires_at, redrives, source, value, address, qualifier, region, trace, context, tenant, durable, payload, family, digest, print,
        adopted, place, due, buried_at, reason, history, paused, ord) LOOP
    ord := r.ord; first := NULL;
    v_lane := p_lanes[r.fn];
    v_known := sendoff._known(c, false, r.adopted);
    IF v_known.first IS NOT NULL AND (v_known.until > v_now OR sendoff._stored(v_known.first)) OR sendoff._has(v_lane, r.id) THEN
      verdict := 1;
      RETURN NEXT;
      CONTINUE;
    END IF;
    v_claim := sendoff._claim(c, v_lane, r.id, r.family, r.digest, r.print, r.redrives, r.place, v_now);
    IF v_claim.claim = 2 THEN
      verdict := 2; first := v_claim.first;
      RETURN NEXT;
      CONTINUE;
    END IF;
    v_bytes := 128 + octet_length(r.payload) + octet_length(r.value) + coalesce(octet_length(r.address), 0) + coalesce(octet_length(r.qualifier), 0)
      + coalesce(octet_length(r.region), 0) + coalesce(octet_length(r.trace), 0) + coalesce(octet_length(r.context), 0)
      + coalesce(octet_length(r.tenant), 0) + coalesce(octet_length(r.durable), 0);
    verdict := CASE WHEN v_bytes > v_room THEN 3 WHEN v_events < 1 THEN 4 ELSE v_room_for[r.ord] END;
    IF verdict <> 0 THEN
      RETURN NEXT;
      CONTINUE;
    END IF;
    v_events := v_events - 1;
    v_room := v_room - v_bytes;
    PERFORM sendoff._make_lanes(ARRAY[p_functions[r.fn]], ARRAY[v_lane], false);
    UPDATE sendoff.lane l SET retired = false WHERE l.id = v_lane AND l.retired;
    -- Paused where it comes from: it must not be attempted here before an operator resumes its function.
    IF r.paused AND r.place <> 3 THEN
      UPDATE sendoff.lane l SET paused = true WHERE l.id = v_lane AND NOT l.paused;
    END IF;
    IF r.place = 3 THEN
      INSERT INTO sendoff.dead (lane, deliver_at, expires_at, id, due, buried_at, bytes, redrives, key_source, reason, key_value, address, qualifier, region,
          trace, context, tenant, durable, history, payload)
        VALUES (v_lane, r.deliver_at, r.expires_at, r.id, r.due, r.buried_at, v_bytes, r.redrives, r.source, r.reason, r.value, r.address, r.qualifier, r.region,
          r.trace, r.context, r.tenant, r.durable, r.history, r.payload);
    ELSE
      INSERT INTO sendoff.event (lane, deliver_at, expires_at, id, bytes, redrives, key_source, key_value, address, qualifier, region, trace, context, tenant,
          durable, payload)
        VALUES (v_lane, r.deliver_at, r.expires_at, r.id, v_bytes, r.redrives, r.source, r.value, r.address, r.qualifier, r.region, r.trace, r.context, r.tenant,
          r.durable, r.payload);
      IF r.place > 0 THEN
        INSERT INTO sendoff.later (lane, due, id, place, history) VALUES (v_lane, r.due, r.id, r.place, r.history);
      END IF;
    END IF;
    PERFORM sendoff._set_key(c.given_current, r.adopted, r.id, r.print, v_now + c.given_ms);
    IF v_claim.claim = 1 THEN
      -- As if this store had accepted it: the window counts from its acceptance. If somebody else is faster, the key is theirs.
      v_window := CASE WHEN r.family = 1 THEN c.sdk_ms ELSE c.given_ms END;
      PERFORM sendoff._put(CASE WHEN r.family = 1 THEN c.sdk_current ELSE c.given_current END, r.digest, r.id, r.print,
        greatest(v_now, least(v_now, sendoff._accepted(r.id)) + v_window), v_now);
    END IF;
    -- Ready and scheduled events are told with their counts. For the others the row counts nothing, and the owner reads the lane anew.
    INSERT INTO sendoff.arrival (xid, lane, n, n_later, bytes, bytes_later, due, expiry, first, last)
      VALUES (pg_current_xact_id()::text::bigint, v_lane, CASE r.place WHEN 0 THEN 1 ELSE 0 END, CASE r.place WHEN 2 THEN 1 ELSE 0 END,
        CASE r.place WHEN 0 THEN v_bytes ELSE 0 END, CASE r.place WHEN 2 THEN v_bytes ELSE 0 END,
        CASE r.place WHEN 2 THEN r.due END, CASE WHEN r.place IN (0, 2) THEN r.expires_at END, r.id, r.id);
  END LOOP;
  PERFORM sendoff._write_something();
END $$;

-- Remembers keys of another store for what is left of their windows, but no longer than for a window of this one. Skips those that are
-- known. Returns how many are new.
CREATE FUNCTION sendoff.learn(p_families smallint[], p_digests uuid[], p_firsts uuid[], p_prints uuid[], p_left bigint[]) RETURNS bigint LANGUAGE plpgsql
SET lock_timeout = '250ms' AS $$
DECLARE
  c sendoff.control;
  v_now bigint;
  v_new bigint := 0;
  v_known record;
  r record;
BEGIN
  PERFORM sendoff._read_committed();
  c := sendoff._gate();
  v_now := sendoff._clock(c.test_clock);
  FOR r IN SELECT o.family = 1 AS sdk, o.digest, o.first, o.print, o.rest FROM unnest(p_families, p_digests, p_firsts, p_prints, p_left) o (family, digest, first, print, rest)
    ORDER BY o.digest LOOP
    v_known := sendoff._known(c, r.sdk, r.digest);
    CONTINUE WHEN v_known.first IS NOT NULL AND (v_known.until > v_now OR sendoff._stored(v_known.first));
    PERFORM sendoff._set_key(CASE WHEN r.sdk THEN c.sdk_current ELSE c.given_current END, r.digest, r.first, r.print,
      v_now + least(r.rest, CASE WHEN r.sdk THEN c.sdk_ms ELSE c.given_ms END));
    v_new := v_new + 1;
  END LOOP;
  PERFORM sendoff._write_something();
  RETURN v_new;
END $$;

SELECT sendoff._settle_functions();
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA sendoff TO sendoff_daemon;
REVOKE EXECUTE ON FUNCTION sendoff._settle_functions() FROM sendoff_daemon;

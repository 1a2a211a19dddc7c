-- Accepting events in an application's own transaction. If it commits, they are accepted; if it rolls back, they never were.
--
-- These functions run with the rights of their owner. So search_path names pg_temp, last: else it is searched first for types,
-- and a caller's own type would run the caller's code with the owner's rights.

-- Refuses an argument that no door of sendoff takes.
CREATE FUNCTION sendoff._check(p_payload text, p_key text, p_trace text, p_tenant text, p_context text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  v_is_object boolean := false;
BEGIN
  IF p_payload IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = '22004', MESSAGE = 'sendoff: payload is NULL', HINT = 'Pass JSON as text or jsonb. For an event without a payload, pass an empty text.';
  ELSIF octet_length(p_payload) > 1048576 THEN
    RAISE EXCEPTION USING ERRCODE = '54000', MESSAGE = format('sendoff: the payload has %s bytes; Lambda takes at most 1048576', octet_length(p_payload)),
      HINT = 'Store it elsewhere, for example in S3, and send a reference to it.';
  ELSIF p_payload <> '' THEN
    BEGIN
      PERFORM p_payload::pg_catalog.json;
    EXCEPTION WHEN invalid_text_representation THEN
      -- Without the payload: it belongs to the caller, and errors are logged.
      RAISE EXCEPTION USING ERRCODE = '22P02', MESSAGE = 'sendoff: the payload is not JSON', HINT = 'Pass valid JSON, or an empty text for no payload.';
    END;
  END IF;
  IF length(p_key) NOT BETWEEN 1 AND 255 OR p_key ~ '[\u0001-\u001f\u007f-\u009f]' THEN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'sendoff: key must have 1 to 255 characters, none of them a control character';
  ELSIF p_trace !~ '^[\t -~]*$' THEN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'sendoff: trace_header must be printable ASCII';
  ELSIF length(p_tenant) NOT BETWEEN 1 AND 256 OR p_tenant !~ '^[a-zA-Z0-9._:/=+@ -]+$' THEN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'sendoff: tenant_id must have 1 to 256 characters of a-z A-Z 0-9 . _ : / = + @ - and space';
  END IF;
  IF p_context IS NOT NULL AND p_context <> '' THEN
    IF length(p_context) <= 3583 AND p_context ~ '^[A-Za-z0-9+/]+={0,2}$' THEN
      BEGIN
        v_is_object := pg_catalog.json_typeof(convert_from(decode(rpad(rtrim(p_context, '='), (length(rtrim(p_context, '=')) + 3) / 4 * 4, '='), 'base64'), 'UTF8')::pg_catalog.json) = 'object';
      EXCEPTION WHEN data_exception THEN
        NULL;
      END;
    END IF;
    IF v_is_object IS NOT TRUE THEN
      RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'sendoff: client_context must be a JSON object in base64, at most 3583 bytes';
    END IF;
  END IF;
END $$;

-- Milliseconds of a time that is at most a year ahead.
CREATE FUNCTION sendoff._millis(p_name text, p_at timestamptz, p_now bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  IF p_at > to_timestamp(p_now / 1000.0) + interval '366 days' AND p_name = 'deliver_at' OR NOT isfinite(p_at) OR p_at >= '10000-01-01 00:00:00+00' THEN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('sendoff: %s is too far ahead', p_name), HINT = 'deliver_at may be at most 366 days ahead.';
  END IF;
  RETURN floor(extract(epoch FROM p_at) * 1000)::bigint;
END $$;

-- The lane of a function that a caller names. region is set if the name contains one.
CREATE FUNCTION sendoff._lane_of(p_function text, p_qualifier text, OUT lane bigint, OUT function text, OUT tag int, OUT region text) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  v_name record;
BEGIN
  IF p_qualifier IS NULL AND position('/' IN p_function) = 0 THEN
    -- Usually the text is the canonical name.
    SELECT l.id, l.function, l.tag INTO lane, function, tag FROM sendoff.lane l WHERE l.function = p_function;
    IF FOUND THEN
      RETURN;
    END IF;
  END IF;
  v_name := sendoff._canonical(p_function, p_qualifier);
  IF v_name.function IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'sendoff: this is not the name of a Lambda function, or its qualifier does not fit',
      DETAIL = left(p_function, 256), HINT = 'Pass a name, name:alias, or an ARN, as for Lambda''s Invoke.';
  END IF;
  SELECT l.id, l.function, l.tag INTO lane, function, tag FROM sendoff.lane l WHERE l.function = v_name.function;
  IF NOT FOUND THEN
    RAISE EXCEPTION USING ERRCODE = '42704', MESSAGE = format('sendoff: the function %s is not known here', v_name.function),
      HINT = format('Run this once, for example in a migration: SELECT sendoff.add_function(%L)', p_function);
  END IF;
  region := v_name.region;
END $$;

-- Remembers a key for an event that is about to be stored. Returns 0; or 1 if it is known with the same payload, 2 with another,
-- and for which event.
CREATE FUNCTION sendoff._claim_key(c sendoff.control, p_digest uuid, p_id uuid, p_print uuid, p_now bigint, OUT verdict smallint, OUT first uuid)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  -- Its snapshot may be older than the present generation. Then it looks into all of them and inserts into all of them.
  v_old boolean := current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted');
  v_gens smallint[] := CASE WHEN v_old THEN ARRAY[0, 1, 2] ELSE ARRAY[c.given_current, c.given_previous] END;
  v_gen smallint;
  r record;
BEGIN
  FOREACH v_gen IN ARRAY v_gens LOOP
    SELECT k.first, k.print, k.until INTO r FROM sendoff._look(v_gen, ARRAY[p_digest]) k;
    IF r.first IS NOT NULL AND (r.until > p_now OR sendoff._stored(r.first)) THEN
      verdict := CASE WHEN r.print = p_print THEN 1 ELSE 2 END;
      first := r.first;
      RETURN;
    END IF;
  END LOOP;
  verdict := 0;
  IF c.full_of IS NOT NULL THEN
    RETURN;
  END IF;
  FOREACH v_gen IN ARRAY CASE WHEN v_old THEN v_gens ELSE ARRAY[c.given_current] END LOOP
    SELECT p.verdict, p.first INTO verdict, first FROM sendoff._put(v_gen, p_digest, p_id, p_print, p_now + c.given_ms, p_now) p;
    EXIT WHEN verdict <> 0;
  END LOOP;
END $$;

-- Stores one event, and returns its id, or the id of the first event with its key.
CREATE FUNCTION sendoff._enqueue(p_function text, p_payload text, p_key text, p_deliver_at timestamptz, p_expires_at timestamptz, p_trace text,
  p_qualifier text, p_tenant text, p_context text) RETURNS uuid LANGUAGE plpgsql AS $$
DECLARE
  c sendoff.control;
  l record;
  v_now bigint;
  v_deliver bigint;
  v_expires bigint;
  v_later boolean;
  v_id uuid;
  v_payload bytea;
  v_key record;
  v_value text := p_key;
  v_address text;
  v_bytes int;
BEGIN
  PERFORM sendoff._check(p_payload, p_key, p_trace, p_tenant, p_context);
  l := sendoff._lane_of(p_function, p_qualifier);
  v_address := nullif(p_function, l.function);
  IF p_key IS NULL THEN
    SELECT * INTO c FROM sendoff.control;
    v_value := gen_random_uuid()::text;
  ELSE
    c := sendoff._gate();
  END IF;
  v_now := sendoff._clock(c.test_clock);
  v_deliver := sendoff._millis('deliver_at', p_deliver_at, v_now);
  v_expires := sendoff._millis('expires_at', p_expires_at, v_now);
  v_later := coalesce(v_deliver > v_now, false);
  IF v_expires <= greatest(v_deliver, v_now) THEN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'sendoff: expires_at is not after now and deliver_at';
  END IF;
  v_payload := convert_to(p_payload, 'UTF8');
  v_id := sendoff._mint(v_now, l.tag);

  IF p_key IS NOT NULL THEN
    v_key := sendoff._claim_key(c, sendoff._digest(l.function, p_tenant, p_key), v_id, sendoff._sha(v_payload), v_now);
    IF v_key.verdict = 1 THEN
      PERFORM sendoff._write_something();
      RETURN v_key.first;
    ELSIF v_key.verdict = 2 THEN
      RAISE EXCEPTION USING ERRCODE = '23505', MESSAGE = 'sendoff: this key was used for an event with another payload',
        DETAIL = format('The first event with it is %s.', v_key.first), HINT = 'Use one key for one event.';
    END IF;
  END IF;
  IF c.full_of IS NOT NULL THEN
    RAISE EXCEPTION USING ERRCODE = '53400', MESSAGE = format('sendoff: the outbox takes no events now: %s', c.full_of);
  END IF;
  v_bytes := 128 + octet_length(v_payload) + octet_length(v_value) + coalesce(octet_length(v_address), 0) + coalesce(octet_length(p_qualifier), 0)
    + coalesce(octet_length(l.region), 0) + coalesce(octet_length(p_trace), 0) + coalesce(octet_length(p_context), 0) + coalesce(octet_length(p_tenant), 0);
  INSERT INTO sendoff.event (lane, deliver_at, expires_at, id, bytes, redrives, key_source, key_value, address, qualifier, region, trace, context, tenant, payload)
    VALUES (l.lane, CASE WHEN v_later THEN v_deliver END, v_expires, v_id, v_bytes, 0, CASE WHEN p_key IS NULL THEN 7 ELSE 2 END, v_value, v_address, p_qualifier,
      l.region, p_trace, p_context, p_tenant, v_payload);
  IF v_later THEN
    INSERT INTO sendoff.later (lane, due, id, place) VALUES (l.lane, v_deliver, v_id, 2);
  END IF;
  INSERT INTO sendoff.arrival (xid, lane, n, n_later, bytes, bytes_later, due, expiry, first, last)
    VALUES (pg_current_xact_id()::text::bigint, l.lane, CASE WHEN v_later THEN 0 ELSE 1 END, CASE WHEN v_later THEN 1 ELSE 0 END,
      CASE WHEN v_later THEN 0 ELSE v_bytes END, CASE WHEN v_later THEN v_bytes ELSE 0 END, CASE WHEN v_later THEN v_deliver END, v_expires, v_id, v_id);
  RETURN v_id;
END $$;

-- The trace header of the caller's session, if the argument is not given.
CREATE FUNCTION sendoff._trace(p_given text) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
  RETURN coalesce(p_given, nullif(current_setting('sendoff.trace_header', true), ''));
END $$;

CREATE FUNCTION sendoff.enqueue(function text, payload text, key text DEFAULT NULL, deliver_at timestamptz DEFAULT NULL, expires_at timestamptz DEFAULT NULL,
  trace_header text DEFAULT NULL, qualifier text DEFAULT NULL, tenant_id text DEFAULT NULL, client_context text DEFAULT NULL)
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN sendoff._enqueue(function, payload, key, deliver_at, expires_at, sendoff._trace(trace_header), qualifier, tenant_id, client_context);
END $$;

CREATE FUNCTION sendoff.enqueue(function text, payload jsonb, key text DEFAULT NULL, deliver_at timestamptz DEFAULT NULL, expires_at timestamptz DEFAULT NULL,
  trace_header text DEFAULT NULL, qualifier text DEFAULT NULL, tenant_id text DEFAULT NULL, client_context text DEFAULT NULL)
RETURNS uuid LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  RETURN sendoff._enqueue(function, payload::text, key, deliver_at, expires_at, sendoff._trace(trace_header), qualifier, tenant_id, client_context);
END $$;

-- Many events for one function. keys is NULL, or has one element for each payload, NULL for an event without a key. Returns the
-- ids in order. Works in the order of the keys, so that two calls with the same keys never wait for each other.
CREATE FUNCTION sendoff.enqueue_many(function text, payloads text[], keys text[] DEFAULT NULL)
RETURNS uuid[] LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_ids uuid[] := array_fill(NULL::uuid, ARRAY[coalesce(cardinality(payloads), 0)]);
  v_trace text := sendoff._trace(NULL);
  r record;
BEGIN
  IF keys IS NOT NULL AND cardinality(keys) <> cardinality(payloads) THEN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('sendoff: %s payloads and %s keys', cardinality(payloads), cardinality(keys)),
      HINT = 'Pass one key for each payload, NULL for an event without a key.';
  END IF;
  FOR r IN SELECT o.payload, o.key, o.ord FROM unnest(payloads, keys) WITH ORDINALITY o (payload, key, ord) ORDER BY o.key COLLATE "C", o.ord LOOP
    v_ids[r.ord] := sendoff._enqueue(function, r.payload, r.key, NULL, NULL, v_trace, NULL, NULL, NULL);
  END LOOP;
  RETURN v_ids;
END $$;

-- Makes a function known, so that events can be enqueued for it. Repeating it changes nothing. Returns the canonical name.
CREATE FUNCTION sendoff.add_function(function text) RETURNS text LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
  v_name text := (sendoff._canonical(function, NULL)).function;
BEGIN
  IF v_name IS NULL THEN
    RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'sendoff: this is not the name of a Lambda function', DETAIL = left(function, 256),
      HINT = 'Pass a name, name:alias, or an ARN, as for Lambda''s Invoke.';
  ELSIF (SELECT count(*) FROM (SELECT FROM sendoff.lane LIMIT 100000) l) >= 100000 THEN
    RAISE EXCEPTION USING ERRCODE = '53400', MESSAGE = 'sendoff: there are 100000 functions already';
  END IF;
  INSERT INTO sendoff.lane (id, function, tag) VALUES (sendoff.lane_id(v_name), v_name, sendoff.lane_tag(v_name)) ON CONFLICT DO NOTHING;
  RETURN v_name;
END $$;

-- For programs that can only insert rows, such as ORMs. Nothing can be read from it.
CREATE VIEW sendoff.outbox AS
  SELECT NULL::uuid AS id, NULL::text AS function, NULL::text AS payload, NULL::text AS key, NULL::timestamptz AS deliver_at, NULL::timestamptz AS expires_at,
    NULL::text AS trace_header, NULL::text AS qualifier, NULL::text AS tenant_id, NULL::text AS client_context WHERE false;

CREATE FUNCTION sendoff._insert_outbox() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
  NEW.id := sendoff._enqueue(NEW.function, NEW.payload, NEW.key, NEW.deliver_at, NEW.expires_at, sendoff._trace(NEW.trace_header), NEW.qualifier, NEW.tenant_id, NEW.client_context);
  RETURN NEW;
END $$;
CREATE TRIGGER outbox_insert INSTEAD OF INSERT ON sendoff.outbox FOR EACH ROW EXECUTE FUNCTION sendoff._insert_outbox();

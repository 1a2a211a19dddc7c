-- Time, ids, digests and names. They agree with src/clock.rs, src/event.rs, src/event/name.rs and the embedded engine's keys.
--
-- A function whose name begins with an underscore is called by other functions only.

-- The server's clock decides windows and due times. With test_clock, tests decide.
CREATE FUNCTION sendoff._clock(p_test boolean) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  v_set text;
BEGIN
  IF p_test THEN
    v_set := current_setting('sendoff.now_ms', true);
    IF v_set <> '' THEN
      RETURN v_set::bigint;
    END IF;
  END IF;
  RETURN floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint;
END $$;

CREATE FUNCTION sendoff.now_ms() RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
  RETURN sendoff._clock((SELECT c.test_clock FROM sendoff.control c));
END $$;

-- Which server this is, and since when it runs. A change means that the connection goes to another server.
CREATE FUNCTION sendoff._incarnation() RETURNS text LANGUAGE sql STABLE AS $$
  SELECT extract(epoch FROM pg_postmaster_start_time())::text || '@' || coalesce(host(inet_server_addr()), 'local')
$$;

-- 63 bits of a function's name.
CREATE FUNCTION sendoff.lane_id(p_function text) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT ('x' || encode(substr(sha256(convert_to(p_function, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint & 9223372036854775807
$$;

-- FNV-1a of the name, 32 bits folded to 16.
CREATE FUNCTION sendoff.lane_tag(p_function text) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  v_bytes bytea := convert_to(p_function, 'UTF8');
  v_hash bigint := 2166136261;
BEGIN
  FOR i IN 0 .. length(v_bytes) - 1 LOOP
    v_hash := ((v_hash # get_byte(v_bytes, i)) * 16777619) % 4294967296;
  END LOOP;
  RETURN ((v_hash >> 16) # (v_hash & 65535))::int;
END $$;

-- A UUID version 7 with the lane's tag as its last two bytes.
CREATE FUNCTION sendoff._mint(p_ms bigint, p_tag int) RETURNS uuid LANGUAGE plpgsql AS $$
BEGIN
  -- Of a random version 4: the variant and all random digits that fit.
  RETURN (lpad(to_hex(p_ms), 12, '0') || '7' || substr(replace(gen_random_uuid()::text, '-', ''), 14, 15) || lpad(to_hex(p_tag), 4, '0'))::uuid;
END $$;

-- The time in an id, and the least id of a time.
CREATE FUNCTION sendoff._accepted(p_id uuid) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
  SELECT ('x' || substr(replace(p_id::text, '-', ''), 1, 12))::bit(48)::bigint
$$;
CREATE FUNCTION sendoff._least_id(p_ms bigint) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT rpad(lpad(to_hex(greatest(p_ms, 0)), 12, '0'), 32, '0')::uuid
$$;
CREATE FUNCTION sendoff._tag_of(p_id uuid) RETURNS int LANGUAGE sql IMMUTABLE AS $$
  SELECT ('x' || right(p_id::text, 4))::bit(16)::int
$$;

-- The first 16 bytes of a SHA-256.
CREATE FUNCTION sendoff._sha(p_bytes bytea) RETURNS uuid LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  RETURN encode(substr(sha256(p_bytes), 1, 16), 'hex')::uuid;
END $$;

-- Where the key of an event is remembered: its function, its tenant if there is one, and its value. No text here contains a
-- zero byte, and no tenant a control character, so different keys never give the same bytes.
CREATE FUNCTION sendoff._digest(p_function text, p_tenant text, p_value text) RETURNS uuid LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
  RETURN sendoff._sha(convert_to(p_function, 'UTF8')
    || CASE WHEN p_tenant IS NULL THEN ''::bytea ELSE '\x01'::bytea || convert_to(p_tenant, 'UTF8') END
    || '\x00'::bytea || convert_to(p_value, 'UTF8'));
END $$;

-- Refuses callers whose snapshot may be older than a lock that they wait for: what they check under it would be stale.
CREATE FUNCTION sendoff._read_committed() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  IF current_setting('transaction_isolation') <> 'read committed' THEN
    RAISE EXCEPTION USING ERRCODE = 'SO003', MESSAGE = 'sendoff: this function needs the isolation level READ COMMITTED',
      HINT = 'Set default_transaction_isolation to read committed for the login of the daemon.';
  END IF;
END $$;

-- The parts of a FunctionName in one of Lambda's forms, as its API model describes it.
CREATE FUNCTION sendoff._parts(p_text text, OUT region text, OUT account text, OUT name text, OUT qualifier text)
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
  v text[];
BEGIN
  IF length(p_text) > 256 THEN
    RETURN;
  END IF;
  v := regexp_match(p_text, '^(?:arn:(?:aws[a-zA-Z-]*)?:lambda:)?(?:((?:eusc-)?[a-z]{2}(?:-gov|-iso[a-z]?)?-[a-z]+-[0-9]):)?'
    '(?:([0-9]{12}):)?(?:function:)?([a-zA-Z0-9_.-]+)(?::([$]LATEST(?:[.]PUBLISHED)?|[a-zA-Z0-9_-]+))?$');
  IF v[3] NOT IN ('.', '..') THEN
    region := v[1]; account := v[2]; name := v[3]; qualifier := v[4];
  END IF;
END $$;

-- The canonical name [region/][account/]name[:qualifier], without the daemons' own region and account; NULL if it is no name.
CREATE FUNCTION sendoff._canonical(p_text text, p_qualifier text, OUT function text, OUT region text) LANGUAGE plpgsql AS $$
DECLARE
  v record;
  v_home record;
BEGIN
  v := sendoff._parts(p_text);
  IF v.name IS NULL OR v.qualifier <> p_qualifier
    OR length(p_qualifier) > 128 OR p_qualifier !~ '^([$](LATEST([.]PUBLISHED)?)|[a-zA-Z0-9_$-]+)$' THEN
    RETURN;
  END IF;
  SELECT c.home_region, c.home_account INTO v_home FROM sendoff.control c;
  region := v.region;
  function := CASE WHEN v.region IS DISTINCT FROM v_home.home_region AND v.region IS NOT NULL THEN v.region || '/' ELSE '' END
    || CASE WHEN v.account IS DISTINCT FROM v_home.home_account AND v.account IS NOT NULL THEN v.account || '/' ELSE '' END
    || v.name || coalesce(':' || nullif(coalesce(v.qualifier, p_qualifier), '$LATEST'), '');
END $$;

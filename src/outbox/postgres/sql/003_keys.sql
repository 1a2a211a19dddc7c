-- Remembered keys, in three generations per family.
--
-- New keys go into the current generation. The current and the previous one are looked into. The third one rests and is
-- emptied by TRUNCATE, so that keys need no vacuum. The generation changes when all that the previous one holds is over.
--
-- The gate: whoever inserts a key holds ROW EXCLUSIVE on the parent table until its transaction ends, and reads which
-- generation is current only after that. The change takes SHARE ROW EXCLUSIVE, so it comes only while nobody has an open key.
-- So two transactions that run at the same time always share a generation, whose unique index finds their equal keys.
-- A caller that is not in READ COMMITTED may see an old generation in its snapshot, and inserts into all three.

-- Takes the gate and returns what is current.
CREATE FUNCTION sendoff._gate() RETURNS sendoff.control LANGUAGE plpgsql AS $$
DECLARE
  c sendoff.control;
BEGIN
  LOCK TABLE ONLY sendoff.key IN ROW EXCLUSIVE MODE;
  SELECT * INTO c FROM sendoff.control;
  RETURN c;
END $$;

-- What one generation knows. By the name of the table, so that the resting one is not locked.
CREATE FUNCTION sendoff._look(p_gen smallint, p_digests uuid[]) RETURNS TABLE (digest uuid, first uuid, print uuid, until bigint)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  CASE p_gen
    WHEN 0 THEN RETURN QUERY SELECT k.digest, k.first, k.print, k.until FROM sendoff.key_0 k WHERE k.digest = ANY (p_digests);
    WHEN 1 THEN RETURN QUERY SELECT k.digest, k.first, k.print, k.until FROM sendoff.key_1 k WHERE k.digest = ANY (p_digests);
    WHEN 2 THEN RETURN QUERY SELECT k.digest, k.first, k.print, k.until FROM sendoff.key_2 k WHERE k.digest = ANY (p_digests);
    WHEN 3 THEN RETURN QUERY SELECT k.digest, k.first, k.print, k.until FROM sendoff.key_3 k WHERE k.digest = ANY (p_digests);
    WHEN 4 THEN RETURN QUERY SELECT k.digest, k.first, k.print, k.until FROM sendoff.key_4 k WHERE k.digest = ANY (p_digests);
    WHEN 5 THEN RETURN QUERY SELECT k.digest, k.first, k.print, k.until FROM sendoff.key_5 k WHERE k.digest = ANY (p_digests);
  END CASE;
END $$;

-- Whether an event is stored, as an event or as a dead letter. Its key is known for as long, whatever its window.
CREATE FUNCTION sendoff._stored(p_id uuid) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
  RETURN EXISTS (SELECT FROM sendoff.lane l CROSS JOIN LATERAL (SELECT FROM sendoff.event e WHERE e.lane = l.id AND e.id = p_id LIMIT 1) e WHERE l.tag = sendoff._tag_of(p_id))
    OR EXISTS (SELECT FROM sendoff.lane l CROSS JOIN LATERAL (SELECT FROM sendoff.dead d WHERE d.lane = l.id AND d.id = p_id LIMIT 1) d WHERE l.tag = sendoff._tag_of(p_id));
END $$;

-- Remembers one key in one generation, unless it is known there. Returns 0 if it is this event's now; 1 if it is known with
-- the same payload, 2 with another, and for which event.
CREATE FUNCTION sendoff._put(p_gen smallint, p_digest uuid, p_id uuid, p_print uuid, p_until bigint, p_now bigint,
  OUT verdict smallint, OUT first uuid) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
  r record;
BEGIN
  LOOP
    INSERT INTO sendoff.key (gen, digest, first, print, until) VALUES (p_gen, p_digest, p_id, p_print, p_until) ON CONFLICT DO NOTHING;
    IF FOUND THEN
      verdict := 0;
      RETURN;
    END IF;
    SELECT k.first, k.print, k.until INTO r FROM sendoff._look(p_gen, ARRAY[p_digest]) k;
    IF NOT FOUND THEN
      CONTINUE WHEN current_setting('transaction_isolation') = 'read committed';
      RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = 'sendoff: another transaction has used this key since the snapshot of this one';
    END IF;
    IF r.until > p_now OR sendoff._stored(r.first) THEN
      verdict := CASE WHEN r.print = p_print THEN 1 ELSE 2 END;
      first := r.first;
      RETURN;
    END IF;
    -- Its window is over: it becomes this event's, unless another transaction was faster.
    UPDATE sendoff.key k SET first = p_id, print = p_print, until = p_until
      WHERE k.gen = p_gen AND k.digest = p_digest AND k.first = r.first AND k.until = r.until;
    IF FOUND THEN
      verdict := 0;
      RETURN;
    END IF;
  END LOOP;
END $$;

-- Sets a key to this event and window, whatever it was.
CREATE FUNCTION sendoff._set_key(p_gen smallint, p_digest uuid, p_id uuid, p_print uuid, p_until bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  LOOP
    UPDATE sendoff.key k SET first = p_id, print = p_print, until = p_until WHERE k.gen = p_gen AND k.digest = p_digest;
    EXIT WHEN FOUND;
    INSERT INTO sendoff.key (gen, digest, first, print, until) VALUES (p_gen, p_digest, p_id, p_print, p_until) ON CONFLICT DO NOTHING;
    EXIT WHEN FOUND;
  END LOOP;
END $$;

-- What the current and the previous generation know of one key; the current one counts.
CREATE FUNCTION sendoff._known(c sendoff.control, p_sdk boolean, p_digest uuid, OUT first uuid, OUT print uuid, OUT until bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
  SELECT k.first, k.print, k.until INTO first, print, until FROM sendoff._look(CASE WHEN p_sdk THEN c.sdk_current ELSE c.given_current END, ARRAY[p_digest]) k;
  IF first IS NULL THEN
    SELECT k.first, k.print, k.until INTO first, print, until FROM sendoff._look(CASE WHEN p_sdk THEN c.sdk_previous ELSE c.given_previous END, ARRAY[p_digest]) k;
  END IF;
END $$;

-- Forgets the keys of events that an operator removes, unless they belong to other events by now.
CREATE FUNCTION sendoff.forget(p_families smallint[], p_digests uuid[], p_firsts uuid[]) RETURNS int LANGUAGE plpgsql AS $$
DECLARE
  c sendoff.control;
  r record;
  v_forgotten int := 0;
BEGIN
  PERFORM sendoff._read_committed();
  c := sendoff._gate();
  FOR r IN SELECT o.family = 1 AS sdk, o.digest, o.first FROM unnest(p_families, p_digests, p_firsts) o (family, digest, first) ORDER BY o.digest LOOP
    DELETE FROM sendoff.key k WHERE k.gen IN (CASE WHEN r.sdk THEN c.sdk_current ELSE c.given_current END, CASE WHEN r.sdk THEN c.sdk_previous ELSE c.given_previous END)
      AND k.digest = r.digest AND k.first = r.first;
    IF FOUND THEN
      v_forgotten := v_forgotten + 1;
    END IF;
  END LOOP;
  RETURN v_forgotten;
END $$;

-- Remembers the keys of events that came back (revived, redriven, imported), unless a key belongs to another event by now.
CREATE FUNCTION sendoff.remember_again(p_families smallint[], p_digests uuid[], p_ids uuid[], p_prints uuid[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  c sendoff.control;
  v_now bigint;
  r record;
  v_known record;
BEGIN
  PERFORM sendoff._read_committed();
  c := sendoff._gate();
  v_now := sendoff._clock(c.test_clock);
  FOR r IN SELECT o.family = 1 AS sdk, o.digest, o.id, o.print FROM unnest(p_families, p_digests, p_ids, p_prints) o (family, digest, id, print) ORDER BY o.digest LOOP
    v_known := sendoff._known(c, r.sdk, r.digest);
    CONTINUE WHEN v_known.until > v_now AND v_known.print <> r.print;
    CONTINUE WHEN v_known.first IS NOT NULL AND v_known.first <> r.id AND sendoff._stored(v_known.first);
    PERFORM sendoff._set_key(CASE WHEN r.sdk THEN c.sdk_current ELSE c.given_current END, r.digest, r.id, r.print,
      v_now + CASE WHEN r.sdk THEN c.sdk_ms ELSE c.given_ms END);
  END LOOP;
END $$;

-- Changes how long keys are remembered. Keys keep the window that they were stored with.
CREATE FUNCTION sendoff.set_windows(p_given_ms bigint, p_sdk_ms bigint) RETURNS text LANGUAGE plpgsql SET lock_timeout = '1s' AS $$
DECLARE
  c sendoff.control;
  v_now bigint;
BEGIN
  PERFORM sendoff._read_committed();
  SELECT * INTO c FROM sendoff.control;
  IF c.given_ms = p_given_ms AND c.sdk_ms = p_sdk_ms THEN
    RETURN 'same';
  END IF;
  BEGIN
    LOCK TABLE ONLY sendoff.key IN SHARE ROW EXCLUSIVE MODE;
  EXCEPTION WHEN lock_not_available THEN
    RETURN 'busy';
  END;
  v_now := sendoff._clock(c.test_clock);
  UPDATE sendoff.control SET given_ms = p_given_ms, given_longest = greatest(given_longest, p_given_ms),
    sdk_ms = p_sdk_ms, sdk_longest = greatest(sdk_longest, p_sdk_ms);
  RETURN 'set';
END $$;

-- Gives keys of the previous generation another window in the current one, if their events are still stored. One piece: as
-- many pages of the table. Nothing is added to a previous generation that is not in the current one too.
CREATE FUNCTION sendoff._carry(p_from smallint, p_to smallint, p_page bigint, p_pages bigint, p_until bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  EXECUTE format($q$
    INSERT INTO sendoff.key (gen, digest, first, print, until)
      SELECT $3, k.digest, k.first, k.print, $4 FROM sendoff.key_%s k
      WHERE k.ctid >= format('(%%s,0)', $1)::tid AND k.ctid < format('(%%s,0)', $1 + $2)::tid AND sendoff._stored(k.first)
      ORDER BY k.digest ON CONFLICT DO NOTHING$q$, p_from)
    USING p_page, p_pages, p_to, p_until;
END $$;

-- One piece of housekeeping of one family. Returns idle, more, or busy.
CREATE FUNCTION sendoff._tend_family(p_sdk boolean) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  c_pages CONSTANT bigint := 64;
  c sendoff.control;
  v_now bigint;
  v_current smallint;
  v_previous smallint;
  v_rest smallint;
  v_longest bigint;
  v_carried bigint;
  v_pages bigint;
  v_ends bigint;
BEGIN
  SELECT * INTO c FROM sendoff.control;
  v_now := sendoff._clock(c.test_clock);
  IF p_sdk THEN
    v_current := c.sdk_current; v_previous := c.sdk_previous; v_ends := c.sdk_ends; v_carried := c.sdk_carried; v_rest := 12 - v_current - v_previous;
  ELSE
    v_current := c.given_current; v_previous := c.given_previous; v_ends := c.given_ends; v_carried := c.given_carried; v_rest := 3 - v_current - v_previous;
  END IF;

  -- 1. Empty the resting generation. It holds nothing that the other two lack and that is still valid.
  IF pg_relation_size(format('sendoff.key_%s', v_rest)::regclass) > 0 THEN
    BEGIN
      EXECUTE format('LOCK TABLE ONLY sendoff.key_%s IN ACCESS EXCLUSIVE MODE NOWAIT', v_rest);
    EXCEPTION WHEN lock_not_available THEN
      RETURN 'busy';
    END;
    EXECUTE format('TRUNCATE TABLE ONLY sendoff.key_%s', v_rest);
    RETURN 'more';
  END IF;

  -- 2. When all windows of the previous generation are over, save the keys whose events are still stored.
  IF v_now < v_ends OR pg_relation_size(format('sendoff.key_%s', v_current)::regclass) = 0 AND pg_relation_size(format('sendoff.key_%s', v_previous)::regclass) = 0 THEN
    RETURN 'idle';
  END IF;
  v_pages := pg_relation_size(format('sendoff.key_%s', v_previous)::regclass) / current_setting('block_size')::bigint;
  IF v_carried < v_pages THEN
    LOCK TABLE ONLY sendoff.key IN ROW EXCLUSIVE MODE;
    PERFORM sendoff._carry(v_previous, v_current, v_carried, c_pages, v_now + CASE WHEN p_sdk THEN c.sdk_ms ELSE c.given_ms END);
    IF p_sdk THEN
      UPDATE sendoff.control SET sdk_carried = v_carried + c_pages;
    ELSE
      UPDATE sendoff.control SET given_carried = v_carried + c_pages;
    END IF;
    RETURN 'more';
  END IF;

  -- 3. Change the generation, as soon as nobody has an open key. Everybody who comes meanwhile waits, so wait shortly.
  PERFORM set_config('lock_timeout', c.gate_ms || 'ms', true);
  BEGIN
    LOCK TABLE ONLY sendoff.key IN SHARE ROW EXCLUSIVE MODE;
  EXCEPTION WHEN lock_not_available THEN
    UPDATE sendoff.control SET gate_ms = least(gate_ms * 2, 1000);
    RETURN 'busy';
  END;
  -- No key of the generation that becomes the previous one is valid after this.
  v_now := greatest(v_now, sendoff._clock(c.test_clock));
  IF p_sdk THEN
    UPDATE sendoff.control SET sdk_previous = v_current, sdk_current = v_rest, sdk_ends = v_now + sdk_longest, sdk_longest = sdk_ms, sdk_carried = 0, gate_ms = 50;
  ELSE
    UPDATE sendoff.control SET given_previous = v_current, given_current = v_rest, given_ends = v_now + given_longest, given_longest = given_ms, given_carried = 0, gate_ms = 50;
  END IF;
  RETURN 'more';
END $$;

-- One bounded piece of housekeeping of keys. Returns idle; more (call it again soon); busy (a lock was refused: call it later).
CREATE FUNCTION sendoff.tend_keys() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
  v_done text;
BEGIN
  PERFORM sendoff._read_committed();
  IF NOT pg_try_advisory_xact_lock(1936027236, 2) THEN
    RETURN 'busy';
  END IF;
  -- Nothing here needs a standby, and its locks must not be held while the commit waits for one.
  PERFORM set_config('synchronous_commit', 'local', true);
  v_done := sendoff._tend_family(true);
  IF v_done = 'idle' THEN
    v_done := sendoff._tend_family(false);
  END IF;
  RETURN v_done;
END $$;

-- The keys that are known. Reads all of them.
CREATE FUNCTION sendoff.count_keys() RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
  c sendoff.control;
  v_now bigint;
BEGIN
  SELECT * INTO c FROM sendoff.control;
  v_now := sendoff._clock(c.test_clock);
  RETURN (SELECT count(DISTINCT (k.gen >= 3, k.digest)) FROM sendoff.key k
    WHERE k.gen = ANY (ARRAY[c.given_current, c.given_previous, c.sdk_current, c.sdk_previous]) AND (k.until > v_now OR sendoff._stored(k.first)));
END $$;

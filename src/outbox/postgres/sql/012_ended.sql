-- What became of events that have left the store, for whoever asks for them. Any daemon writes, any daemon reads.
--
-- Two generations, so that nothing needs a vacuum: rows go into the current one. When it is old or large, TRUNCATE empties the other
-- one, which then is the current one. The record is the daemon's own (src/past/record.rs). It has no payload and no key.
-- These transactions do not wait for the disk, so a crash of the server may cost the last moment of them, and nothing else.
CREATE TABLE sendoff.ended_0 (id uuid PRIMARY KEY, record bytea NOT NULL);
CREATE TABLE sendoff.ended_1 (id uuid PRIMARY KEY, record bytea NOT NULL);
CREATE TABLE sendoff.ended (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  current smallint NOT NULL DEFAULT 0 CHECK (current BETWEEN 0 AND 1),
  -- Since when the current generation takes rows, in ms. 0: none has come yet.
  since bigint NOT NULL DEFAULT 0
);
INSERT INTO sendoff.ended DEFAULT VALUES;

-- Each id at most once. Nearly always all are new. A plain INSERT then writes some 50 bytes less to the write-ahead log for each
-- than one with ON CONFLICT.
CREATE FUNCTION sendoff.keep_ended(p_ids uuid[], p_records bytea[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  PERFORM set_config('synchronous_commit', 'off', true);
  IF (SELECT e.current FROM sendoff.ended e) = 0 THEN
    BEGIN
      INSERT INTO sendoff.ended_0 SELECT * FROM unnest(p_ids, p_records);
    EXCEPTION WHEN unique_violation THEN
      INSERT INTO sendoff.ended_0 SELECT * FROM unnest(p_ids, p_records) ON CONFLICT (id) DO UPDATE SET record = excluded.record;
    END;
  ELSE
    BEGIN
      INSERT INTO sendoff.ended_1 SELECT * FROM unnest(p_ids, p_records);
    EXCEPTION WHEN unique_violation THEN
      INSERT INTO sendoff.ended_1 SELECT * FROM unnest(p_ids, p_records) ON CONFLICT (id) DO UPDATE SET record = excluded.record;
    END;
  END IF;
END $$;

-- The latest record of an event.
CREATE FUNCTION sendoff.find_ended(p_id uuid) RETURNS bytea LANGUAGE plpgsql STABLE AS $$
DECLARE
  v_0 bytea := (SELECT e.record FROM sendoff.ended_0 e WHERE e.id = p_id);
  v_1 bytea := (SELECT e.record FROM sendoff.ended_1 e WHERE e.id = p_id);
BEGIN
  RETURN CASE WHEN (SELECT e.current FROM sendoff.ended e) = 0 THEN coalesce(v_0, v_1) ELSE coalesce(v_1, v_0) END;
END $$;

-- Begins a new generation once the current one is as old or as large as given. Returns whether it did. It waits for nobody.
CREATE FUNCTION sendoff.turn_ended(p_age_ms bigint, p_bytes bigint) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
  c sendoff.ended;
  v_now bigint := sendoff.now_ms();
BEGIN
  SELECT * INTO c FROM sendoff.ended FOR UPDATE SKIP LOCKED;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  IF c.since = 0 THEN
    UPDATE sendoff.ended SET since = v_now;
    RETURN false;
  END IF;
  IF v_now - c.since < p_age_ms AND pg_total_relation_size(CASE WHEN c.current = 0 THEN 'sendoff.ended_0' ELSE 'sendoff.ended_1' END) < p_bytes THEN
    RETURN false;
  END IF;
  PERFORM set_config('lock_timeout', '50ms', true);
  IF c.current = 0 THEN
    TRUNCATE sendoff.ended_1;
  ELSE
    TRUNCATE sendoff.ended_0;
  END IF;
  UPDATE sendoff.ended SET current = 1 - c.current, since = v_now;
  RETURN true;
EXCEPTION WHEN lock_not_available THEN
  RETURN false;
END $$;

SELECT sendoff._settle_functions();
GRANT SELECT, INSERT, UPDATE, TRUNCATE ON sendoff.ended_0, sendoff.ended_1 TO sendoff_daemon;
GRANT SELECT, UPDATE ON sendoff.ended TO sendoff_daemon;
GRANT EXECUTE ON FUNCTION sendoff.keep_ended(uuid[], bytea[]), sendoff.find_ended(uuid), sendoff.turn_ended(bigint, bigint) TO sendoff_daemon;

-- Settings and rights of all functions. A later file that makes or replaces functions ends with: SELECT sendoff._settle_functions();

-- Every function carries the settings that it needs. Those of the session or the role do not count: enqueue runs in applications'
-- sessions, and behind a pooler settings get lost. Without them the planner scans whole tables now and then: it planned while the
-- table was small, or its statistics are old. A function whose name begins with an underscore runs within another one.
CREATE FUNCTION sendoff._settle_functions() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  f record;
  v_setting text;
BEGIN
  FOR f IN SELECT p.oid::regprocedure AS name, p.proname, p.prosecdef, p.proconfig FROM pg_proc p WHERE p.pronamespace = 'sendoff'::regnamespace LOOP
    EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f.name);
    CONTINUE WHEN f.proname LIKE '\_%' AND f.proname <> '_insert_outbox' OR f.proname IN ('lane_id', 'lane_tag');
    FOREACH v_setting IN ARRAY ARRAY['search_path = pg_catalog, pg_temp', 'standard_conforming_strings = on', 'plan_cache_mode = force_generic_plan',
      'enable_seqscan = off', 'enable_bitmapscan = off', 'enable_hashjoin = off', 'enable_mergejoin = off', 'enable_sort = off', 'enable_incremental_sort = off', 'enable_material = off', 'jit = off',
      'max_parallel_workers_per_gather = 0'] LOOP
      EXECUTE format('ALTER FUNCTION %s SET %s', f.name, v_setting);
    END LOOP;
  END LOOP;
END $$;
SELECT sendoff._settle_functions();

GRANT USAGE ON SCHEMA sendoff TO sendoff_daemon, sendoff_enqueue, sendoff_read;

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA sendoff TO sendoff_daemon;
REVOKE INSERT, UPDATE, DELETE ON sendoff.migration FROM sendoff_daemon;
REVOKE ALL ON sendoff.outbox FROM sendoff_daemon;
GRANT TRUNCATE ON sendoff.key_0, sendoff.key_1, sendoff.key_2, sendoff.key_3, sendoff.key_4, sendoff.key_5 TO sendoff_daemon;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA sendoff TO sendoff_daemon;
REVOKE EXECUTE ON FUNCTION sendoff._settle_functions() FROM sendoff_daemon;

-- Applications see no table.
GRANT EXECUTE ON FUNCTION sendoff.enqueue(text, text, text, timestamptz, timestamptz, text, text, text, text),
  sendoff.enqueue(text, jsonb, text, timestamptz, timestamptz, text, text, text, text), sendoff.enqueue_many(text, text[], text[]), sendoff.add_function(text) TO sendoff_enqueue;
GRANT INSERT ON sendoff.outbox TO sendoff_enqueue;
-- INSERT .. RETURNING id, which ORMs write, needs it.
GRANT SELECT ON sendoff.outbox TO sendoff_enqueue;

-- People and dashboards see what there is, but no payload, no key and no client context.
CREATE VIEW sendoff.functions AS
  SELECT l.function, l.paused, l.retired, l.owner IS NOT NULL AS owned, m.name AS daemon FROM sendoff.lane l LEFT JOIN sendoff.member m ON m.id = l.owner;
CREATE VIEW sendoff.events AS
  SELECT e.id, l.function, CASE WHEN w.place = 1 THEN 'waiting' WHEN w.place = 2 THEN 'scheduled' ELSE 'ready' END AS state,
    to_timestamp(sendoff._accepted(e.id) / 1000.0) AS accepted_at, to_timestamp(w.due / 1000.0) AS due, to_timestamp(e.expires_at / 1000.0) AS expires_at,
    e.redrives, octet_length(e.payload) AS payload_bytes
  FROM sendoff.event e JOIN sendoff.lane l ON l.id = e.lane LEFT JOIN sendoff.later w ON w.lane = e.lane AND w.id = e.id;
CREATE VIEW sendoff.dead_letters AS
  SELECT d.id, l.function, CASE d.reason WHEN 0 THEN 'retries-exhausted' WHEN 1 THEN 'event-age-exceeded' WHEN 2 THEN 'refused' END AS reason,
    to_timestamp(sendoff._accepted(d.id) / 1000.0) AS accepted_at, to_timestamp(d.buried_at / 1000.0) AS buried_at, d.redrives, octet_length(d.payload) AS payload_bytes
  FROM sendoff.dead d JOIN sendoff.lane l ON l.id = d.lane;
CREATE VIEW sendoff.daemons AS
  SELECT m.name, m.version, m.alive, m.draining, m.gone, m.beat, to_timestamp(m.since / 1000.0) AS since,
    (SELECT count(*) FROM sendoff.lane l WHERE l.owner = m.id) AS functions FROM sendoff.member m;
GRANT SELECT ON sendoff.functions, sendoff.events, sendoff.dead_letters, sendoff.daemons TO sendoff_read;
GRANT EXECUTE ON FUNCTION sendoff._accepted(uuid) TO sendoff_read;

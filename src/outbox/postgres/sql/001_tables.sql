-- Tables and roles of the shared outbox.
--
-- How an event moves:
--   append, enqueue   insert one row into event, one into arrival, and a remembered key into key
--   lease             reads event after a cursor that the lane's owner keeps in memory; it locks and writes nothing
--   settle            deletes the row (delivered), adds a row to later (retry), or moves it to dead (buried)
-- No row of event is ever updated, and no row says that an event is leased: a lane has one owner at a time.
--
-- All times are milliseconds since 1970, UTC. Each file runs in one transaction. Files are never changed once released.

DO $$
BEGIN
  IF current_setting('server_version_num')::int < 140000 THEN
    RAISE EXCEPTION 'sendoff needs PostgreSQL 14 or later; this server is %', current_setting('server_version');
  END IF;
  IF current_setting('server_encoding') <> 'UTF8' THEN
    RAISE EXCEPTION 'sendoff needs a database with the encoding UTF8; this one has %', current_setting('server_encoding');
  END IF;
END $$;

CREATE SCHEMA IF NOT EXISTS sendoff;

CREATE TABLE sendoff.migration (
  version int PRIMARY KEY,
  name text NOT NULL,
  sha256 bytea NOT NULL,
  applied_at timestamptz NOT NULL DEFAULT now()
);

-- One row. Read by every append, so it is small and written seldom.
CREATE TABLE sendoff.control (
  one boolean PRIMARY KEY DEFAULT true CHECK (one),
  -- Builds that support a lower format refuse to start.
  format int NOT NULL DEFAULT 1,
  -- Lambda region, account and endpoint of the daemons. A daemon of another realm is refused.
  realm text,
  home_region text,
  home_account text,
  -- Of the server on which the schema was created. A logical copy has other transaction ids and another identifier.
  system_id bigint NOT NULL,
  -- Only tests set this: now_ms() then follows the setting sendoff.now_ms.
  test_clock boolean NOT NULL DEFAULT false,
  -- Why enqueue refuses events, for example that events_max is reached. NULL: it accepts.
  full_of text,
  -- Generations of remembered keys, see 003. current and previous are looked into, the third one rests.
  given_ms bigint NOT NULL DEFAULT 86400000,
  given_longest bigint NOT NULL DEFAULT 86400000,
  given_current smallint NOT NULL DEFAULT 0 CHECK (given_current BETWEEN 0 AND 2),
  given_previous smallint NOT NULL DEFAULT 2 CHECK (given_previous BETWEEN 0 AND 2),
  given_ends bigint NOT NULL DEFAULT 0,
  given_carried bigint NOT NULL DEFAULT 0,
  sdk_ms bigint NOT NULL DEFAULT 3600000,
  sdk_longest bigint NOT NULL DEFAULT 3600000,
  sdk_current smallint NOT NULL DEFAULT 3 CHECK (sdk_current BETWEEN 3 AND 5),
  sdk_previous smallint NOT NULL DEFAULT 5 CHECK (sdk_previous BETWEEN 3 AND 5),
  sdk_ends bigint NOT NULL DEFAULT 0,
  sdk_carried bigint NOT NULL DEFAULT 0,
  -- How long the change of a generation waits for open transactions. Doubles when it is refused.
  gate_ms int NOT NULL DEFAULT 50,
  CHECK (given_current <> given_previous AND sdk_current <> sdk_previous)
) WITH (fillfactor = 10);
INSERT INTO sendoff.control (system_id) SELECT system_identifier FROM pg_control_system();

-- A start of a daemon. The id is random, so that a failover that loses commits never gives one id to two processes.
CREATE TABLE sendoff.member (
  id bigint PRIMARY KEY,
  name text NOT NULL,
  alive boolean NOT NULL DEFAULT true,
  -- Why it is not alive: fenced, replaced, left.
  gone text,
  beat bigint NOT NULL DEFAULT 0,
  -- Settlements that were sent on an older connection are refused.
  session bigint NOT NULL DEFAULT 1,
  -- The least transaction that this member has not been told of. NULL: it owns no lanes and reads no news.
  news_xid bigint,
  events bigint,
  bytes bigint,
  since bigint NOT NULL,
  -- Of the program, for people.
  version text,
  -- It stops: it gives its lanes back and claims none.
  draining boolean NOT NULL DEFAULT false
) WITH (fillfactor = 20);
CREATE UNIQUE INDEX member_name ON sendoff.member (name) WHERE alive;

-- A question of one member to another, and its answer: the owner of a lane knows what is in flight there, and nobody else does.
-- Unlogged: after a crash of the server nobody waits for an answer any longer.
CREATE UNLOGGED TABLE sendoff.command (
  -- Random, chosen by who asks.
  id bigint PRIMARY KEY,
  member bigint NOT NULL,
  asker bigint NOT NULL,
  -- Nobody begins it after this.
  until bigint NOT NULL,
  -- JSON.
  question text NOT NULL,
  taken boolean NOT NULL DEFAULT false,
  answer text
) WITH (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0,
  autovacuum_vacuum_insert_threshold = -1, vacuum_truncate = off
);
CREATE INDEX command_open ON sendoff.command (member, id) WHERE NOT taken;

-- A function. The id is 63 bits of sha256(function), so that daemons know it without asking, and so that it means the
-- same function after a failover that loses commits. Rows are never deleted: a transaction with an old snapshot could
-- still enqueue for a lane that is gone, and nobody would read that event.
CREATE TABLE sendoff.lane (
  id bigint PRIMARY KEY,
  function text COLLATE "C" NOT NULL UNIQUE,
  -- The last two bytes of the ids of its events.
  tag int NOT NULL,
  owner bigint,
  paused boolean NOT NULL DEFAULT false,
  -- Lambda has taken an event for this function at least once.
  proven boolean NOT NULL DEFAULT false,
  -- Empty for a while and not shown. Only for display: append and enqueue accept events for it.
  retired boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);
CREATE INDEX lane_tag ON sendoff.lane (tag);
CREATE INDEX lane_owner ON sendoff.lane (owner, id);

-- What a lane has spent of its hourly limit of attempts. Apart from lane, because it is written often.
CREATE TABLE sendoff.lane_spent (
  lane bigint PRIMARY KEY,
  hour bigint NOT NULL,
  attempts bigint NOT NULL
) WITH (fillfactor = 20);

-- An accepted event, until it is settled. A row without a row in later is Ready.
CREATE TABLE sendoff.event (
  lane bigint NOT NULL,
  deliver_at bigint,
  expires_at bigint,
  id uuid NOT NULL,
  -- What it counts towards outbox.bytes_max: 128, and the octets of the payload and of all texts.
  bytes int NOT NULL,
  redrives int NOT NULL,
  -- 0 header, 1 durable execution name, 2 field (also enqueue), 3 client context, 4 expression, 5 CloudEvent,
  -- 6 invocation id of an SDK, 7 made by sendoff
  key_source smallint NOT NULL,
  key_value text COLLATE "C" NOT NULL,
  -- The function as the client wrote it. NULL: its canonical name.
  address text COLLATE "C",
  qualifier text COLLATE "C",
  region text COLLATE "C",
  trace text COLLATE "C",
  context text COLLATE "C",
  tenant text COLLATE "C",
  durable text COLLATE "C",
  payload bytea NOT NULL,
  PRIMARY KEY (lane, id)
) WITH (
  -- Rows come and go at the same rate. Vacuum by number of dead rows, at full speed, and never lock readers out to give
  -- the end of the file back.
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000, autovacuum_vacuum_cost_delay = 0,
  autovacuum_vacuum_insert_threshold = -1, vacuum_truncate = off,
  toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 50000,
  toast.autovacuum_vacuum_cost_delay = 0, toast.autovacuum_vacuum_insert_threshold = -1, toast.vacuum_truncate = off
);
-- Compressing costs more processor time than writing the bytes.
ALTER TABLE sendoff.event ALTER payload SET STORAGE EXTERNAL;
CREATE INDEX event_expires ON sendoff.event (lane, expires_at) WHERE expires_at IS NOT NULL;

-- An event that is not to be attempted before a time: Waiting for a retry (place 1), or Scheduled (place 2). A retry so
-- rewrites these few bytes and not the payload.
CREATE TABLE sendoff.later (
  lane bigint NOT NULL,
  due bigint NOT NULL,
  id uuid NOT NULL,
  place smallint NOT NULL,
  history bytea,
  PRIMARY KEY (lane, id)
) WITH (
  fillfactor = 70,
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000, autovacuum_vacuum_cost_delay = 0,
  autovacuum_vacuum_insert_threshold = -1, vacuum_truncate = off
);
CREATE INDEX later_due ON sendoff.later (lane, due, id);

-- A dead letter: an event that was given up, with its history. Not to be shipped before due.
CREATE TABLE sendoff.dead (
  lane bigint NOT NULL,
  deliver_at bigint,
  expires_at bigint,
  id uuid NOT NULL,
  due bigint NOT NULL,
  buried_at bigint NOT NULL,
  bytes int NOT NULL,
  redrives int NOT NULL,
  key_source smallint NOT NULL,
  -- 0 retries exhausted, 1 event age exceeded, 2 refused
  reason smallint NOT NULL,
  key_value text COLLATE "C" NOT NULL,
  address text COLLATE "C",
  qualifier text COLLATE "C",
  region text COLLATE "C",
  trace text COLLATE "C",
  context text COLLATE "C",
  tenant text COLLATE "C",
  durable text COLLATE "C",
  history bytea NOT NULL,
  payload bytea NOT NULL,
  PRIMARY KEY (lane, id)
) WITH (autovacuum_vacuum_insert_threshold = -1, vacuum_truncate = off, toast.vacuum_truncate = off);
ALTER TABLE sendoff.dead ALTER payload SET STORAGE EXTERNAL;
CREATE INDEX dead_due ON sendoff.dead (lane, due, id);

-- What a transaction has added to a lane. The owner of the lane finds it by transaction id (see news). A row that counts no
-- events says that dead letters came: the owner counts the lane anew.
CREATE TABLE sendoff.arrival (
  xid bigint NOT NULL,
  lane bigint NOT NULL,
  -- Ready events and their bytes.
  n int NOT NULL,
  -- Scheduled ones, and the least of their due times.
  n_later int NOT NULL,
  bytes bigint NOT NULL,
  bytes_later bigint NOT NULL,
  due bigint,
  -- The least expires_at.
  expiry bigint,
  -- The least and the greatest id.
  first uuid NOT NULL,
  last uuid NOT NULL
) WITH (
  autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_cost_delay = 0,
  autovacuum_vacuum_insert_threshold = -1, vacuum_truncate = off
);
CREATE INDEX arrival_xid ON sendoff.arrival (xid);
-- It has no unique columns. Without this, a publication of all tables would refuse every deletion. Costs nothing without one.
ALTER TABLE sendoff.arrival REPLICA IDENTITY FULL;

-- Remembered idempotency keys: 0 to 2 for keys that clients give and for redriven events, 3 to 5 for ids that SDKs make.
CREATE TABLE sendoff.key (
  gen smallint NOT NULL,
  digest uuid NOT NULL,
  first uuid NOT NULL,
  -- The first 16 bytes of the payload's SHA-256.
  print uuid NOT NULL,
  until bigint NOT NULL
) PARTITION BY LIST (gen);
DO $$
BEGIN
  FOR gen IN 0 .. 5 LOOP
    EXECUTE format('CREATE TABLE sendoff.key_%s PARTITION OF sendoff.key (PRIMARY KEY (digest)) FOR VALUES IN (%s)
      WITH (autovacuum_vacuum_insert_threshold = -1, vacuum_truncate = off)', gen, gen);
  END LOOP;
END $$;

-- sendoff_daemon: everything that a daemon needs. sendoff_enqueue: applications. sendoff_read: people and dashboards.
DO $$
DECLARE
  v_role text;
BEGIN
  FOREACH v_role IN ARRAY ARRAY['sendoff_daemon', 'sendoff_enqueue', 'sendoff_read'] LOOP
    BEGIN
      IF to_regrole(v_role) IS NULL THEN
        EXECUTE format('CREATE ROLE %I NOLOGIN', v_role);
      END IF;
    EXCEPTION
      WHEN duplicate_object OR unique_violation THEN NULL;  -- Another database of this server was migrated just now.
      WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'this login may not create the role %; have an administrator run: CREATE ROLE % NOLOGIN', v_role, v_role;
    END;
  END LOOP;
END $$;

"""What applications call, and the rights and settings of everything."""

import base64
import json

import psycopg

from outbox import Case, append, call, connect, event, lane_id, migrate, mint, value
from server import migrations

BAD = "22023"


class Enqueue(Case):
    def setUp(self):
        super().setUp()
        self.application = self.connect("application")
        self.application.execute("SELECT sendoff.add_function('orders')")

    def enqueue(self, *arguments, **named):
        names = [f"{name} => %s" for name in named]
        return self.application.execute(f"SELECT sendoff.enqueue({', '.join(['%s'] * len(arguments) + names)})", [*arguments, *named.values()]).fetchone()[0]

    def refused(self, code, *arguments, **named):
        with self.assertRaises(psycopg.DatabaseError) as refused:
            self.enqueue(*arguments, **named)
        self.assertEqual(refused.exception.sqlstate, code, refused.exception)
        return refused.exception

    def test_an_event_is_part_of_the_callers_transaction(self):
        with self.application.transaction():
            kept = self.enqueue("orders", '{"id": 1}', key="a")
        with self.assertRaises(ZeroDivisionError), self.application.transaction():
            self.enqueue("orders", '{"id": 2}', key="b")
            raise ZeroDivisionError
        self.assertEqual([row[0] for row in self.admin.execute("SELECT id FROM sendoff.event")], [kept])
        self.assertNotEqual(self.enqueue("orders", '{"id": 2}', key="b"), kept, "what was rolled back never was")

    def test_all_that_a_door_takes_arrives_as_it_was_given(self):
        context = base64.b64encode(b'{"custom":{}}').decode()
        text = '{"b" : 1,  "a":"ü"}'
        id = self.application.execute(
            "SELECT sendoff.enqueue('orders', %s, key => 'k', deliver_at => now() + interval '5 min', expires_at => now() + interval '1 hour', "
            "trace_header => 'Root=1', tenant_id => 'blue', client_context => %s)", [text, context]).fetchone()[0]
        row = call(self.connect(), "find", id=id, payload=True)[0]
        self.assertEqual((row.payload.decode(), row.key_value, row.trace, row.tenant, row.context, row.key_source), (text, "k", "Root=1", "blue", context, 2))
        self.assertEqual((row.place, row.due), (2, row.deliver_at))
        self.assertEqual(row.expires_at - row.deliver_at, 55 * 60 * 1000)
        self.application.execute("SET sendoff.trace_header = 'Root=2'")
        id = self.application.execute("SELECT sendoff.enqueue('orders', '{\"a\": 1}'::jsonb)").fetchone()[0]
        row = call(self.connect(), "find", id=id, payload=True)[0]
        self.assertEqual((json.loads(row.payload), row.trace, row.key_source), ({"a": 1}, "Root=2", 7))

    def test_a_repeat_returns_the_first_id_and_daemons_know_the_key_too(self):
        first = self.enqueue("orders", "{}", key="k")
        self.assertEqual(self.enqueue("orders", "{}", key="k"), first)
        self.assertEqual(append(self.connect(), [event(key="k")])[0][1], first)
        conflict = self.refused("23505", "orders", "[]", key="k")
        self.assertIn(str(first), conflict.diag.message_detail)
        self.assertNotEqual(self.enqueue("orders", "{}", key="k", tenant_id="blue"), first)

    def test_what_no_door_takes_is_refused_with_a_reason(self):
        error = self.refused("42704", "ordres", "{}")
        self.assertIn("sendoff.add_function('ordres')", error.diag.message_hint)
        for payload in ["{", "not json", "{} {}"]:
            error = self.refused("22P02", "orders", payload)
            self.assertNotIn(payload, str(error.diag.message_primary), "a payload is in the message")
        self.refused("22004", "orders", None)
        self.refused("54000", "orders", '"' + "x" * 1_048_575 + '"')
        for name in ["", "a b", "a/b", "..", "arn:aws:s3:::bucket", "x" * 257]:
            self.refused(BAD, name, "{}")
        for named in [{"key": ""}, {"key": "x" * 256}, {"key": "a\nb"}, {"trace_header": "ü"}, {"tenant_id": "a,b"}, {"tenant_id": ""}, {"client_context": "%%"},
                      {"client_context": base64.b64encode(b"[]").decode()}, {"client_context": base64.b64encode(b"\xff").decode()}, {"expires_at": "2020-01-01"},
                      {"deliver_at": "infinity"}, {"deliver_at": "2999-01-01"}, {"deliver_at": "2026-12-05", "expires_at": "2026-12-04"}, {"qualifier": "a.b"}]:
            self.refused(BAD, "orders", "{}", **named)
        self.assertEqual(self.count("event"), 0)
        self.assertEqual(self.count("key"), 0)
        value(self.connect(), "set_full", why="outbox.events_max is reached")
        self.refused("53400", "orders", "{}", key="k")
        value(self.connect(), "set_full", why=None)
        self.enqueue("orders", "[]", key="k")

    def test_every_form_of_a_functions_name_leads_to_its_lane(self):
        self.member()  # It tells its own region and account.
        add = lambda name: self.application.execute("SELECT sendoff.add_function(%s)", [name]).fetchone()[0]
        for text, expected in [
            ("orders", "orders"), ("function:orders", "orders"), ("123456789012:function:orders", "orders"), ("123456789012:orders", "orders"),
            ("eu-central-1:123456789012:function:orders", "orders"), ("arn:aws:lambda:eu-central-1:123456789012:function:orders:$LATEST", "orders"),
            ("orders:prod", "orders:prod"), ("orders:7", "orders:7"), ("orders:$LATEST.PUBLISHED", "orders:$LATEST.PUBLISHED"),
            ("210987654321:function:orders", "210987654321/orders"), ("arn:aws:lambda:us-east-1:123456789012:function:orders", "us-east-1/orders"),
            ("arn:aws-cn:lambda:cn-north-1:210987654321:function:orders:1", "cn-north-1/210987654321/orders:1"),
            ("arn:aws-us-gov:lambda:us-gov-west-1:210987654321:function:o", "us-gov-west-1/210987654321/o"),
            ("arn:aws-iso-b:lambda:us-isob-east-1:210987654321:function:o", "us-isob-east-1/210987654321/o"),
            ("function:prod", "prod"), ("a.b_c-D", "a.b_c-D"), ("...", "..."),
        ]:
            self.assertEqual(add(text), expected)
            id = self.enqueue(text, "{}")
            row = call(self.connect(), "find", id=id, payload=False)[0]
            self.assertEqual((row.function, row.address), (expected, None if text == expected else text))
        for text in ["", ":", "a:", "a:b:c", "ä", "a\n", "arn:aws:lambda:eu-central-1:123:function:orders", "orders:$LATESTS", "..:prod", "us-east-1/orders"]:
            with self.assertRaises(psycopg.DatabaseError, msg=text):
                add(text)
        row = call(self.connect(), "find", id=self.enqueue("arn:aws:lambda:us-east-1:123456789012:function:orders", "{}"), payload=False)[0]
        self.assertEqual(row.region, "us-east-1")
        row = call(self.connect(), "find", id=self.enqueue("orders", "{}", qualifier="prod"), payload=False)[0]
        self.assertEqual((row.function, row.address, row.qualifier), ("orders:prod", "orders", "prod"))
        self.refused(BAD, "orders:prod", "{}", qualifier="dev")

    def test_many_at_once_come_back_in_order_and_the_view_takes_rows(self):
        ids = self.application.execute("SELECT sendoff.enqueue_many('orders', ARRAY['1', '2', '3'], ARRAY['z', NULL, 'a'])").fetchone()[0]
        found = [call(self.connect(), "find", id=id, payload=True)[0].payload for id in ids]
        self.assertEqual(found, [b"1", b"2", b"3"])
        with self.assertRaises(psycopg.DatabaseError):
            self.application.execute("SELECT sendoff.enqueue_many('orders', ARRAY['1', '2'], ARRAY['z'])")
        row = self.application.execute("INSERT INTO sendoff.outbox (function, payload, key) VALUES ('orders', '1', 'z') RETURNING id").fetchone()
        self.assertEqual(row.id, ids[0], "a repeat")
        self.application.execute("INSERT INTO sendoff.outbox (function, payload) VALUES ('orders', '4'), ('orders', '5')")
        self.assertEqual(self.count("event"), 5)

    def test_an_application_cannot_move_the_clock(self):
        self.application.execute("SET sendoff.now_ms = '1'")
        id = self.enqueue("orders", "{}")
        self.assertGreater(int.from_bytes(id.bytes[:6], "big"), 1_700_000_000_000)


class Rights(Case):
    def test_applications_and_readers_reach_nothing_else(self):
        for user, granted in [
            ("application", {"enqueue", "enqueue_many", "add_function"}),
            ("viewer", {"_accepted"}),
            ("daemon", None),
        ]:
            connection = self.connect(user)
            callable_ = {row[0] for row in connection.execute(
                "SELECT proname FROM pg_proc WHERE pronamespace = 'sendoff'::regnamespace AND has_function_privilege(oid, 'EXECUTE')")}
            if granted is not None:
                self.assertEqual(callable_, granted, user)
                tables = {row[0] for row in connection.execute(
                    "SELECT relname FROM pg_class WHERE relnamespace = 'sendoff'::regnamespace AND relkind IN ('r', 'p') "
                    "AND has_table_privilege(oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE')")}
                self.assertEqual(tables, set(), user)
        for view in ["functions", "events", "dead_letters", "daemons"]:
            self.connect("viewer").execute(f"SELECT * FROM sendoff.{view}")

    def test_every_function_has_its_settings_and_none_is_open_to_all(self):
        for row in self.admin.execute("SELECT proname, prosecdef, proconfig, proacl::text AS acl, proowner::regrole::text AS owner FROM pg_proc WHERE pronamespace = 'sendoff'::regnamespace"):
            self.assertIsNotNone(row.acl, f"{row.proname}: everybody may call it")
            self.assertNotRegex(row.acl, r"[{,]=X", f"{row.proname}: everybody may call it")
            inner = row.proname.startswith("_") or row.proname in ("lane_id", "lane_tag")
            if row.prosecdef or not inner:
                # Without pg_temp at the end, a caller's own type would run the caller's code with the owner's rights.
                self.assertIn("search_path=pg_catalog, pg_temp", row.proconfig or [], row.proname)
                self.assertIn("enable_seqscan=off", row.proconfig, row.proname)
            self.assertEqual(row.owner, "owner")

    def test_a_callers_own_type_does_not_run_with_the_owners_rights(self):
        self.admin.execute("SELECT sendoff.add_function('orders')")
        application = self.connect("application")
        application.execute("CREATE TEMP TABLE seen (who text)")
        application.execute("CREATE FUNCTION pg_temp.look(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN INSERT INTO pg_temp.seen VALUES (current_user); RETURN true; END $$")
        for name in ["json", "uuid", "bytea", "text"]:
            application.execute(f"CREATE DOMAIN pg_temp.{name} AS pg_catalog.text CHECK (pg_temp.look(VALUE::pg_catalog.text))")
        application.execute("TRUNCATE seen")
        application.execute("SELECT sendoff.enqueue('orders', '{}'::pg_catalog.text)")
        self.assertEqual(application.execute("SELECT who FROM seen WHERE who <> 'application'").fetchall(), [])

    def test_no_call_reads_more_because_there_is_more_also_if_it_was_planned_on_empty_tables(self):
        daemon, application = self.connect(), self.connect("application")
        self.admin.execute("ALTER TABLE sendoff.event SET (autovacuum_enabled = off); ALTER TABLE sendoff.later SET (autovacuum_enabled = off); "
                           "ALTER TABLE sendoff.dead SET (autovacuum_enabled = off)")
        application.execute("SELECT sendoff.add_function('orders')")
        self.admin.execute("VACUUM ANALYZE")
        owner = self.member()
        lane, numbers = lane_id("orders"), iter(range(10**6))

        def calls():
            """Each call once, on events of its own."""
            n = next(numbers)
            yield "append", append(daemon, [event(key=f"{n} {m}") for m in range(20)])
            yield "append repeats", append(daemon, [event(key=f"{n} {m}") for m in range(20)])
            yield "enqueue", application.execute("SELECT sendoff.enqueue('orders', '{}', key => %s)", [f"e{n}"])
            yield "claim", owner.claim()
            yield "news", owner.news()
            recent = self.admin.execute("SELECT max(id::text)::uuid FROM sendoff.event WHERE key_source = 7").fetchone()[0]
            leased, marks = owner.lease(events_max=10, after=recent)
            yield "lease", leased
            ids = [row.id for row in leased]
            yield "settle", owner.settle(done=ids[:4], retry=[(id, 1, 1, b"h") for id in ids[4:8]], bury=[(id, 1) for id in ids[8:]])
            yield "lease due", owner.lease(events_max=2)
            yield "lease buried", owner.lease(which=3, events_max=2)
            yield "lease expired", owner.lease(which=2, cutoff=5, events_max=10)
            yield "settle again", owner.settle(done=ids[4:8], reship=[(id, 2) for id in ids[8:9]], ship=ids[9:])
            yield "find", call(daemon, "find", id=ids[8], payload=False)
            yield "heads", call(daemon, "heads", lanes=[lane], ids=[ids[8]])
            yield "peeks", call(daemon, "peeks", lanes=[lane], due=[True], ship=[True], expiry=[True], oldest=[True], busy=[], reads_max=100, oldest_from=None, due_from=None, expiry_from=None)
            yield "views", owner.call("lane_views", member=owner.id, lanes=None, after=None, lanes_max=10, count_max=100)
            for place in [None, 0, 1, 3]:
                yield f"list {place}", call(daemon, "list", lanes=[lane], after=None, place=place, max=3, reads_max=100)
            yield "letters", call(daemon, "buried", lanes=[lane], after=None, max=3, bytes_max=10**6, payload=True)
            yield "revive", owner.call("revive", member=owner.id, lanes=[lane], ids=[ids[8]], new_ids=[mint("orders")])
            yield "remove", owner.call("remove", member=owner.id, lanes=[lane], ids=[ids[8]], places=[None])
            yield "beat", owner.beat(owner.position.xmin)
            yield "arrivals", value(daemon, "tend_arrivals", max=1000)

        for _ in range(7):
            for _ in calls():
                pass
        self.admin.execute("""
            INSERT INTO sendoff.event (lane, id, bytes, redrives, key_source, key_value, payload)
              SELECT %(lane)s, (lpad(to_hex(n), 32, '0'))::uuid, 200, 0, 7, 'm', '{}' FROM generate_series(1, 40000) n;
            INSERT INTO sendoff.later (lane, due, id, place)
              SELECT %(lane)s, 9223372036854775000, (lpad(to_hex(n), 32, '0'))::uuid, 1 FROM generate_series(1, 20000) n;
            INSERT INTO sendoff.dead (lane, id, due, buried_at, bytes, redrives, key_source, reason, key_value, history, payload)
              SELECT %(lane)s, ('b' || lpad(to_hex(n), 31, '0'))::uuid, 9223372036854775000, 0, 200, 0, 7, 0, 'm', '', '{}' FROM generate_series(1, 20000) n;
            """ % {"lane": lane})
        read, much = self.rows_read(), {}
        for name, _ in calls():
            before, read = read, self.rows_read(daemon, application, owner.connection)
            if read - before > 5_000:
                much[name] = read - before
        self.assertEqual(much, {})

    def rows_read(self, *connections):
        """The rows and index entries that were read in tables that grow, as far as these connections have reported them."""
        if self.admin.info.server_version >= 150000:
            for connection in connections:
                connection.execute("SELECT pg_stat_force_next_flush()")
                connection.execute("SELECT 1")
        self.admin.execute("SELECT pg_stat_clear_snapshot()")
        return int(self.admin.execute(
            "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname IN ('event', 'later', 'dead', 'arrival') OR relname ~ '^key_') "
            "+ (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname IN ('event', 'later', 'dead', 'arrival') OR relname ~ '^key_')").fetchone()[0])

    def test_a_publication_of_all_tables_does_not_stop_deletions(self):
        self.admin.execute("CREATE PUBLICATION everything FOR ALL TABLES")
        append(self.connect(), [event(), event(key="k")])
        owner = self.member()
        leased, _ = owner.lease()
        owner.settle(done=[leased[0].id], bury=[(leased[1].id, 1)])
        owner.settle(ship=[leased[1].id])
        owner.news()
        owner.beat(owner.position.xmin)
        self.assertEqual(value(owner.connection, "tend_arrivals", max=100), 1)

    def test_the_schema_is_made_by_a_login_without_special_rights_and_files_can_be_told_apart(self):
        with connect() as admin:
            admin.execute(f"CREATE DATABASE {self.database}_new OWNER owner")
        try:
            migrate(f"{self.database}_new")
        finally:
            with connect() as admin:
                admin.execute(f"DROP DATABASE {self.database}_new WITH (FORCE)")
        versions = [version for version, _, _ in migrations()]
        self.assertEqual(versions, list(range(1, len(versions) + 1)))

"""Accepting events: keys, repeats, generations, durability."""

import random
import time

import psycopg

from outbox import (BUSY, CONFLICT, NO_BYTES, NO_EVENTS, NO_FUNCTIONS, REPEAT, SDK, Case, Worker, append, blocked, digest, event, lane_id, mint, tag,
                    tend_keys, value)

WINDOW = 86_400_000
START = 1_790_000_000_000


class Append(Case):
    def test_an_event_is_stored_once_and_its_repeat_and_conflict_are_told(self):
        daemon = self.connect()
        first = event(key="k")
        self.assertEqual(append(daemon, [first, event(), event(key="other")]), {})
        answers = append(daemon, [event(key="k"), event(key="k2"), event(key="other", payload=b"[]")])
        self.assertEqual(answers[0], (REPEAT, first["id"]))
        self.assertEqual(answers[2][0], CONFLICT)
        self.assertEqual(self.count("event"), 4)

    def test_a_key_of_an_sdk_and_a_given_one_are_different_keys_also_in_one_batch(self):
        daemon = self.connect()
        both = [event(key="k"), event(key="k", family=SDK)]
        self.assertEqual(append(daemon, both), {})
        again = append(daemon, [event(key="k", family=SDK), event(key="k")])
        self.assertEqual(again, {0: (REPEAT, both[1]["id"]), 1: (REPEAT, both[0]["id"])})

    def test_no_room_leaves_the_key_unknown_and_repeats_need_no_room(self):
        daemon = self.connect()
        first = event(key="k")
        append(daemon, [first])
        answers = append(daemon, [event(key="k"), event(key="a"), event(key="b"), event("new", key="c")], room_events=1, functions_max=1)
        self.assertEqual([answers[n][0] for n in sorted(answers)], [REPEAT, NO_EVENTS, NO_EVENTS])
        self.assertEqual(append(daemon, [event(key="c", payload=b"x" * 1000)], room_bytes=1000)[0][0], NO_BYTES)
        self.assertEqual(append(daemon, [event("new", key="c"), event(key="b")], functions_max=1)[0][0], NO_FUNCTIONS)
        self.assertEqual(self.count("event"), 3)
        self.assertEqual(append(daemon, [event("new", key="c"), event(key="c")]), {})

    def test_ids_tags_digests_and_lanes_are_those_of_the_daemon(self):
        for name in ["orders", "orders:prod", "eu-west-1/123456789012/größe:7"]:
            row = self.admin.execute("SELECT sendoff.lane_id(%(n)s) AS lane, sendoff.lane_tag(%(n)s) AS tag, sendoff._digest(%(n)s, NULL, 'k') AS plain, "
                                     "sendoff._digest(%(n)s, 'blue', 'k') AS tenant, sendoff._mint(%(ms)s, sendoff.lane_tag(%(n)s)) AS id", {"n": name, "ms": START}).fetchone()
            self.assertEqual((row.lane, row.tag, row.plain, row.tenant), (lane_id(name), tag(name), digest(name, "k"), digest(name, "k", "blue")))
            self.assertEqual(row.id.version, 7)
            self.assertEqual(row.id.variant, mint(name).variant)
            self.assertEqual(row.id.bytes[:6], START.to_bytes(6, "big"))
            self.assertEqual(row.id.bytes[14:], tag(name).to_bytes(2, "big"))

    def test_a_key_held_by_an_open_transaction_delays_only_events_with_that_key(self):
        daemon = self.connect()
        self.admin.execute("SELECT sendoff.add_function('orders')")
        holder = self.connect("application")
        holder.autocommit = False
        first = holder.execute("SELECT sendoff.enqueue('orders', '{}', key => 'held')").fetchone()[0]
        batch = [event(key=f"k{n}") for n in range(255)] + [event(key="held")]
        began = time.monotonic()
        with self.assertRaises(psycopg.errors.LockNotAvailable):
            append(daemon, batch)
        self.assertEqual(append(daemon, batch, careful=True), {255: (BUSY, None)})
        self.assertLess(time.monotonic() - began, 5)
        holder.commit()
        self.assertEqual(append(daemon, [event(key="held")]), {0: (REPEAT, first)})

    def test_a_function_that_an_open_transaction_is_adding_delays_only_its_own_events(self):
        daemon, holder = self.connect(), self.connect("application")
        holder.autocommit = False
        holder.execute("SELECT sendoff.add_function('new')")
        self.assertEqual(append(daemon, [event("new"), event("orders")], careful=True), {0: (BUSY, None)})
        holder.rollback()
        self.assertEqual(append(daemon, [event("new")]), {})

    def test_a_repeat_is_answered_when_the_first_is_durable_and_not_before(self):
        self.admin.execute("SELECT sendoff.add_function('orders')")
        application, daemon = self.connect("application"), self.connect()
        # The first calls of a connection write a little by themselves, as they read the catalog.
        for _ in range(8):
            append(daemon, [event(key="before")])
        # The WAL writer of these servers sleeps for 10 s, so this commit stays in memory.
        application.execute("SET synchronous_commit = off")
        application.execute("SELECT sendoff.enqueue('orders', '{}', key => 'k')")
        behind = "SELECT pg_current_wal_insert_lsn() AS written, pg_current_wal_flush_lsn() AS flushed"
        before = self.admin.execute(behind).fetchone()
        self.assertGreater(before.written, before.flushed, "the commit is not flushed, or this test shows nothing")
        self.assertEqual(append(daemon, [event(key="k")])[0][0], REPEAT)
        self.assertTrue(self.admin.execute("SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn", [before.written]).fetchone()[0])

    def test_a_scheduled_event_has_a_row_in_later_and_arrivals_count_both_kinds(self):
        daemon = self.connect()
        now = int(time.time() * 1000)
        events = [event(deliver_at=now + 60_000), event(deliver_at=now - 5), event(expires_at=now + 9_000)]
        append(daemon, events)
        row = self.admin.execute("SELECT * FROM sendoff.arrival").fetchone()
        self.assertEqual((row.n, row.n_later, row.due, row.expiry), (2, 1, now + 60_000, now + 9_000))
        self.assertEqual((row.first, row.last), (min(e["id"] for e in events), max(e["id"] for e in events)))
        self.assertEqual(self.admin.execute("SELECT id, place, due FROM sendoff.later").fetchall(), [(events[0]["id"], 2, now + 60_000)])

    def test_batches_with_the_same_keys_in_any_order_never_wait_for_each_other_in_a_circle(self):
        self.admin.execute("SELECT sendoff.add_function(f) FROM unnest(ARRAY['a', 'b', 'c']) f")

        def work(seed):
            chance, daemon, stored = random.Random(seed), self.connect(), []
            for n in range(60):
                batch = [event(chance.choice("abc"), key=f"{n}-{k}") for k in chance.sample(range(20), 12)]
                try:
                    answers = append(daemon, batch)
                except psycopg.errors.LockNotAvailable:
                    answers = append(daemon, batch, careful=True)
                stored += [(e["function"], e["key"]) for i, e in enumerate(batch) if i not in answers]
            return stored

        workers = [Worker(work, seed) for seed in range(6)]
        stored = [pair for worker in workers for pair in worker.finish()]
        self.assertEqual(len(stored), len(set(stored)), "a key was accepted twice")
        self.assertEqual(self.count("event"), len(stored))


class Generations(Case):
    def setUp(self):
        super().setUp()
        self.clock(START)
        value(self.connect(), "set_windows", given_ms=WINDOW, sdk_ms=WINDOW)
        self.admin.execute("SELECT sendoff.add_function('orders')")

    def test_a_key_is_known_for_its_window_to_the_millisecond_over_changes_of_the_generation(self):
        daemon = self.connect()
        first = event(key="k")
        append(daemon, [first])
        self.admin.execute("DELETE FROM sendoff.event")
        for quarter in range(1, 4):
            self.clock(START + WINDOW * quarter // 4)
            append(daemon, [event(key=f"other {quarter}")])
            tend_keys(daemon)
        self.clock(START + WINDOW - 1)
        tend_keys(daemon)
        self.assertEqual(append(daemon, [event(key="k")]), {0: (REPEAT, first["id"])})
        self.clock(START + WINDOW)
        self.assertEqual(append(daemon, [event(key="k")]), {})

    def test_old_generations_are_emptied_and_the_keys_of_stored_events_are_kept(self):
        daemon = self.connect()
        kept, gone = event(key="kept"), [event(key=f"{n}") for n in range(500)]
        append(daemon, [kept, *gone])
        self.admin.execute("DELETE FROM sendoff.event WHERE id <> %s", [kept["id"]])
        for window in range(1, 7):
            self.clock(START + window * WINDOW)
            self.assertEqual(tend_keys(daemon), "idle")
            append(daemon, [event(key=f"new {window}")])
        self.assertLess(self.count("key"), 20)
        self.assertEqual(append(daemon, [event(key="kept")]), {0: (REPEAT, kept["id"])})
        self.admin.execute("DELETE FROM sendoff.event")
        self.clock(START + 9 * WINDOW)
        tend_keys(daemon)
        self.assertEqual(append(daemon, [event(key="kept")]), {})

    def test_an_open_transaction_with_a_key_holds_back_the_change(self):
        self._one_key_over_changes(gate_first=True)

    def planted_generation_that_is_read_before_the_gate_is_taken(self):
        self._one_key_over_changes(gate_first=False)

    def test_a_transaction_with_an_old_snapshot_that_comes_after_changes_is_seen_by_all(self):
        # Its snapshot is older than two changes of the generation. It inserts where every later caller looks.
        daemon, old = self.connect(), self.connect("application")
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.autocommit = False
        old.execute("SELECT 1")
        append(daemon, [event(key="filler")])
        for window in range(1, 4):
            self.clock_for(daemon, START + window * WINDOW)
            self.assertEqual(tend_keys(daemon), "idle")
            append(daemon, [event(key=f"filler {window}")])
        first = old.execute("SELECT sendoff.enqueue('orders', '{}', key => 'k')").fetchone()[0]
        old.commit()
        self.assertEqual(append(daemon, [event(key="k")]), {0: (REPEAT, first)})

    def test_a_transaction_with_an_old_snapshot_is_told_to_begin_anew_if_its_key_was_used_meanwhile(self):
        daemon, old = self.connect(), self.connect("application")
        old.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        old.autocommit = False
        old.execute("SELECT 1")
        first = event(key="k")
        append(daemon, [first])
        with self.assertRaises(psycopg.errors.SerializationFailure):
            old.execute("SELECT sendoff.enqueue('orders', '{}', key => 'k')")
        old.rollback()
        self.assertEqual(old.execute("SELECT sendoff.enqueue('orders', '{}', key => 'k')").fetchone()[0], first["id"])
        old.rollback()

    def clock_for(self, connection, ms):
        self.admin.execute("UPDATE sendoff.control SET test_clock = true")
        connection.execute("SELECT set_config('sendoff.now_ms', %s, false)", [str(ms)])

    def _one_key_over_changes(self, gate_first):
        """An application reads the generation, stops for a while, and goes on. Meanwhile the keeper tries to change it twice."""
        daemon, keeper, holder = self.connect(), self.connect(), self.connect("application")
        append(daemon, [event(key="filler")])
        tend_keys(daemon)
        take = "LOCK TABLE ONLY sendoff.key IN ROW EXCLUSIVE MODE;"
        self.admin.execute(f"""CREATE OR REPLACE FUNCTION sendoff._gate() RETURNS sendoff.control LANGUAGE plpgsql AS $$
            DECLARE c sendoff.control;
            BEGIN
              {take if gate_first else ""} SELECT * INTO c FROM sendoff.control;
              IF session_user = 'application' THEN PERFORM pg_advisory_xact_lock(42); END IF;
              {take} RETURN c;
            END $$""")
        stop = self.connect("admin")
        stop.execute("SELECT pg_advisory_lock(42)")
        enqueued = Worker(lambda: holder.execute("SELECT sendoff.enqueue('orders', '{}', key => 'k')").fetchone()[0])
        blocked(self.admin)
        answers = []
        for _ in range(2):
            self.admin.execute("UPDATE sendoff.control SET given_ends = 0")
            answers.append(tend_keys(keeper))
            append(daemon, [event(key=f"filler {len(answers)}")])
        stop.execute("SELECT pg_advisory_unlock(42)")
        first = enqueued.finish()
        self.assertEqual(append(daemon, [event(key="k")]), {0: (REPEAT, first)}, "k was accepted twice")
        self.assertEqual(answers, ["busy", "busy"])

    def test_equal_keys_from_all_sides_are_accepted_once_while_generations_change(self):
        stop = []

        def keeper():
            connection, changes, at = self.connect(), 0, START
            while not stop:
                # All ends are past at once, so that generations change as often as they can.
                self.admin_of(connection).execute("UPDATE sendoff.control SET given_ends = 0, gate_ms = 50")
                before = self.current(connection)
                tend_keys(connection)
                changes += before != self.current(connection)
            return changes

        def work(seed):
            chance, accepted = random.Random(seed), []
            connection = self.connect("application" if seed % 2 else "daemon")
            if seed % 4 == 1:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            for n in range(150):
                key = f"{n // 2}-{chance.randrange(3)}"
                try:
                    if seed % 2:
                        with connection.transaction():
                            if seed % 4 == 1:
                                connection.execute("SELECT pg_current_snapshot()")
                            accepted.append((key, connection.execute("SELECT sendoff.enqueue('orders', '{}', key => %s)", [key]).fetchone()[0]))
                    else:
                        mine = event(key=key)
                        answer = append(connection, [mine])
                        accepted.append((key, answer[0][1] if answer else mine["id"]))
                except (psycopg.errors.SerializationFailure, psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
                    pass
            return accepted

        kept = Worker(keeper)
        workers = [Worker(work, seed) for seed in range(8)]
        answers = [pair for worker in workers for pair in worker.finish()]
        stop.append(True)
        changes = kept.finish()
        events = {}
        for key, id in answers:
            events.setdefault(key, set()).add(id)
        twice = {key: ids for key, ids in events.items() if len(ids) > 1}
        self.assertEqual(twice, {})
        self.assertEqual(self.count("event"), len(events))
        self.assertGreater(changes, 3, "the generation hardly changed, so this shows little")

    def admin_of(self, _):
        if not hasattr(self, "_keeper_admin"):
            self._keeper_admin = self.connect("admin")
        return self._keeper_admin

    def current(self, connection):
        return connection.execute("SELECT given_current FROM sendoff.control").fetchone()[0]

"""News, leases and views of lanes."""

import random
import time

from outbox import DEAD, EXPIRED, FRESH, READY, WAITING, Case, Worker, append, call, event, lane_id, mint, value


def ids(rows):
    return [row.id for row in rows]


class News(Case):
    def test_every_committed_transaction_is_told_once_however_late_it_commits_and_none_that_was_rolled_back(self):
        self.admin.execute("SELECT sendoff.add_function('orders')")
        owner = self.member()
        writing = []

        def work(seed):
            chance, connection, committed = random.Random(seed), self.connect("application"), []
            connection.autocommit = False
            for n in range(60):
                kept = [connection.execute("SELECT sendoff.enqueue('orders', '{}')").fetchone()[0]]
                for _ in range(chance.choice([0, 0, 1, 70 if n == 7 else 2])):
                    connection.execute("SAVEPOINT s")
                    inner = connection.execute("SELECT sendoff.enqueue('orders', '{}')").fetchone()[0]
                    if chance.random() < 0.5:
                        connection.execute("ROLLBACK TO s")
                    else:
                        kept.append(inner)
                time.sleep(chance.choice([0, 0, 0.002, 0.03]))
                if chance.random() < 0.3:
                    connection.rollback()
                elif seed == 1 and n % 5 == 0:
                    name = f"{self.database} {n}"
                    connection.execute(f"PREPARE TRANSACTION '{name}'")
                    connection.commit()
                    writing.append(name)
                    committed += kept
                else:
                    connection.commit()
                    committed += kept
            return committed

        late = self.connect("application")
        late.autocommit = False
        committed = [late.execute("SELECT sendoff.enqueue('orders', '{}')").fetchone()[0]]
        told = [row.first for row in owner.news()]
        self.assertEqual(told, [], "it is not committed")
        workers = [Worker(work, seed) for seed in range(4)]
        while any(worker.is_alive() for worker in workers):
            told += [row.first for row in owner.news()]
        for worker in workers:
            committed += worker.finish()
        late.commit()
        for name in writing:
            self.connect("application").execute(f"COMMIT PREPARED '{name}'")
        told += [row.first for row in owner.news()]
        self.assertEqual(sorted(told), sorted(committed))
        self.assertEqual([row.first for row in owner.news()], [])

    def test_arrivals_are_deleted_once_all_owners_of_lanes_were_told_and_not_before(self):
        daemon = self.connect()
        append(daemon, [event()])
        owner = self.member()
        append(daemon, [event()])
        open_one = self.connect("application")
        open_one.autocommit = False
        late = open_one.execute("SELECT sendoff.enqueue('orders', '{}')").fetchone()[0]
        append(daemon, [event()])
        owner.news()
        owner.beat(owner.position.xmin)
        self.assertEqual(value(daemon, "tend_arrivals", max=100), 2, "not those at or after the open transaction")
        open_one.commit()
        self.assertEqual([row.first for row in owner.news()], [late])
        owner.beat(owner.position.xmin)
        self.assertEqual(value(daemon, "tend_arrivals", max=1), 1)
        self.assertEqual(value(daemon, "tend_arrivals", max=100), 1)
        self.assertEqual(self.count("arrival"), 0)


class Leases(Case):
    def setUp(self):
        super().setUp()
        self.owner = self.member(claim=False)
        self.now = int(time.time() * 1000)

    def stored(self, *events):
        append(self.owner.connection, list(events))
        self.owner.claim()
        return [e["id"] for e in events]

    def test_due_ones_come_first_then_ready_ones_in_the_order_of_acceptance(self):
        ready = self.stored(*(event(id=mint("orders", self.now + n)) for n in range(5)))
        self.owner.settle(retry=[(ready[1], WAITING, self.now + 500, b"h1"), (ready[3], WAITING, self.now + 90_000, b"h3")])
        leased, marks = self.owner.lease(now=self.now + 1_000)
        self.assertEqual(ids(leased), [ready[1], ready[0], ready[2], ready[4]])
        self.assertEqual((leased[0].place, leased[0].history, leased[0].due), (WAITING, b"h1", self.now + 500))
        mark = marks[lane_id("orders")]
        self.assertEqual((mark.id, mark.due), (ready[4], 1), "read to the end")
        self.assertEqual(ids(self.owner.lease(which=FRESH, now=self.now + 1_000)[0]), [ready[0], ready[2], ready[4], ready[1]])
        self.assertEqual(ids(self.owner.lease(now=self.now + 1_000, busy=[ready[1], ready[0]], after=ready[0])[0]), [ready[2], ready[4]])

    def test_a_lease_ends_at_its_bytes_and_the_first_event_is_always_taken(self):
        stored = self.stored(*(event(id=mint("orders", self.now + n), payload=b"x" * 100_000) for n in range(4)))
        self.assertEqual(ids(self.owner.lease(bytes_max=1)[0]), stored[:1])
        leased, marks = self.owner.lease(bytes_max=200_000)
        self.assertEqual(ids(leased), stored[:2])
        self.assertEqual(marks[lane_id("orders")].id, stored[1])
        self.assertEqual(leased[0].payload, b"x" * 100_000)

    def test_nothing_is_leased_of_a_paused_lane_or_of_anothers(self):
        self.stored(event())
        value(self.connect(), "pause", function="orders", paused=True)
        self.assertEqual(self.owner.lease()[0], [])
        value(self.connect(), "pause", function="orders", paused=False)
        other = self.member("b")
        self.assertEqual(other.lease()[0], [])
        self.assertEqual(len(self.owner.lease()[0]), 1)

    def test_expired_ones_are_found_whether_due_or_not(self):
        old, scheduled, waiting, own, young = self.stored(
            event(id=mint("orders", self.now - 9_000)), event(id=mint("orders", self.now - 9_000), deliver_at=self.now + 60_000),
            event(id=mint("orders", self.now - 8_000)), event(expires_at=self.now + 5_000), event(id=mint("orders", self.now + 1)))
        self.owner.settle(retry=[(waiting, WAITING, self.now + 60_000, b"h")])
        self.assertEqual(ids(self.owner.lease(which=EXPIRED, cutoff=self.now - 1_000)[0]), sorted([old, waiting]))
        self.assertEqual(set(ids(self.owner.lease(which=EXPIRED, cutoff=0, now=self.now + 5_000)[0])), {own})
        found = self.owner.lease(which=EXPIRED, cutoff=self.now + 60_001, now=self.now)[0]
        self.assertEqual(set(ids(found)), {old, scheduled, waiting, own, young})

    def test_rows_without_an_event_are_passed_over_and_removed(self):
        (wanted,) = self.stored(event())
        self.owner.settle(retry=[(wanted, WAITING, self.now - 1, b"h")])
        self.admin.execute("INSERT INTO sendoff.later SELECT %s, n, gen_random_uuid(), 1 FROM generate_series(1, 100) n", [lane_id("orders")])
        self.assertEqual(ids(self.owner.lease(events_max=1)[0]), [wanted])
        self.assertEqual(self.count("later"), 1)

    def test_a_retry_of_an_event_that_is_gone_leaves_nothing_behind(self):
        (id,) = self.stored(event())
        self.owner.settle(done=[id])
        self.owner.settle(retry=[(id, WAITING, 5, b"h")])
        self.assertEqual((self.count("event"), self.count("later")), (0, 0))

    def test_what_a_lane_has_spent_is_stored_before_the_lease_is_answered_and_never_goes_back_within_its_hour(self):
        self.stored(event())
        for hour, attempts, expected in [(5, 10, (5, 10)), (5, 7, (5, 10)), (6, 1, (6, 1))]:
            self.owner.lease(spent=(hour, attempts))
            lane = self.owner.call("my_lanes", member=self.owner.id)[0]
            self.assertEqual((lane.hour, lane.attempts), expected)

    def test_a_reading_is_bounded_however_many_wait(self):
        """All of a large lane waits. Each lease reads so many rows, and tells where it stopped."""
        append(self.owner.connection, [event()])
        self.owner.claim()
        rows = 60_000
        # Also on analysed tables, where the planner thinks of hashing and sorting all of it.
        self.admin.execute("""
            WITH e AS (INSERT INTO sendoff.event (lane, id, bytes, redrives, key_source, key_value, payload)
              SELECT %s, (lpad(to_hex(n), 32, '0'))::uuid, 200, 0, 7, 'm', '{}' FROM generate_series(1, %s) n RETURNING lane, id)
            INSERT INTO sendoff.later (lane, due, id, place) SELECT lane, 9223372036854775000, id, 1 FROM e""", [lane_id("orders"), rows])
        self.admin.execute("ANALYZE sendoff.event, sendoff.later")
        self.owner.lease()
        before = self.buffers()
        leased, marks = self.owner.lease()
        self.assertEqual((ids(leased), marks[lane_id("orders")].due), ([], 0))
        self.assertLess(self.buffers() - before, 30_000, "it read more than it may")
        after, found = None, []
        for _ in range(rows // 2000 + 1):
            found, marks = self.owner.lease(after=after)
            after = marks[lane_id("orders")].id
        self.assertEqual((len(found), marks[lane_id("orders")].due), (1, 1), "the cursor reaches the one that is ready")

    def buffers(self):
        """The pages that all connections have looked at. Both of this test report first: a late report of the rows' INSERT would count as the lease's."""
        report = "SELECT pg_stat_clear_snapshot()" if self.admin.info.server_version < 150000 else "SELECT pg_stat_force_next_flush()"
        for connection in (self.admin, self.owner.connection):
            connection.execute(report)
        return self.admin.execute("SELECT sum(heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read) FROM pg_statio_user_tables "
                                  "WHERE schemaname = 'sendoff' AND relname IN ('event', 'later')").fetchone()[0]

    def test_views_count_by_state_and_tell_their_snapshot(self):
        stored = self.stored(*(event(id=mint("orders", self.now + n)) for n in range(4)), event(deliver_at=self.now + 60_000, expires_at=self.now + 70_000))
        self.owner.settle(retry=[(stored[0], WAITING, self.now + 5, b"h")], bury=[(stored[1], self.now + 6)])
        view = self.owner.call("lane_views", member=self.owner.id, lanes=None, after=None, lanes_max=10, count_max=100)[0]
        self.assertEqual((view.function, view.n, view.waiting, view.scheduled, view.buried, view.whole), ("orders", 4, 1, 1, 1, True))
        self.assertEqual((view.due, view.ship, view.expiry), (self.now + 5, self.now + 6, self.now + 70_000))
        self.assertEqual(view.bytes + view.buried_bytes, sum(row[0] for row in self.admin.execute("SELECT bytes FROM sendoff.event UNION ALL SELECT bytes FROM sendoff.dead")))
        self.assertFalse(self.owner.call("lane_views", member=self.owner.id, lanes=None, after=None, lanes_max=10, count_max=4)[0].whole)
        peek = self.owner.call("peeks", lanes=[lane_id("orders")], due=[True], ship=[True], expiry=[True], oldest=[True], busy=[stored[0]], reads_max=100,
                               oldest_from=[stored[0]], due_from=None, expiry_from=None)[0]
        self.assertEqual((peek.due, peek.ship, peek.expiry, peek.oldest), (self.now + 60_000, self.now + 6, self.now + 70_000, stored[0]))

    def test_operators_find_list_remove_and_revive(self):
        stored = self.stored(*(event(id=mint("orders", self.now + n), payload=b"[1]") for n in range(5)))
        lane = lane_id("orders")
        self.owner.settle(retry=[(stored[1], WAITING, self.now + 9_000, b"h")], bury=[(stored[2], self.now)])
        daemon = self.owner.connection
        found = call(daemon, "find", id=stored[2], payload=False)[0]
        self.assertEqual((found.function, found.place, found.payload_bytes, found.payload), ("orders", DEAD, 3, None))
        page = call(daemon, "list", lanes=[lane], after=None, place=None, max=3, reads_max=1000)
        self.assertEqual(([r.id for r in page], [r.place for r in page]), (stored[:3], [READY, WAITING, DEAD]))
        page = call(daemon, "list", lanes=[lane], after=stored[2], place=None, max=3, reads_max=1000)
        self.assertEqual(ids(page), stored[3:])
        self.assertEqual(ids(call(daemon, "list", lanes=[lane], after=None, place=WAITING, max=9, reads_max=1000)), [stored[1]])
        self.assertEqual(ids(call(daemon, "buried", lanes=[lane], after=None, max=9, bytes_max=10**6, payload=True)), [stored[2]])
        new = mint("orders")
        self.assertEqual(self.owner.call("revive", member=self.owner.id, lanes=[lane], ids=[stored[2]], new_ids=[new])[0][0], [stored[2]])
        self.assertEqual(call(daemon, "find", id=new, payload=True)[0].redrives, 1)
        removed = self.owner.call("remove", member=self.owner.id, lanes=[lane] * 2, ids=[stored[0], stored[1]], places=[WAITING, None])
        self.assertEqual([(r.id, r.place) for r in removed], [(stored[1], WAITING)])
        self.assertEqual((self.count("event"), self.count("later")), (4, 0))

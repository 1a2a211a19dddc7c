"""Who owns lanes, and who may settle."""

import random
import socket
import struct
import time

import psycopg

from outbox import WAITING, Case, Member, Worker, append, blocked, call, event, lane_id, mint, value, wait_until


class Members(Case):
    def stored(self, *events):
        append(self.connect(), list(events))
        return [e["id"] for e in events]

    def test_a_settlement_is_repeated_without_harm(self):
        ids = self.stored(*(event() for _ in range(3)))
        owner = self.member()
        for _ in range(3):
            self.assertEqual(owner.settle(done=[ids[0]], retry=[(ids[1], WAITING, 9, b"h")], bury=[(ids[2], 7)], proven=["orders"]), [])
        self.assertEqual((self.count("event"), self.count("later"), self.count("dead")), (1, 1, 1))
        for _ in range(2):
            self.assertEqual(owner.settle(reship=[(ids[2], 12)]), [])
            self.assertEqual(owner.settle(ship=[ids[2]]), [])
        self.assertEqual(self.count("dead"), 0)

    def test_lanes_of_others_are_named_and_nothing_is_written_for_them(self):
        (id,) = self.stored(event())
        owner, other = self.member(), self.member("b")
        self.assertEqual(other.settle(done=[id]), [lane_id("orders")])
        self.assertEqual(self.count("event"), 1)
        self.assertEqual(owner.settle(done=[id]), [])

    def test_a_fenced_member_settles_nothing_and_its_lanes_are_free_at_once(self):
        (id,) = self.stored(event())
        owner, other = self.member(), self.member("b")
        beat = next(row.beat for row in other.beat() if row.id == owner.id)
        owner.beat()
        self.assertFalse(other.call("fence", me=other.id, id=owner.id, beat=beat)[0][0], "its beat has moved")
        self.assertTrue(other.call("fence", me=other.id, id=owner.id, beat=beat + 1)[0][0])
        for act in [lambda: owner.settle(done=[id]), owner.beat, owner.claim]:
            with self.assertRaises(psycopg.DatabaseError) as refused:
                act()
            self.assertEqual((refused.exception.sqlstate, refused.exception.diag.message_detail), ("SO001", "fenced"))
        self.assertEqual(other.claim(), ["orders"])
        self.assertEqual(other.settle(done=[id]), [])

    def test_a_takeover_waits_for_settlements_under_way_and_none_commits_after_it(self):
        (id,) = self.stored(event())
        owner, other = self.member(), self.member("b")
        slow = self.connect()
        slow.autocommit = False
        settling = Member(slow, "a")
        settling.id = owner.id
        settling.settle(retry=[(id, WAITING, 5, b"first")])
        # It waits for the open settlement; a settlement that comes now waits behind it.
        fence = Worker(lambda: other.call("fence", me=other.id, id=owner.id, beat=0)[0][0])
        blocked(self.admin)
        late = Worker(lambda: owner.settle(done=[id]))
        blocked(self.admin, 2)
        slow.commit()
        self.assertTrue(fence.finish())
        with self.assertRaises(psycopg.DatabaseError) as refused:
            late.finish()
        self.assertEqual(refused.exception.sqlstate, "SO001")
        self.assertEqual((self.count("event"), self.count("later")), (1, 1))

    def test_a_settlement_that_was_cut_off_in_the_middle_does_not_stop_a_takeover(self):
        (id,) = self.stored(event())
        owner, other = self.member(), self.member("b")
        cut = self.connect()
        cut.execute("SELECT 1")
        # As if the end of the client's message never came: the server has run the statement and waits for the Sync.
        statement = f"SELECT pg_advisory_xact_lock_shared({owner.id})".encode()
        parse = struct.pack("!i", 4 + 1 + len(statement) + 1 + 2) + b"\0" + statement + b"\0" + b"\0\0"
        bind = struct.pack("!i", 4 + 1 + 1 + 2 + 2 + 2) + b"\0\0" + b"\0" * 6
        execute = struct.pack("!i", 4 + 1 + 4) + b"\0" + b"\0" * 4
        flush = struct.pack("!i", 4)
        wire = socket.socket(fileno=cut.fileno())
        wire.setblocking(True)
        wire.sendall(b"P" + parse + b"B" + bind + b"E" + execute + b"H" + flush)
        wait_until(lambda: self.admin.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted").fetchone()[0])
        began = time.monotonic()
        self.assertTrue(other.call("fence", me=other.id, id=owner.id, beat=0)[0][0])
        self.assertLess(time.monotonic() - began, 6)
        wire.detach()

    def test_no_event_is_settled_by_two_members_however_they_freeze_and_fence_each_other(self):
        stored = self.stored(*(event(f"f{n % 5}") for n in range(400)))
        functions = [f"f{n}" for n in range(5)]

        def work(seed):
            chance, settled, joined = random.Random(seed), [], 0
            while self.count_by(seed) and joined < 40:
                member = Member(self.connect(), f"{seed} {joined}")
                member.join()
                joined += 1
                seen = {}
                try:
                    while self.count_by(seed):
                        for row in member.beat():
                            beat, since = seen.get(row.id, (None, 0))
                            if beat != row.beat:
                                seen[row.id] = (row.beat, time.monotonic())
                            elif row.id != member.id and time.monotonic() - since > 0.05:
                                member.call("fence", me=member.id, id=row.id, beat=beat)
                        member.claim()
                        leased, _ = member.lease(functions, events_max=4)
                        if chance.random() < 0.3:
                            time.sleep(0.1)  # Frozen, with events in flight.
                        for function in functions:
                            mine = [row.id for row in leased if row.lane == lane_id(function)]
                            if mine and not member.settle(done=mine, function=function):
                                settled += [(id, member.id) for id in mine]
                except psycopg.DatabaseError as failure:
                    # The lock: two fence each other at once, and each holds what the other waits for.
                    if failure.sqlstate not in ("SO001", "55P03"):
                        raise
            return settled

        self._counters = [self.connect() for _ in range(3)]
        settled = [pair for worker in [Worker(work, seed) for seed in range(3)] for pair in worker.finish()]
        owners = {}
        for id, member in settled:
            owners.setdefault(id, set()).add(member)
        self.assertEqual({id: members for id, members in owners.items() if len(members) > 1}, {}, "settled by two")
        self.assertEqual(sorted(owners), sorted(stored))

    def count_by(self, nth):
        return self._counters[nth].execute("SELECT count(*) FROM sendoff.event").fetchone()[0]

    def test_a_copy_of_a_settlement_from_an_older_connection_is_refused(self):
        (id,) = self.stored(event())
        owner = self.member()
        session = owner.call("new_session", member=owner.id)[0][0]
        owner.settle(retry=[(id, WAITING, 50, b"second")], session=session)
        with self.assertRaises(psycopg.DatabaseError) as refused:
            owner.settle(retry=[(id, WAITING, 5, b"first")], session=session - 1)
        self.assertEqual(refused.exception.sqlstate, "SO002")
        self.assertEqual(self.admin.execute("SELECT due FROM sendoff.later").fetchone()[0], 50)

    def test_calls_whose_snapshot_may_be_older_than_their_lock_are_refused(self):
        owner = self.member()
        owner.connection.execute("SET default_transaction_isolation = 'repeatable read'")
        for act in [owner.settle, owner.beat, owner.claim, lambda: append(owner.connection, [event()]), owner.news]:
            with self.assertRaises(psycopg.DatabaseError) as refused:
                act()
            self.assertEqual(refused.exception.sqlstate, "SO003")

    def test_a_name_is_taken_over_only_from_a_member_whose_beat_stands_still(self):
        self.stored(event())
        first = self.member()
        second = Member(self.connect(), "a")
        there = second.join()
        self.assertEqual((there.joined, there.other), (False, first.id))
        first.beat()
        self.assertFalse(second.join(there.other, there.other_beat).joined, "it lives")
        there = second.join()
        self.assertTrue(second.join(there.other, there.other_beat).joined)
        self.assertEqual(second.claim(), ["orders"])
        with self.assertRaises(psycopg.DatabaseError) as refused:
            first.beat()
        self.assertEqual(refused.exception.diag.message_detail, "replaced")

    def test_one_member_owns_all_lanes_and_lets_them_go_when_it_leaves(self):
        self.stored(event("a"), event("b"))
        first, second = self.member(claim=False), self.member("b", claim=False)
        claims = [Worker(member.claim) for member in (first, second)]
        self.assertEqual(sorted(len(claim.finish()) for claim in claims), [0, 2])
        self.stored(event("c"))
        owner, other = (first, second) if first.position and len(first.call("my_lanes", member=first.id)) else (second, first)
        self.assertEqual(other.claim(), [])
        self.assertEqual(owner.claim(), ["c"])
        self.assertEqual(owner.call("release", member=owner.id, lanes=[lane_id("a")])[0][0], 1)
        owner.call("leave", member=owner.id)
        self.assertEqual(sorted(other.claim()), ["a", "b", "c"])

    def test_a_daemon_can_tell_what_server_it_has(self):
        self.stored(event())
        stats = call(self.member().connection, "stats")[0]
        self.assertEqual((stats.members, stats.lanes, stats.in_recovery, stats.fsync, stats.copied), (1, 1, False, "off", False))
        self.assertGreater(stats.disk_bytes, 8192)

    def test_a_daemon_of_another_realm_is_refused(self):
        self.member()
        with self.assertRaises(psycopg.DatabaseError) as refused:
            Member(self.connect(), "b").join(realm="us-east-1")
        self.assertEqual(refused.exception.sqlstate, "SO004")

    def test_the_key_of_an_event_that_left_late_is_remembered_from_then_on(self):
        start, window = 1_790_000_000_000, 86_400_000
        self.clock(start)
        stored = event(key="k")
        append(self.connect(), [stored])
        owner = self.member()
        self.clock(start + window * 3)
        owner.settle(done=[stored["id"]], outlive=[(0, stored["digest"], stored["id"])])
        self.clock(start + window * 4 - 1)
        self.assertEqual(append(owner.connection, [event(key="k")])[0][1], stored["id"])
        self.clock(start + window * 4)
        self.assertEqual(append(owner.connection, [event(key="k")]), {})

    def test_keys_are_forgotten_and_taken_over_as_operators_ask(self):
        owner = self.member(claim=False)
        stored = event(key="k")
        append(owner.connection, [stored])
        arguments = {"families": [0], "digests": [stored["digest"]]}
        self.assertEqual(value(owner.connection, "forget", firsts=[mint("orders")], **arguments), 0)
        again = mint("orders")
        value(owner.connection, "remember_again", ids=[again], prints=[stored["digest"]], **arguments)
        self.assertEqual(append(owner.connection, [event(key="k")])[0][1], stored["id"], "its event is stored")
        self.admin.execute("DELETE FROM sendoff.event")
        value(owner.connection, "forget", firsts=[stored["id"]], **arguments)
        value(owner.connection, "remember_again", ids=[again], prints=[event()["id"]], **arguments)
        self.assertEqual(append(owner.connection, [event(key="k")])[0][1], again)

    def test_a_logical_copy_forgets_what_was_told_and_who_lived(self):
        self.stored(event())
        owner = self.member()
        self.assertFalse(value(owner.connection, "adopt_copy"))
        self.admin.execute("UPDATE sendoff.control SET system_id = system_id + 1")
        self.assertTrue(value(owner.connection, "adopt_copy"))
        self.assertEqual(self.count("arrival"), 0)
        self.assertEqual(self.member("b").call("my_lanes", member=owner.id), [])

"""Questions of daemons to each other."""

import psycopg

from outbox import Case, append, call, event, lane_id, value


class Commands(Case):
    def ask(self, asker, member, id, wait_ms=5000, question='"census"'):
        return value(asker.connection, "ask", id=id, asker=asker.id, member=member.id, wait_ms=wait_ms, question=question)

    def asked(self, member, max=16):
        return call(member.connection, "asked", member=member.id, max=max)

    def answered(self, asker, id):
        rows = call(asker.connection, "answered", id=id)
        return (rows[0].taken, rows[0].alive, rows[0].answer) if rows else None

    def test_a_question_is_told_by_the_news_taken_once_and_its_answer_is_read_once(self):
        owner, other = self.member(), self.member("b")
        self.assertTrue(self.ask(other, owner, 7))
        told = call(owner.connection, "news", **{"from": owner.position.xmax, "open": owner.position.open, "member": owner.id})
        self.assertTrue(told[0].asked)
        self.assertFalse(call(other.connection, "news", **{"from": owner.position.xmax, "open": owner.position.open, "member": other.id})[0].asked)
        self.assertEqual(self.answered(other, 7), (False, True, None))
        self.assertEqual([(row.id, row.question) for row in self.asked(owner)], [(7, '"census"')])
        self.assertEqual(self.asked(owner), [])
        self.assertEqual(self.answered(other, 7), (True, True, None))
        call(owner.connection, "answer", id=7, answer="[]")
        self.assertEqual(self.answered(other, 7), (True, True, "[]"))
        self.assertIsNone(self.answered(other, 7))

    def test_a_question_that_was_withdrawn_or_whose_time_is_over_is_taken_by_nobody(self):
        owner, other = self.member(), self.member("b")
        self.ask(other, owner, 1)
        self.assertTrue(value(other.connection, "withdraw", id=1))
        self.ask(other, owner, 2, wait_ms=-1)
        self.assertEqual(self.asked(owner), [])
        self.ask(other, owner, 3)
        self.asked(owner)
        self.assertFalse(value(other.connection, "withdraw", id=3), "it is being carried out")

    def test_the_dead_are_not_asked_and_whoever_waits_for_one_is_told(self):
        owner, other = self.member(), self.member("b")
        self.ask(other, owner, 1)
        call(owner.connection, "leave", member=owner.id)
        self.assertEqual(self.answered(other, 1), (False, False, None))
        self.assertFalse(self.ask(other, owner, 2))

    def test_owners_are_the_living_of_lanes_that_are_shown(self):
        append(self.connect(), [event("a"), event("b"), event("c")])
        owner = self.member()
        append(self.connect(), [event("new")])
        self.admin.execute("UPDATE sendoff.lane SET retired = true WHERE function = 'c'")
        owners = call(owner.connection, "owners", lanes=[lane_id(f) for f in ("a", "c", "new", "unknown")])
        self.assertEqual({row.lane: row.name for row in owners}, {lane_id("a"): "a", lane_id("new"): None})

    def test_old_questions_are_tidied_away(self):
        owner, other = self.member(), self.member("b")
        self.clock(1_000_000_000_000)
        self.ask(other, owner, 1)
        self.clock(1_000_000_070_000)
        call(other.connection, "tend_members")
        self.assertEqual(self.count("command"), 0)

    def test_applications_and_viewers_may_not_ask(self):
        for user in ["application", "viewer"]:
            with self.assertRaises(psycopg.DatabaseError) as refused:
                self.connect(user).execute("SELECT sendoff.ask(1, 1, 1, 1, '')")
            self.assertEqual(refused.exception.sqlstate, "42501")


class Draining(Case):
    def test_a_member_that_drains_claims_nothing_and_others_may_take_what_it_gives_back(self):
        append(self.connect(), [event("a"), event("b")])
        owner, other = self.member(), self.member("b")
        self.assertEqual(other.claim(), [])
        call(owner.connection, "drain", member=owner.id)
        call(owner.connection, "release", member=owner.id, lanes=[lane_id("a")])
        self.assertEqual(owner.claim(), [])
        self.assertEqual(other.claim(), ["a"])
        self.assertEqual(sorted((row.name, row.draining, row.lanes) for row in other.beat()), [("a", True, 1), ("b", False, 1)])
        shown = self.connect("viewer").execute("SELECT draining, functions FROM sendoff.daemons WHERE name = 'a'").fetchone()
        self.assertEqual(tuple(shown), (True, 1))

    def test_the_owner_of_a_lane_is_told_of_dead_letters_that_others_import(self):
        append(self.connect(), [event("orders")])
        owner, other = self.member(), self.member("b")
        owner.news()
        lane = lane_id("orders")
        for importer, told in [(other, [(lane, 0, 0)]), (owner, [])]:
            imported = event("orders")
            call(importer.connection, "import", member=importer.id, room_events=10, room_bytes=10**9, functions_max=10, functions=["orders"], lanes=[lane], fn=[1],
                 id=[imported["id"]], deliver_at=[None], expires_at=[None], redrives=[0], key_source=[7], key_value=["minted"], address=[None], qualifier=[None],
                 region=[None], trace=[None], context=[None], tenant=[None], durable=[None], payload=[b"{}"], due=[0], buried_at=[0], reason=[0], history=[b"{}"])
            self.assertEqual([(row.lane, row.n, row.n_later) for row in owner.news()], told)

"""What became of events: any daemon keeps it, any daemon finds it, and it takes bounded room."""

import uuid

from outbox import Case


def value(connection, statement, *values):
    return connection.execute(statement, values).fetchone()[0]


class Ended(Case):
    def setUp(self):
        super().setUp()
        self.daemon = self.connect()

    def keep(self, *ends):
        self.daemon.execute("SELECT sendoff.keep_ended(%s::uuid[], %s::bytea[])", ([id for id, _ in ends], [record for _, record in ends]))

    def find(self, id):
        return value(self.connect(), "SELECT sendoff.find_ended(%s)", id)

    def turn(self, age_ms, size=1 << 40):
        return value(self.daemon, "SELECT sendoff.turn_ended(%s, %s)", age_ms, size)

    def test_the_latest_record_of_an_event_is_found_by_any_daemon(self):
        first, second = uuid.uuid4(), uuid.uuid4()
        self.keep((first, b"one"), (second, b"two"))
        self.assertEqual((self.find(first), self.find(second), self.find(uuid.uuid4())), (b"one", b"two", None))
        self.keep((first, b"later"))
        self.assertEqual(self.find(first), b"later")
        self.turn(0)
        self.assertTrue(self.turn(0))
        self.assertEqual(self.find(first), b"later", "of the generation before")
        self.keep((first, b"latest"))
        self.assertEqual(self.find(first), b"latest")
        self.assertTrue(self.turn(0))
        self.assertEqual((self.find(first), self.find(second)), (b"latest", None), "the oldest generation is gone")

    def test_a_generation_ends_by_age_or_by_size_and_waits_for_nobody(self):
        self.assertFalse(self.turn(0), "the first call sets its beginning")
        self.assertFalse(self.turn(3_600_000))
        self.keep(*((uuid.uuid4(), b"x" * 100) for _ in range(2_000)))
        self.assertFalse(self.turn(3_600_000, 10 << 20))
        self.assertTrue(self.turn(3_600_000, 100_000))
        self.keep((uuid.uuid4(), b"y"))
        reader = self.connect()
        with reader.transaction():
            reader.execute("SELECT count(*) FROM sendoff.ended_0")
            self.assertFalse(self.turn(0), "somebody reads what would be emptied")
        self.assertTrue(self.turn(0))
        self.assertEqual(value(self.daemon, "SELECT count(*) FROM sendoff.ended_0"), 0)

    def test_it_does_not_wait_for_the_disk_and_others_do(self):
        id = uuid.uuid4()
        with self.daemon.transaction():
            self.daemon.execute("SELECT sendoff.keep_ended(%s::uuid[], %s::bytea[])", ([id], [b"x"]))
            self.assertEqual(value(self.daemon, "SHOW synchronous_commit"), "off")
        self.assertEqual(value(self.daemon, "SHOW synchronous_commit"), "on")

    def test_only_daemons_see_it(self):
        for user in ["application", "viewer"]:
            for statement in ["SELECT * FROM sendoff.ended_0", f"SELECT sendoff.find_ended('{uuid.uuid4()}')"]:
                with self.assertRaises(Exception, msg=statement) as refused:
                    self.connect(user).execute(statement)
                self.assertIn("permission denied", str(refused.exception))

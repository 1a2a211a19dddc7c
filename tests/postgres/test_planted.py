"""The checks that guard a promise find a bug that breaks it."""

import unittest

import outbox
import test_append
import test_commands
import test_members
import test_reading


def replaced(function, arguments, returns, body):
    return f"CREATE OR REPLACE FUNCTION sendoff.{function}({arguments}) RETURNS {returns} LANGUAGE plpgsql AS $$ BEGIN {body} END $$"


# The name of a check, and the bug that it must find.
PLANTED = [
    (test_append.Append, "test_a_repeat_is_answered_when_the_first_is_durable_and_not_before",
     replaced("_write_something", "", "void", "PERFORM pg_current_xact_id();")),
    (test_append.Generations, "planted_generation_that_is_read_before_the_gate_is_taken", None),
    (test_append.Generations, "test_old_generations_are_emptied_and_the_keys_of_stored_events_are_kept",
     replaced("_carry", "p_from smallint, p_to smallint, p_page bigint, p_pages bigint, p_until bigint", "void", "")),
    (test_members.Members, "test_a_takeover_waits_for_settlements_under_way_and_none_commits_after_it",
     replaced("_mine", "p_member bigint, p_session bigint", "void", "")),
    (test_members.Members, "test_a_copy_of_a_settlement_from_an_older_connection_is_refused",
     replaced("_mine", "p_member bigint, p_session bigint", "void", "")),
    (test_members.Members, "test_a_settlement_that_was_cut_off_in_the_middle_does_not_stop_a_takeover",
     replaced("_exclude", "p_member bigint", "void", "PERFORM pg_advisory_xact_lock(p_member);")),
    (test_commands.Commands, "test_a_question_that_was_withdrawn_or_whose_time_is_over_is_taken_by_nobody",
     replaced("withdraw", "p_id bigint", "boolean", "RETURN true;")),
    (test_commands.Commands, "test_the_dead_are_not_asked_and_whoever_waits_for_one_is_told",
     replaced("leave", "p_member bigint", "void", "UPDATE sendoff.lane SET owner = NULL WHERE owner = p_member;")),
    # A reader that remembers only where it was, and not who was open then.
    (test_reading.News, "test_every_committed_transaction_is_told_once_however_late_it_commits_and_none_that_was_rolled_back",
     "ALTER TABLE sendoff.arrival RENAME TO arrivals; CREATE VIEW sendoff.arrival AS SELECT * FROM sendoff.arrivals "
     "WHERE xid >= pg_snapshot_xmin(pg_current_snapshot())::text::bigint - 3; GRANT ALL ON sendoff.arrival TO sendoff_daemon"),
    (test_reading.Leases, "test_rows_without_an_event_are_passed_over_and_removed",
     "CREATE FUNCTION sendoff.keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; "
     "CREATE TRIGGER keep BEFORE DELETE ON sendoff.later FOR EACH ROW EXECUTE FUNCTION sendoff.keep()"),
]


class Planted(unittest.TestCase):
    def setUp(self):
        patience, outbox.PATIENCE = outbox.PATIENCE, 2
        self.addCleanup(setattr, outbox, "PATIENCE", patience)

    def test_a_planted_bug_is_found(self):
        for check, name, bug in PLANTED:
            test, result = check(name), unittest.TestResult()
            test.planted = bug
            test.run(result)
            self.assertEqual(result.testsRun, 1)
            self.assertFalse(result.wasSuccessful(), f"{name} does not find its bug")

"""Runs the tests of the SQL on one server: run.py BINARIES [NAME ...]. NAME is a part of a test's name."""

import os
import pathlib
import sys
import unittest

import outbox
from server import server

if __name__ == "__main__":
    binaries, *names = sys.argv[1:]
    # Without fsync, the tests of durability look at what PostgreSQL has flushed by its own account.
    with server(pathlib.Path(binaries), ["fsync=off", "deadlock_timeout=1s", "max_prepared_transactions=10", "wal_writer_delay=10s"]) as address:
        outbox.ADDRESS.update(address)
        os.environ["BINARIES"] = binaries
        outbox.prepare()
        loader = unittest.TestLoader()
        loader.testNamePatterns = [f"*{name}*" for name in names] or None
        suite = loader.discover(str(pathlib.Path(__file__).parent), "test_*.py")
        result = unittest.TextTestRunner(verbosity=2).run(suite)
        if not result.testsRun:
            sys.exit("no test has such a name")
        sys.exit(not result.wasSuccessful())

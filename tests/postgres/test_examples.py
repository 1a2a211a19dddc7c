"""The examples of docs/transactional-outbox.md, as they are printed there."""

import os
import pathlib
import re
import subprocess
import sys
import unittest

from outbox import ADDRESS, Case, call

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/transactional-outbox.md").read_text()


def block(kind, name):
    (found,) = re.findall(rf"^```{kind} {name}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return found


class Examples(Case):
    def setUp(self):
        super().setUp()
        self.admin.execute("CREATE TABLE orders (id int PRIMARY KEY, total int); GRANT ALL ON orders TO application")
        self.connect("application").execute("SELECT sendoff.add_function('orders')")

    def run_it(self, command, text, user="application", **options):
        environment = {**os.environ, "PGHOST": ADDRESS["host"], "PGPORT": str(ADDRESS["port"]), "PGUSER": user, "PGDATABASE": self.database}
        done = subprocess.run(command, input=text, text=True, capture_output=True, env=environment, **options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def expect(self, key):
        id, = self.admin.execute("SELECT id FROM sendoff.event").fetchone()
        self.assertEqual(call(self.connect(), "find", id=id, payload=False)[0].key_value, key)
        self.assertEqual(self.admin.execute("SELECT count(*) FROM orders").fetchone()[0], 1)

    def psql(self, text, user="application"):
        return self.run_it([os.path.join(os.environ["BINARIES"], "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"], text, user)

    def test_psql(self):
        self.psql(block("sql", "enqueue"))
        self.expect("order-42")
        self.assertIn("1 row", self.psql(block("sql", "outbox")))
        shown = self.psql(block("sql", "read"), "viewer")
        self.assertRegex(shown, r"orders +\| ready +\| +2")

    def test_python(self):
        self.run_it([sys.executable, "-"], block("python", "enqueue"))
        self.expect("order-43")

    @unittest.skipUnless("NODE" in os.environ, "no Node.js")
    def test_node(self):
        self.run_it([os.environ["NODE"], "--input-type=module"], block("js", "enqueue"), cwd=ROOT / "tests/js")
        self.expect("order-44")

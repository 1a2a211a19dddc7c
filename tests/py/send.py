"""Invokes functions with boto3, as an application does that calls again until it is told 202.

usage: send.py ENDPOINT_URL THREADS, jobs on a file named by JOBS: one {"function", "payload"} a line.
Writes one line for each accepted event: {"id": the payload's id, "event_id": what sendoff answered}.
"""

import concurrent.futures
import json
import os
import sys
import threading
import time

import boto3
import botocore.config
import botocore.exceptions

PATIENCE_SECONDS = 60

endpoint_url, threads = sys.argv[1], int(sys.argv[2])
client = boto3.client(
    "lambda",
    endpoint_url=endpoint_url,
    config=botocore.config.Config(connect_timeout=2, read_timeout=10, max_pool_connections=threads),
)
writing = threading.Lock()


def send(job):
    begun = time.monotonic()
    while True:
        try:
            answer = client.invoke(
                FunctionName=job["function"], InvocationType="Event", Payload=json.dumps(job["payload"])
            )
        except (botocore.exceptions.ClientError, botocore.exceptions.HTTPClientError) as why:
            if time.monotonic() - begun > PATIENCE_SECONDS:
                raise
            print(f"call again: {type(why).__name__}: {why}", file=sys.stderr)
            time.sleep(0.05)
            continue
        assert answer["StatusCode"] == 202, answer
        assert answer["Payload"].read() == b"", answer
        event_id = answer["ResponseMetadata"]["RequestId"]
        with writing:
            print(json.dumps({"id": job["payload"]["id"], "event_id": event_id}), flush=True)
        return


with open(os.environ["JOBS"], encoding="utf-8") as file:
    jobs = [json.loads(line) for line in file]
with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    for done in [pool.submit(send, job) for job in jobs]:
        done.result()
print("all accepted", flush=True)

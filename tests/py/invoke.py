"""Calls Lambda with boto3 as each case says, and writes what the caller is shown.

usage: invoke.py ENDPOINT_URL, cases on stdin: one {"name", "operation", "args"} a line, the arguments as boto3 has them, but
"Payload" as text, or as a number of bytes to be made up. Writes one {"name", "shown"} a line.
"""

import base64
import json
import re
import sys

import boto3
import botocore.config
import botocore.exceptions

client = boto3.client("lambda", endpoint_url=sys.argv[1], config=botocore.config.Config(parameter_validation=False))


def call(operation, args):
    if isinstance(args.get("Payload"), int):
        args["Payload"] = '"' + "x" * (args["Payload"] - 2) + '"'
    if operation == "invoke_async":
        args["InvokeArgs"] = args.pop("Payload")
    try:
        answer = getattr(client, operation)(**args)
    except botocore.exceptions.ClientError as why:
        answer = {key: value for key, value in why.response.items() if key != "ResponseMetadata"}
        meta = why.response["ResponseMetadata"]
    else:
        meta = answer.pop("ResponseMetadata")
    if "Payload" in answer:
        answer["Payload"] = answer["Payload"].read().decode()
    if "EventStream" in answer:
        events = list(answer.pop("EventStream"))
        answer["streamed"] = b"".join(it["PayloadChunk"]["Payload"] for it in events if "PayloadChunk" in it).decode()
        answer["complete"] = [it["InvokeComplete"] for it in events if "InvokeComplete" in it]
    if "LogResult" in answer:
        answer["LogResult"] = base64.b64decode(answer["LogResult"]).decode()
    shown = json.dumps({**answer, "status": meta["HTTPStatusCode"], "has_request_id": bool(meta.get("RequestId"))})
    # Each call has an id of its own; everything else must be the same.
    return json.loads(re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "ID", shown))


for line in sys.stdin:
    case = json.loads(line)
    print(json.dumps({"name": case["name"], "shown": call(case["operation"], case["args"])}), flush=True)

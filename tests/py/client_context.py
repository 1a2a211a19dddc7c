"""Calls a handler as Lambda's Python runtime does, with the client contexts that a caller sent. MiniStack leaves them out.

usage: client_context.py DIRECTORY of page.py, one {"event", "client_context": the header} a line on stdin.
"""

import base64
import json
import os
import sys
import types

os.environ["AWS_LAMBDA_FUNCTION_NAME"] = "orders"
sys.path.insert(0, sys.argv[1])

import page

for line in sys.stdin:
    call = json.loads(line)
    client_context = json.loads(base64.b64decode(call["client_context"]))
    context = types.SimpleNamespace(
        client_context=types.SimpleNamespace(
            custom=client_context.get("custom"), env=client_context.get("env"), client=client_context.get("client")
        ),
        get_remaining_time_in_millis=lambda: 60_000,
    )
    print(json.dumps(page.handler(call["event"], context)), flush=True)

"""What the OpenAPI document of the admin listener cannot say of a valid request, for schemathesis: which texts are times, tokens,
names, levels and base64.

A text is replaced by one that is valid. Everything else stays, so that a request which is meant to be refused stays what it is.
"""

import base64
import re

import schemathesis

TIME = re.compile(r"[0-9]{1,3}(ms|s|m|h|d)")
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
WAIT = re.compile(r"[0-9]{1,2}s|[0-9]{1,5}ms")


def is_base64(text):
    try:
        return base64.b64encode(base64.b64decode(text, validate=True)).decode() == text
    except ValueError:
        return False


def repair(values, field, is_valid, valid):
    if isinstance(values.get(field), str) and not is_valid(values[field]):
        values[field] = valid


def repair_times(values, *fields):
    for field in fields:
        repair(values, field, TIME.fullmatch, "2h")
    # Nothing lies between two times that are swapped, so that is refused.
    if all(TIME.fullmatch(str(values.get(field))) for field in ["since", "until"]):
        values.update(since="4h", until="2h")


@schemathesis.hook
def before_call(context, case, kwargs):
    query, path, body = case.query or {}, case.path_parameters or {}, case.body
    repair_times(query, "since", "until", "accepted_before")
    repair(query, "function", NAME.fullmatch, "*")
    # An event that stays would be waited for.
    repair(query, "wait", lambda text: not WAIT.fullmatch(text), "0s")
    # A token is valid only if a page named it.
    query.pop("after", None)
    repair(path, "name", NAME.fullmatch, "orders")
    if not isinstance(body, dict):
        return
    repair(body, "level", lambda _: False, "info")
    if isinstance(body.get("filter"), dict):
        repair_times(body["filter"], "since", "until")
        repair(body["filter"], "function", NAME.fullmatch, "*")
    for letter in body["letters"] if isinstance(body.get("letters"), list) else []:
        if isinstance(letter, dict):
            if isinstance(letter.get("redrives"), float) and letter["redrives"].is_integer():
                # To JSON Schema 7.0 is an integer.
                letter["redrives"] = int(letter["redrives"])
            repair(letter, "payload_base64", is_base64, "e30=")

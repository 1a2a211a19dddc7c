"""What an OpenAPI document cannot say of a valid event, for schemathesis: how its fields agree with each other and with now.

Only what is valid by itself is changed, so that a body which is meant to be refused stays what it is.
"""

import datetime
import re

import schemathesis

DAY = datetime.timedelta(days=1)
WAIT = re.compile(r"[0-9]{1,2}s|[0-9]{1,5}ms")
DELAY = re.compile(r"([0-9]+(\.[0-9]+)? *[a-zA-Z]+ *)+")


def ahead(value, days):
    """The same time of day, that many days ahead; anything that is no time stays."""
    day = datetime.datetime.now(datetime.timezone.utc) + days * DAY
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and 1_000_000_000_000 <= value <= 253_402_300_799_999 and value == int(value):
        return type(value)(int(day.timestamp() * 1000) + value % 86_400_000)
    if isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d[Tt].+([Zz]|[+-]\d\d:\d\d)", value):
        return f"{day:%Y-%m-%d}{value[10:]}"
    return value


@schemathesis.hook
def before_call(context, case, kwargs):
    query = case.query or {}
    if isinstance(query.get("wait"), str) and WAIT.fullmatch(query["wait"]):
        # An event that stays would be waited for.
        query["wait"] = "0s"
    body = case.body
    if not isinstance(body, dict):
        return
    for field, days in [("deliver_at", 10), ("expires_at", 400)]:
        if field in body:
            body[field] = ahead(body[field], days)
    if isinstance(body.get("delay"), str) and DELAY.fullmatch(body["delay"]):
        # No number of units is too many for a pattern, but 366 days are.
        body["delay"] = "1" + re.search("[a-zA-Z]+", body["delay"])[0]
    if body.get("delay") is not None and body.get("deliver_at") is not None:
        # They contradict each other.
        body["deliver_at"] = None
    function, qualifier = body.get("function"), body.get("qualifier")
    if isinstance(function, str) and isinstance(qualifier, str) and ":" in function:
        # A suffix and a qualifier must agree.
        body["qualifier"] = None

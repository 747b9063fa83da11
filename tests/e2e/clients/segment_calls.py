"""Segment's own library, its host and write key set: the calls of a small application, one message sent twice.

Arguments: host, write key. Prints what the library handed to `on_error`.
"""

import json
import sys
from datetime import UTC, datetime

from segment.analytics.client import Client

host, write_key = sys.argv[1:]
failures: list[str] = []


def note(error: object, batch: list[dict[str, object]]) -> None:
    """The library's callback for a batch that was refused."""
    failures.append(f"{error} for {len(batch)}")


for gzip in (False, True):
    client = Client(write_key, host=host, on_error=note, gzip=gzip, max_retries=2, upload_interval=0.05)
    name = "gzip" if gzip else "plain"
    client.identify("u-1", {"email": "u-1@example.com"})
    client.group("u-1", "g-1", {"plan": "x"})
    client.page("u-1", "docs", "start")
    client.screen("u-1", "docs", "start")
    client.alias("before", "u-1")
    for n in range(5):
        at = datetime(2026, 11, 1, 12, n, tzinfo=UTC)
        properties = {"tokens": n, "kind": name}
        client.track(
            "u-1", "made", properties, context={"page": {"path": "/x"}}, timestamp=at, message_id=f"{name}-{n}"
        )
        client.track("u-1", "made", properties, timestamp=at, message_id=f"{name}-{n}")
    client.track("u-2", "made", {"tokens": 7, "kind": name}, anonymous_id="a", integrations={"All": True})
    client.flush()
    client.join()

late = Client(write_key, host=host, on_error=note, max_retries=0, sync_mode=False, upload_interval=0.05)
late.track(user_id=None, anonymous_id="nobody", event="made")
late.track("u-3", "made", {"tokens": 1})
late.flush()
late.join()
print(json.dumps(failures))

"""The CloudEvents SDK of today, its events posted as it writes them: structured and binary, one of them twice.

Arguments: address of the door, API key. Prints the answers' statuses.
"""

import json
import sys
from datetime import UTC, datetime

import requests
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

address, key = sys.argv[1:]
statuses = []
for n in range(3):
    attributes = {
        "id": f"now-{n}",
        "source": "/app/ümlaut",
        "type": "com.example.prompt",
        "subject": "kunde 1",
        "time": datetime(2026, 11, 1, 12, n, tzinfo=UTC),
        "datacontenttype": "application/json",
        "traceparent": "00-1-2-03",
    }
    event = CloudEvent(attributes=attributes, data={"tokens": n, "region": "eu"})
    for message in (to_structured_event(event), to_binary_event(event)):
        headers = {**message.headers, "Authorization": f"Bearer {key}"}
        statuses.append(requests.post(address, data=message.body, headers=headers, timeout=30).status_code)
print(json.dumps(statuses))

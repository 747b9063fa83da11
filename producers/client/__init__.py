"""The Python client: `from producers.client import Tally`.

Rules: needs the standard library and httpx alone; of the server it imports only how a transactionId is made. This
file is the client's public face, the one place where names are gathered for those who import them.
"""

from producers.client.answers import FieldFault, Refusal
from producers.client.asgi import MeteredASGI
from producers.client.event import InvalidEvent, Recorded
from producers.client.metered import metered
from producers.client.observing import Call, Exchange
from producers.client.outbox import Closed, OutboxFull
from producers.client.sender import Sending, Stats
from producers.client.spool import SpoolError
from producers.client.tally import AsyncTally, Tally
from producers.client.wsgi import MeteredWSGI

__all__ = [
    "AsyncTally",
    "Call",
    "Closed",
    "Exchange",
    "FieldFault",
    "InvalidEvent",
    "MeteredASGI",
    "MeteredWSGI",
    "OutboxFull",
    "Recorded",
    "Refusal",
    "Sending",
    "SpoolError",
    "Stats",
    "Tally",
    "metered",
]

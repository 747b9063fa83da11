"""What an answer means for each event of the batch that it answers."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from producers.client.answers import RETRY_AFTER_MAX_S, Denied, Judged, Refusal, TooLarge, Unknown, judge
from producers.client.event import Recorded

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
A, B, C = (Recorded(name, b"{}", 0.0, position) for position, name in enumerate("abc", 1))


def verdicts(*told: dict[str, Any]) -> bytes:
    """An answer's body."""
    return json.dumps({"events": told, "detail": "why"}).encode()


RECEIVED = {"status": "received", "transactionId": "a"}
REJECTED = {"status": "rejected", "errors": [{"field": "clientId", "code": "type", "message": "no"}]}
UNCONFIRMED = {"status": "unconfirmed", "transactionId": "c"}


def test_each_event_has_its_own_verdict() -> None:
    """Also in a 503: what is received or refused in it is settled, the rest is sent again when the API says."""
    found = judge(503, "7", verdicts(RECEIVED, REJECTED, UNCONFIRMED), [A, B, C], now=NOW)
    assert isinstance(found, Judged)
    assert (found.received, found.again, found.wait_s) == ([A], [C], 7.0)
    [(event, refusal)] = found.refused
    assert (event, refusal.code, refusal.message, refusal.status) == (B, "bad_fields", "clientId: no", 503)
    assert refusal.faults[0].code == "type"


@pytest.mark.parametrize(
    "told",
    [{}, {"status": "received"}, {"status": "received", "transactionId": "b"}, {"status": "new"}, None, "received"],
)
def test_an_event_is_received_only_under_its_own_id(told: Any) -> None:
    """Anything else is sent again."""
    assert judge(200, None, verdicts(told), [A], now=NOW) == Judged([], [], [A], "the API answers 200: why", None)


@pytest.mark.parametrize(
    "body", [b"", b"<html>Welcome", b"[]", b'{"events": []}', b'{"events": {}}', b"\xff", b"[" * 9999]
)
def test_a_200_of_something_else_proves_nothing(body: bytes) -> None:
    """A captive portal, a proxy's page, another API."""
    assert isinstance(judge(200, None, body, [A], now=NOW), Unknown)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_the_api_may_be_away_or_busy(status: int) -> None:
    """Everything is sent again."""
    assert judge(status, "3", b"", [A, B], now=NOW) == Unknown(f"the API answers {status}: ", 3.0)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 415, 422])
def test_a_refusal_of_the_whole_request_is_no_verdict_on_its_events(status: int) -> None:
    """It says why."""
    body = json.dumps(
        {"detail": "because", "errors": [{"field": "Authorization", "code": "x", "message": "y"}]}
    ).encode()
    found = judge(status, None, body, [A], now=NOW)
    assert isinstance(found, Denied)
    assert (found.refusal.code, found.refusal.status) == ("denied", status)
    assert "because" in found.refusal.message
    assert found.refusal.faults[0].field == "Authorization"


def test_a_batch_may_be_too_large() -> None:
    """As a whole."""
    found = judge(413, None, b"nginx", [A, B], now=NOW)
    assert found == TooLarge(Refusal("too_large", "the API answers 413: nginx", 413))


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        (None, None),
        ("5", 5.0),
        (" 0 ", 0.0),
        ("9" * 5000, RETRY_AFTER_MAX_S),
        ("soon", None),
        ("-1", None),
        (format_datetime(NOW + timedelta(seconds=9), usegmt=True), 9.0),
        (format_datetime(NOW - timedelta(seconds=9), usegmt=True), 0.0),
        (format_datetime(NOW + timedelta(days=9), usegmt=True), RETRY_AFTER_MAX_S),
    ],
)
def test_retry_after_is_seconds_or_a_date(told: str | None, seconds: float | None) -> None:
    """Bounded, so that no mistake on the way stops a client for a day."""
    found = judge(503, told, b"", [A], now=NOW)
    assert isinstance(found, Unknown)
    assert found.wait_s == seconds

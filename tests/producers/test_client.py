"""The Python client against the real API: whatever happens in between, each recorded event is counted once."""

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from client_programs import counted, proxy_to, run, start, until_counted
from running_stack import RunningStack, Tenant

from pipeline.adapters.clickhouse import Store
from producers.client import (
    AsyncTally,
    Call,
    Closed,
    Exchange,
    MeteredASGI,
    MeteredWSGI,
    OutboxFull,
    Recorded,
    Refusal,
    Sending,
    Stats,
    Tally,
    metered,
)

SOON = Sending(retry_first_s=0.05, retry_max_s=0.2)
FAR_AHEAD = datetime.now(UTC) + timedelta(days=9)
README = Path(__file__).parents[2] / "README.md"

Told = list[tuple[Recorded, Refusal]]


def note(told: Told) -> Callable[[Recorded, Refusal], None]:
    """An on_error that keeps what it is told."""
    return lambda event, refusal: told.append((event, refusal))


@pytest.fixture(params=[False, True], ids=["memory", "spool"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Both kinds of outbox."""
    return tmp_path / "usage.spool" if request.param else None


def test_what_is_recorded_is_counted_once(
    stack: RunningStack, tenant: Tenant, stack_store: Store, spool: Path | None
) -> None:
    """With its exact value; in many batches, and some events twice by the program's own mistake."""
    with Tally(stack.api, tenant.key, spool=spool) as tally:
        ids = [
            tally.record("c", event_name="tokens", value=Decimal("0.000000001"), data={"n": n, "share": 0.1})
            for n in range(300)
        ]
        ids += tally.record_many([{"client_id": "c", "event_name": "tokens", "value": "10"} for _ in range(700)])
        event = {"client_id": "c", "transaction_id": "mine", "timestamp": "2026-01-31T12:00:00+02:00"}
        tally.record_many([event, event])
        assert tally.flush(120) == 0
    assert tally.stats() == Stats(recorded=1002, received=1002, batches=tally.stats().batches)
    until_counted(stack_store, tenant.account, [*ids, "mine"])
    query = "SELECT sum(value) FROM events WHERE account = {a:String} AND event_name = 'tokens'"
    assert stack_store.query(query, {"a": tenant.account}).rows[0][0] == Decimal("7000.000000300")
    with pytest.raises(Closed):
        tally.record("c")


def test_a_refused_event_is_told_and_sinks_no_other(
    stack: RunningStack, tenant: Tenant, stack_store: Store, spool: Path | None
) -> None:
    """With the field and the API's reason; a failing on_error harms nothing."""
    told: Told = []

    def on_error(event: Recorded, refusal: Refusal) -> None:
        told.append((event, refusal))
        raise ZeroDivisionError

    with Tally(stack.api, tenant.key, spool=spool, on_error=on_error) as tally:
        good = [tally.record("c") for _ in range(5)]
        bad = tally.record("c", timestamp=FAR_AHEAD)
        good += [tally.record("c") for _ in range(5)]
        assert tally.flush(120) == 0
        assert (tally.stats().received, tally.stats().refused) == (10, 1)
    [(event, refusal)] = told
    assert (event.transaction_id, refusal.code, refusal.faults[0].field) == (bad, "bad_fields", "timestamp")
    until_counted(stack_store, tenant.account, good)


def test_lost_answers_count_nothing_twice(
    stack: RunningStack, tenant: Tenant, stack_store: Store, spool: Path | None
) -> None:
    """The API had the events already; they are sent again under the same ids."""
    with (
        proxy_to(stack.api) as (proxy, url),
        Tally(url, tenant.key, spool=spool, sending=SOON) as tally,
    ):
        proxy.swallow(3, match=b"/v1/events/batch")
        ids = [tally.record("c") for _ in range(50)]
        assert tally.flush(120) == 0
        assert proxy.swallowed >= 3
        assert tally.stats().retries >= 3
    until_counted(stack_store, tenant.account, ids)


def test_while_the_api_is_away_events_wait_or_are_refused_room(
    stack: RunningStack, tenant: Tenant, stack_store: Store
) -> None:
    """A full queue raises at once or after the time that was chosen, and takes events again as soon as it can."""
    with proxy_to(stack.api) as (proxy, url):
        proxy.cut()
        with Tally(url, tenant.key, queue_events_max=20, block_s=0, sending=SOON) as tally:
            ids = [tally.record("c") for _ in range(20)]
            with pytest.raises(OutboxFull, match="20 events"):
                tally.record("c")
            assert tally.flush(0.3) == 20
            assert tally.stats().failing is not None
            with Tally(url, tenant.key, queue_events_max=20, block_s=60, sending=SOON) as patient:
                ids += [patient.record("c") for _ in range(20)]
                waiting = threading.Thread(target=lambda: ids.append(patient.record("c")))
                waiting.start()
                proxy.heal()
                waiting.join()
            assert tally.flush(120) == 0
            assert tally.stats() == Stats(
                recorded=20, received=20, batches=tally.stats().batches, retries=tally.stats().retries
            )
        until_counted(stack_store, tenant.account, ids)


_ENDLESS = """
tally = Tally(URL, KEY, spool=SPOOL)
while True:
    say(tally.record("c", event_name="call"))
"""


def test_a_killed_program_loses_nothing_that_was_recorded(
    stack: RunningStack, tenant: Tenant, stack_store: Store, tmp_path: Path
) -> None:
    """kill -9 in the midst of recording, sending and lost answers; the next client sends the rest as it was."""
    said: list[str] = []
    with proxy_to(stack.api) as (proxy, url):
        for lost_answers in (100, 2):
            proxy.swallow(lost_answers, match=b"/v1/events/batch")
            with start(_ENDLESS, url, tenant.key, tmp_path / "spool") as program:
                assert program.stdout is not None
                said += [program.stdout.readline().strip() for _ in range(100)]
                program.send_signal(signal.SIGKILL)
                said += [line.strip() for line in program.stdout if line.endswith("\n")]
    with Tally(stack.api, tenant.key, spool=tmp_path / "spool") as tally:
        assert tally.flush(120) == 0
        # what was recorded and not said any more, one at each kill at most
        recorded = [*said, *(set(counted_soon(stack_store, tenant, len(said))) - set(said))]
    assert len(recorded) <= len(said) + 2
    until_counted(stack_store, tenant.account, recorded)


def counted_soon(store: Store, tenant: Tenant, count: int) -> list[str]:
    """What is counted once it is so many."""
    end = datetime.now(UTC) + timedelta(seconds=120)
    while len(found := counted(store, tenant.account)) < count:
        assert datetime.now(UTC) < end, f"{len(found)} of {count} are counted"
    return found


_FAMILY = """
tally = Tally(URL, KEY, spool=SPOOL, sending=Sending(flush_every_s=60, close_timeout_s=60))

def record(count):
    for _ in range(count):
        say(tally.record("c"))

def in_child():
    assert tally.stats().recorded == 0, "a child begins with nothing"
    assert SPOOL or tally.stats().waiting == 0, "what is its parent's is its parent's to send"
    record(3)

if __name__ == "__main__":
    record(5)
    child = os.fork()
    if not child:
        in_child()
        sys.exit()
    other = multiprocessing.get_context("fork").Process(target=in_child)
    other.start()
    record(2)
    assert os.waitpid(child, 0)[1] == 0
    other.join()
    assert other.exitcode == 0
    assert tally.stats().recorded == 7
"""


def test_forks_and_exits_send_what_each_process_recorded(
    stack: RunningStack, tenant: Tenant, stack_store: Store, spool: Path | None
) -> None:
    """A parent, an os.fork and a process of multiprocessing; none flushes, all just end."""
    said, err = run(_FAMILY, stack.api, tenant.key, spool)
    assert len(said) == 13
    if spool is not None:  # whoever ended last may have left it to another that had ended its sending
        with Tally(stack.api, tenant.key, spool=spool) as tally:
            assert tally.flush(120) == 0
    else:
        assert err == ""
    until_counted(stack_store, tenant.account, said)


_TWO = """
tally = Tally(URL, KEY, spool=SPOOL)
for _ in range(200):
    say(tally.record("c"))
while tally.flush(5):
    pass
"""


def test_two_programs_share_a_spool(stack: RunningStack, tenant: Tenant, stack_store: Store, tmp_path: Path) -> None:
    """One of them sends; when it ends the other goes on. No event goes twice."""
    with proxy_to(stack.api) as (_, url):
        programs = [start(_TWO, url, tenant.key, tmp_path / "spool") for _ in range(2)]
        outs = [program.communicate(timeout=120) for program in programs]
    assert [program.returncode for program in programs] == [0, 0], outs
    ids = [line for out, _ in outs for line in out.splitlines()]
    assert len(ids) == 400
    until_counted(stack_store, tenant.account, ids)
    query = "SELECT count() FROM repeats WHERE id_hash IN (SELECT id_hash FROM events WHERE account = {a:String})"
    assert stack_store.query(query, {"a": tenant.account}).rows[0][0] == 0


_AWAY = """
Tally("http://127.0.0.1:9", KEY, sending=Sending(close_timeout_s=0.2),
      on_error=lambda event, refusal: say(refusal.code, event.transaction_id)).record("c", transaction_id="t")
"""


def test_a_program_that_ends_tells_what_remained() -> None:
    """On standard error, and each event to on_error; its exit is not held up."""
    said, err = run(_AWAY, "", "key")
    assert said == ["unsent t"]
    assert "1 events were not sent: " in err


def test_a_wrong_key_costs_no_event(stack: RunningStack, tenant: Tenant, stack_store: Store, tmp_path: Path) -> None:
    """Without a spool each is told; with one they stay until a client with the right key comes."""
    told: Told = []
    with Tally(stack.api, "tally_wrong", on_error=note(told)) as tally:
        tally.record("c")
        assert tally.flush(120) == 0
    assert [(refusal.code, refusal.status) for _, refusal in told] == [("denied", 401)]
    path = tmp_path / "spool"
    with Tally(stack.api, "tally_wrong", spool=path, sending=Sending(close_timeout_s=1)) as tally:
        kept = tally.record("c")
        while tally.stats().failing is None:
            tally.flush(0.1)
        assert "401" in str(tally.stats().failing)
    with Tally(stack.api, tenant.key, spool=path) as tally:
        assert tally.flush(120) == 0
    until_counted(stack_store, tenant.account, [kept])


def test_the_example_of_the_readme_runs(
    stack: RunningStack, tenant: Tenant, stack_store: Store, tmp_path: Path
) -> None:
    """Literally."""
    text = README.read_text().split("<!-- client -->\n```python\n")[1].split("```")[0]
    environment = {"API": stack.api, "KEY": tenant.key, "PYTHONPATH": str(README.parent)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", text], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(counted_soon(stack_store, tenant, 2)) == 2


async def test_the_client_for_asyncio(
    stack: RunningStack, tenant: Tenant, stack_store: Store, spool: Path | None
) -> None:
    """Records from many tasks, tells refused events in the loop, and flushes as its context ends."""
    told: list[tuple[asyncio.AbstractEventLoop, str]] = []

    async def on_error(event: Recorded, _: Refusal) -> None:
        await asyncio.sleep(0)
        told.append((asyncio.get_running_loop(), event.transaction_id))

    async with AsyncTally(stack.api, tenant.key, spool=spool, on_error=on_error) as tally:
        ids = await asyncio.gather(*(tally.record("c", value=n + 1) for n in range(50)))
        ids += await tally.record_many([{"client_id": "d"}, {"client_id": "e"}])
        bad = await tally.record("c", timestamp=FAR_AHEAD)
        assert await tally.flush(120) == 0
        assert tally.stats().received == 52
    assert told == [(asyncio.get_running_loop(), bad)]
    await asyncio.to_thread(until_counted, stack_store, tenant.account, ids)


async def test_a_full_queue_holds_a_task_and_not_its_loop(
    stack: RunningStack, tenant: Tenant, stack_store: Store
) -> None:
    """A waiting record is cancelled without a trace, is told that there is no room, or goes on."""
    with proxy_to(stack.api) as (proxy, url):
        proxy.cut()
        async with AsyncTally(url, tenant.key, queue_events_max=2, block_s=0.1, sending=SOON) as tally:
            ids = [await tally.record("c"), await tally.record("c")]
            with pytest.raises(OutboxFull, match="2 events"):
                await tally.record("c")
        async with AsyncTally(url, tenant.key, queue_events_max=2, block_s=None, sending=SOON) as tally:
            ids = [await tally.record("c"), await tally.record("c")]
            waiting = [asyncio.create_task(tally.record("c")) for _ in range(3)]
            await asyncio.sleep(0)
            waiting.pop().cancel()
            proxy.heal()
            ids += await asyncio.gather(*waiting)
            assert await tally.flush(120) == 0
            assert tally.stats().recorded == 4
    await asyncio.to_thread(until_counted, stack_store, tenant.account, ids)


def of_exchange(exchange: Exchange) -> dict[str, object] | None:
    """An event for each request of a customer; fails for the customer `broken`."""
    customer = exchange.headers.get("x-customer")
    if customer == "broken":
        raise ZeroDivisionError
    if customer is None:
        return None
    seen = {"status": exchange.status, "bytes": exchange.response_bytes, "seconds": exchange.seconds}
    return {"client_id": customer, "event_name": f"{exchange.method} {exchange.path}?{exchange.query}", "data": seen}


async def asgi_app(scope, receive, send):  # type: ignore[no-untyped-def]
    """Says hello, or fails."""
    if scope["path"] == "/fails":
        raise LookupError
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"hel", "more_body": True})
    await send({"type": "http.response.body", "body": b"lo"})


def wsgi_app(environ, start_response):  # type: ignore[no-untyped-def]
    """The same."""
    if environ["PATH_INFO"] == "/fails":
        raise LookupError
    start_response("201 Created", [])
    return [b"hel", b"lo"]


def rows(store: Store, tenant: Tenant) -> list[tuple[str, ...]]:
    """Customer, event and data of what is counted."""
    query = (
        "SELECT client_id, event_name, JSONExtractInt(data, 'status'), JSONExtractInt(data, 'bytes') "
        "FROM events WHERE account = {a:String}"
    )
    return sorted(store.query(query, {"a": tenant.account}).rows)


def ask_plainly(app: MeteredWSGI) -> None:
    """The requests of the test below, by WSGI."""
    with httpx.Client(transport=httpx.WSGITransport(app=app), base_url="http://w") as client:
        for name in ("w", "broken", ""):
            answer = client.get("/hello?x=1", headers={"X-Customer": name} if name else {})
            assert (answer.status_code, answer.text) == (201, "hello")
        with pytest.raises(LookupError):
            client.post("/fails", headers={"X-Customer": "w"})


@pytest.mark.parametrize("full", [False, True], ids=["room", "full"])
async def test_requests_are_recorded_and_never_harmed(
    stack: RunningStack, tenant: Tenant, stack_store: Store, full: bool
) -> None:
    """By both middlewares: answered, failed, without a customer, with a broken event_of, and with a full queue."""
    told: Told = []
    url, queue = ("http://127.0.0.1:9", 1) if full else (stack.api, 1_000)
    sending = Sending(flush_every_s=60, close_timeout_s=0.1 if full else 60)
    with Tally(url, tenant.key, on_error=note(told), queue_events_max=queue, sending=sending) as tally:
        if full:
            tally.record("first")
        asgi = httpx.ASGITransport(app=MeteredASGI(asgi_app, tally, of_exchange))
        async with httpx.AsyncClient(transport=asgi, base_url="http://a") as client:
            for name in ("c", "broken", ""):
                answer = await client.get("/hello?x=1", headers={"X-Customer": name} if name else {})
                assert (answer.status_code, answer.text) == (201, "hello")
            with pytest.raises(LookupError):
                await client.post("/fails", headers={"X-Customer": "c"})
        ask_plainly(MeteredWSGI(wsgi_app, tally, of_exchange))
    if full:
        assert [refusal.code for _, refusal in told] == [*["not_recorded"] * 4, "unsent"]
        return
    assert (told, tally.stats().received) == ([], 4)
    await asyncio.to_thread(counted_soon, stack_store, tenant, 4)
    assert rows(stack_store, tenant) == [
        ("c", "GET /hello?x=1", 201, 5),
        ("c", "POST /fails?", 500, 0),
        ("w", "GET /hello?x=1", 201, 5),
        ("w", "POST /fails?", 500, 0),
    ]


def of_call(call: Call) -> dict[str, object]:
    """The first argument is the customer."""
    name = "done" if call.error is None else type(call.error).__name__
    return {"client_id": call.args[0], "event_name": name, "value": call.result or 0, "data": {"s": call.seconds}}


async def test_calls_are_recorded(stack: RunningStack, tenant: Tenant, stack_store: Store) -> None:
    """Of plain functions and coroutine functions, what they return and what they raise."""
    patient = Sending(close_timeout_s=60)
    with Tally(stack.api, tenant.key, sending=patient) as tally:
        async with AsyncTally(stack.api, tenant.key, sending=patient) as other:

            @metered(tally, of_call)
            def add(customer: str, first: int, *, second: int) -> int:
                return first // second

            @metered(other, of_call)
            async def add_later(customer: str, first: int) -> int:
                await asyncio.sleep(0)
                return first + 1

            assert add("a", 6, second=2) == 3
            with pytest.raises(ZeroDivisionError):
                add("b", 6, second=0)
            assert await add_later("c", 2) == 3
            assert add.__name__ == "add"
            with pytest.raises(TypeError, match="is no coroutine function"):
                metered(other, of_call)(len)
    await asyncio.to_thread(counted_soon, stack_store, tenant, 3)
    query = "SELECT client_id, event_name, value FROM events WHERE account = {a:String} ORDER BY 1"
    found = stack_store.query(query, {"a": tenant.account}).rows
    assert [tuple(row) for row in found] == [("a", "done", 3), ("b", "ZeroDivisionError", 0), ("c", "done", 3)]

"""The audit as its users run it, on what the worker has counted."""

import json

from running_stack import RunningStack, Tenant
from waiting import counted

_EVENTS = [
    {"clientId": "anna", "timestamp": f"2026-11-{i % 20 + 1:02}T10:00:00Z", "transactionId": f"a{i}", "eventName": "e"}
    for i in range(60)
]


def _send(stack: RunningStack, tenant: Tenant, events: list[dict[str, str]]) -> None:
    lines = "\n".join(map(json.dumps, events))
    stack.tally("send", "-", "--account", tenant.account, stdin=lines)
    counted(stack, tenant)


def test_the_deep_audit_reads_the_log_again(stack: RunningStack, tenant: Tenant) -> None:
    """What every worker and door of this session has counted is what the log says, line by line."""
    _send(stack, tenant, [*_EVENTS, *_EVENTS[:5]])
    report = stack.tally_json("audit", "--deep")
    assert (report["drift"], report["findings"]) == (0, [])
    assert report["deep"]["events"] >= 65
    assert report["deep"]["events"] + report["deep"]["not_retained"]["events"] >= report["events"] - 1000


def test_the_audit_takes_a_period_in_a_zone(stack: RunningStack, tenant: Tenant) -> None:
    """The scope is told; cells outside are not compared; the ledger's counts stay whole."""
    _send(stack, tenant, _EVENTS)
    asked = ("audit", "--account", tenant.account, "--zone", "America/New_York")
    report = stack.tally_json(*asked, "--start", "2026-11-03", "--end", "2026-11-05")
    assert report["drift"] == 0
    assert report["scope"]["start"] == "2026-11-03T05:00:00Z"
    assert report["scope"]["end"] == "2026-11-05T05:00:00Z"
    assert report["scope"]["whole"] == ["ledger", "ids", "positions", "rejects"]
    all_time = stack.tally_json(*asked)
    assert 0 < report["cells"] < all_time["cells"]
    assert report["accepted"] == all_time["accepted"] >= 60
    text = stack.tally(*asked, "--start", "2026-11-03")
    assert "checked whole: ledger" in text


def test_a_repair_with_nothing_to_do_changes_nothing(stack: RunningStack) -> None:
    """And says so; a deep audit does not go with it."""
    report = stack.tally_json("audit", "--repair")
    assert (report["drift"], report["repair"]) == (0, {"rebuilt": [], "beyond": []})
    stack.tally("audit", "--repair", "--deep", code=2)
    stack.tally("audit", "--start", "2026-02-01", "--end", "2026-01-01", code=2)

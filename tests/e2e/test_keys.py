"""API keys through a running server: rotation, revocation in another process, last use, and no secret in any log."""

import base64
import json
from datetime import UTC, datetime

import httpx
import pytest
from running_stack import RunningStack, Tenant
from waiting import until

_EVENT = {"clientId": "c", "timestamp": "2026-11-03T10:20:00Z", "eventName": "e"}


def _post(stack: RunningStack, key: str) -> int:
    """Status of an event sent with the key."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{stack.api}/api/v1/events", json=_EVENT, headers=headers, timeout=60).status_code


def test_a_rotated_key_is_good_for_the_overlap(stack: RunningStack, tenant: Tenant) -> None:
    """The successor at once, with name, scopes, mode and limits; the old one until its time is over."""
    with httpx.Client(base_url=stack.api, headers=tenant.headers, timeout=60) as http:
        fields = {"name": "n", "scopes": ["ingest"], "mode": "test", "events_per_s": 100, "burst": 200}
        first = http.post("/v1/catalog/keys", json=fields).json()
        second = http.post(f"/v1/catalog/keys/{first['id']}/rotate", json={"overlap_s": 3600}).json()
        same = ("account", "mode", "name", "scopes", "events_per_s", "burst", "revoked")
        assert {name: first[name] for name in same} == {name: second[name] for name in same}
        assert second["secret"].startswith("tally_test_")
        assert [_post(stack, key["secret"]) for key in (first, second)] == [200, 200]
        until_when = datetime.fromisoformat(http.get(f"/v1/catalog/keys/{first['id']}").json()["expires"])
        assert 3500 < (until_when - datetime.now(UTC)).total_seconds() <= 3600

        third = http.post(f"/v1/catalog/keys/{second['id']}/rotate", json={"overlap_s": 1}).json()
        until(lambda: _post(stack, second["secret"]) == 401, why="the overlap is over")
        assert _post(stack, third["secret"]) == 200
        again = http.post(f"/v1/catalog/keys/{second['id']}/rotate", json={})
        assert (again.status_code, again.json()["errors"][0]["code"]) == (422, "revoked")

    told = stack.tally_json("keys", "rotate", third["id"], "--account", tenant.account, "--overlap-s", "0")
    until(lambda: _post(stack, third["secret"]) == 401, why="the server has read that")
    assert _post(stack, told["key"]) == 200


@pytest.mark.parametrize(
    "body", [{"overlap_s": -1}, {"overlap_s": "1"}, {"overlap_s": True}, {"overlap_s": 1e9}, {"o": 1}]
)
def test_a_rotation_that_cannot_be_is_refused(stack: RunningStack, tenant: Tenant, body: dict[str, object]) -> None:
    """And the key is as it was."""
    with httpx.Client(base_url=stack.api, headers=tenant.headers, timeout=60) as http:
        (key,) = http.get("/v1/catalog/keys").json()["items"]
        assert http.post(f"/v1/catalog/keys/{key['id']}/rotate", json=body).status_code == 422
        assert [one["expires"] for one in http.get("/v1/catalog/keys").json()["items"]] == [None]


def test_a_key_revoked_elsewhere_is_refused_by_the_server(stack: RunningStack, tenant: Tenant) -> None:
    """The command is another process; the server hears of it by the catalog's log."""
    made = stack.tally_json("keys", "create", "--account", tenant.account, "--scope", "ingest", "--mode", "test")
    assert made["key"].startswith("tally_test_")
    assert _post(stack, made["key"]) == 200
    stack.tally("keys", "revoke", made["id"], "--account", tenant.account)
    until(lambda: _post(stack, made["key"]) == 401, why="the server has read that")


def test_the_last_use_is_told(stack: RunningStack, tenant: Tenant) -> None:
    """To the minute: by the process that saw it at once, by the command once it is in the store."""
    with httpx.Client(base_url=stack.api, headers=tenant.headers, timeout=60) as http:
        made = http.post("/v1/catalog/keys", json={"scopes": ["ingest"]}).json()
        assert made["last_used"] is None
        assert http.get(f"/v1/catalog/keys/{made['id']}").json()["last_used"] is None
        before = datetime.now(UTC).replace(second=0, microsecond=0)
        assert _post(stack, made["secret"]) == 200
        used = http.get(f"/v1/catalog/keys/{made['id']}").json()["last_used"]
        assert before <= datetime.fromisoformat(used) <= datetime.now(UTC)
        assert datetime.fromisoformat(used).second == 0

    def listed() -> bool:
        keys = stack.tally_json("keys", "list", "--account", tenant.account)
        return {key["id"]: key["last_used"] for key in keys}[made["id"]] == used

    until(listed, why="the use is in the store")


def test_no_secret_is_in_any_log(stack: RunningStack, tenant: Tenant) -> None:
    """Of keys that are good, that are not, or that come in the wrong place, through every header that carries one."""
    with httpx.Client(base_url=stack.api, headers=tenant.headers, timeout=60) as http:
        made = http.post("/v1/catalog/keys", json={"scopes": ["ingest", "admin"]}).json()
        rotated = http.post(f"/v1/catalog/keys/{made['id']}/rotate", json={"overlap_s": 0}).json()
    unknown = "tally_live_" + "u" * 43
    secrets = [tenant.key, made["secret"], rotated["secret"], unknown]
    for secret in secrets:
        basic = base64.b64encode(f"{secret}:".encode()).decode()
        for headers in (
            {"Authorization": f"Bearer {secret}"},
            {"Authorization": secret},
            {"Authorization": f"Basic {basic}"},
            {"Authorization": f"Digest {secret}"},
            {"X-API-Key": secret},
            {"Kable-Client-Id": secret, "Kable-Client-Secret": secret},
        ):
            for path in ("/api/v1/events", "/graphql", "/segment/v1/track", f"/v1/events?key={secret}", f"/{secret}"):
                httpx.post(f"{stack.api}{path}", content=b"{", headers=headers, timeout=60)
                httpx.get(f"{stack.api}{path}", headers=headers, timeout=60)
    stack.tally("keys", "list", "--account", tenant.account)
    logs = [path for path in (stack.home / "logs").rglob("*") if path.is_file()]
    assert any(path.name.startswith("api") for path in logs)
    for path in logs:
        text = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in text, path
            assert base64.b64encode(f"{secret}:".encode()) not in text, path


def test_a_limit_holds_over_the_wire(stack: RunningStack, tenant: Tenant) -> None:
    """429 with whole seconds, nothing of the request published, and other keys go on."""
    with httpx.Client(base_url=stack.api, headers=tenant.headers, timeout=60) as http:
        made = http.post("/v1/catalog/keys", json={"scopes": ["ingest"], "events_per_s": 1, "burst": 10}).json()
        headers = {"Authorization": f"Bearer {made['secret']}"}
        lines = "\n".join(json.dumps(_EVENT) for _ in range(3000)).encode()
        typed = {**headers, "Content-Type": "application/x-ndjson"}
        assert http.post("/v1/events/batch", content=lines, headers=typed).json()["accepted"] == 3000
        refused = http.post("/v1/events/batch", content=lines, headers=typed)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(refused.headers["retry-after"]) <= 3000
    assert _post(stack, tenant.key) == 200

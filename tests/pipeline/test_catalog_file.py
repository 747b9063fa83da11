"""Catalog files: what they say, what applying them changes, and how mistakes are told."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.adapters.catalog_log import CatalogClient
from pipeline.adapters.catalog_log_fake import MemoryCatalogLog
from pipeline.catalog import Account, Catalog, encode_account
from pipeline.catalog_file import Change, apply_file, plan, read_catalog_file, render_plan
from pipeline.catalog_input import CatalogError
from pipeline.catalog_service import CatalogService

EXAMPLE = (Path(__file__).parent.parent / "data" / "catalog.yaml").read_text()


@pytest.fixture
async def service() -> AsyncIterator[CatalogService]:
    """A service with the account `acme`."""
    client = CatalogClient(MemoryCatalogLog())
    await client.start()
    service = CatalogService(client, clock_us=lambda: 5_000_000)
    await service.create_account({"id": "acme"})
    yield service
    await client.stop()


def planned(catalog: Catalog, text: str) -> tuple[Change, ...]:
    """What a file would do to `acme` at second 5."""
    return plan(catalog, read_catalog_file(text), account="acme", now_us=5_000_000)


def faults(catalog: Catalog, text: str) -> list[tuple[str, str, str]]:
    """Path, code and line of every mistake in a file."""
    with pytest.raises(CatalogError) as refused:
        planned(catalog, text)
    return [(e.field, e.code, e.message.split(":")[0]) for e in refused.value.errors]


def rendered(changes: tuple[Change, ...]) -> str:
    """The table as a wide terminal shows it."""
    console = Console(file=io.StringIO(), width=150, color_system=None)
    console.print(render_plan(changes))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def test_the_example_is_applied_and_then_unchanged(service: CatalogService) -> None:
    """Applying a file twice changes nothing the second time."""
    file = read_catalog_file(EXAMPLE)

    first = await apply_file(service, file, account="acme")
    version = service.catalog.version
    second = await apply_file(service, file, account="acme")

    assert {change.action for change in first} == {"create"}
    assert {change.action for change in second} == {"unchanged"}
    assert service.catalog.version == version
    assert service.catalog.feature_ids_for("acme", "blog_post_generation") == ("blog-posts", "total-generations")
    assert service.catalog.feature_ids_for("acme", "email_generation") == ("total-generations",)
    assert [d.key for d in service.catalog.dimensions("acme")] == ["deletions", "files", "insertions", "repo"]


async def test_planning_writes_nothing(service: CatalogService) -> None:
    """--dry-run."""
    version = service.catalog.version

    changes = planned(service.catalog, EXAMPLE)

    assert [change.kind for change in changes].count("feature") == 10
    assert service.catalog.version == version
    assert service.catalog.features("acme") == ()


async def test_the_difference_is_shown_field_by_field(service: CatalogService) -> None:
    """What a person decides on: old and new values, and that the rest stays."""
    await apply_file(service, read_catalog_file(EXAMPLE), account="acme")
    text = EXAMPLE.replace("name: Seats", "name: '[bold]Chairs'").replace("[blog_post_generation]", "[blog_post]")

    changes = planned(service.catalog, text)

    update = next(change for change in changes if change.id == "blog-posts")
    assert {f.name: (f.before, f.after) for f in update.fields} == {
        "event_names": (("blog_post_generation",), ("blog_post",)),
        "effective_from": ("1970-01-01T00:00:00Z", "1970-01-01T00:00:05Z"),
    }
    shown = rendered(changes)
    assert "[bold]Chairs" in shown
    assert "feature blog-posts" in shown
    assert '["blog_post_generation"]' in shown
    assert "13 unchanged" in shown
    await apply_file(service, read_catalog_file(text), account="acme")
    assert rendered(planned(service.catalog, text)) == "nothing to change; 15 unchanged\n"


async def test_leaving_an_object_out_removes_nothing(service: CatalogService) -> None:
    """Archiving is said, never implied."""
    await apply_file(service, read_catalog_file("features: [{id: a}, {id: b}]"), account="acme")

    changes = await apply_file(service, read_catalog_file("features: [{id: b, archived: true}]"), account="acme")

    assert [(change.id, change.action) for change in changes] == [("b", "update")]
    assert [(f.id, f.archived) for f in service.catalog.features("acme")] == [("a", False), ("b", True)]


async def test_a_field_left_out_has_its_default(service: CatalogService) -> None:
    """The file is the whole definition of what it names."""
    await apply_file(service, read_catalog_file("features: [{id: a, unit_label: x}]"), account="acme")
    await apply_file(service, read_catalog_file("features: [{id: a}]"), account="acme")

    assert service.feature("acme", "a").unit_label == ""


async def test_a_file_may_bring_its_account(service: CatalogService) -> None:
    """The account is created with its test account, and owns the definitions."""
    text = "account: rival\naccounts: [{id: rival, name: Rival}]\nfeatures: [{id: a}]\n"

    changes = await apply_file(service, read_catalog_file(text), account="acme")

    assert [(change.kind, change.account, change.action) for change in changes] == [
        ("account", "rival", "create"),
        ("feature", "rival", "create"),
    ]
    assert service.catalog.account("rival:test") is not None
    assert service.catalog.features("acme") == ()


async def test_instants_keep_their_offsets(service: CatalogService) -> None:
    """YAML's own dates are not used: they drop offsets and precision."""
    await apply_file(
        service,
        read_catalog_file("features: [{id: a, effective_from: 2026-01-01T00:00:00.000001+05:45}]"),
        account="acme",
    )

    assert service.feature("acme", "a").effective_from_us == 1_767_204_900_000_001


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("", "type", "line 1")]),
        ("- a", [("", "type", "line 1")]),
        ("features: [", [("", "syntax", "line 1")]),
        ("a: 1\n---\nb: 1", [("", "syntax", "line 2")]),
        ("feature:\n- id: a", [("feature", "unknown_field", "line 1")]),
        ("features:\n  id: a", [("features", "type", "line 1")]),
        ("features:\n- a\n", [("features[0]", "type", "line 2")]),
        ("account: 5\n", [("account", "type", "line 1")]),
        ("account: nobody\n", [("account", "not_found", "line 1")]),
        ("features:\n- id: a\n  id: b\n", [("features[0].id", "duplicate_key", "line 3")]),
        ("features:\n- id: a\n- id: a\n", [("features[1]", "duplicate_key", "line 3")]),
        ("features:\n- id: a\n  event_name: x\n", [("features[0].event_name", "unknown_field", "line 3")]),
        ("features:\n- id: 124\n", [("features[0].id", "type", "line 2")]),
        ("features:\n- id: a\n  event_names:\n  - ok\n  - no\n", [("features[0].event_names[1]", "type", "line 3")]),
        ("features:\n- name: A\n", [("features[0].id", "required", "line 2")]),
        ("features:\n- id: !!python/name:os.system a\n", [("features[0].id", "type", "line 2")]),
        ("features:\n- id: !!binary aGVsbG8=\n", [("features[0].id", "type", "line 2")]),
        ("x: &x [*x]\n", [("", "syntax", "line 1")]),
        ("features:\n- {id: a, 5: b}\n", [("features[0]", "type", "line 2")]),
        ("dimensions:\n- key: k\n  type: text\n", [("dimensions[0].type", "format", "line 3")]),
        ("accounts:\n- id: a:test\n", [("accounts[0].id", "format", "line 2")]),
    ],
)
async def test_mistakes_are_told_with_path_and_line(
    service: CatalogService, text: str, expected: list[tuple[str, str, str]]
) -> None:
    """Every one of them, and nothing is applied."""
    assert faults(service.catalog, text) == expected


async def test_aliases_cannot_unfold_without_bound(service: CatalogService) -> None:
    """A billion laughs end in an error."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]

    assert faults(service.catalog, "\n".join(lines)) == [("", "syntax", "line 1")]


async def test_faults_of_all_objects_are_told_together(service: CatalogService) -> None:
    """One run is enough to correct a file; and not half of it is applied."""
    text = "features:\n- id: a\n- id: b\n  type: X\ndimensions:\n- key: k\n"

    assert [path for path, _, _ in faults(service.catalog, text)] == ["features[1].type", "dimensions[0].type"]
    with pytest.raises(CatalogError):
        await apply_file(service, read_catalog_file(text), account="acme")
    assert service.catalog.features("acme") == ()


def test_an_account_says_where_segments_messages_have_the_fields() -> None:
    """Dotted paths by the event's own names; a change of them alone is a change, and what is no field is told."""
    catalog = Catalog()
    text = "accounts: [{{id: acme, segment: {}}}]"
    [created] = plan(catalog, read_catalog_file(text.format("{clientId: context.groupId}")), account="acme", now_us=0)
    assert created.action == "create"
    assert isinstance(created.after, Account)
    catalog.apply(0, *encode_account(created.after, "0"))
    kept = catalog.account("acme")
    assert kept is not None
    assert kept.segment == {"clientId": "context.groupId"}
    for paths, action in (("{clientId: context.groupId}", "unchanged"), ('{eventName: ""}', "update")):
        [change] = plan(catalog, read_catalog_file(text.format(paths)), account="acme", now_us=0)
        assert change.action == action
    for wrong in ("{client_id: userId}", "{clientId: 5}", "[]"):
        with pytest.raises(CatalogError, match="segment"):
            plan(catalog, read_catalog_file(text.format(wrong)), account="acme", now_us=0)

"""The catalog as a file: read it, compare it with the catalog, apply the difference.

Rules: the file is the whole definition of every object that it names (a field left out has its default) and says
nothing of objects that it does not name: nothing is removed by omission, archiving is `archived: true`. Applying a
file twice changes nothing the second time. YAML is read as plain data; every fault is told with path and line.

    account: acme                      # optional: whose definitions these are
    accounts:   [{id, name, segment}]  # optional: accounts to create
    customers:  [{id, name, email, metadata}]
    features:   [{id, name, type, unit_label, unit_label_plural, metadata, event_names, aggregation, value_key,
                  unique_key, filter, effective_from, archived}]
    dimensions: [{key, type, effective_from, archived}]
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
import yaml
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from yaml.constructor import SafeConstructor

from pipeline.catalog import Account, Catalog, Customer, Dimension, Feature
from pipeline.catalog_input import (
    CatalogError,
    account_from,
    customer_fields,
    dimension_fields,
    feature_fields,
)
from pipeline.catalog_proposal import Action, propose_customer, propose_dimension, propose_feature
from pipeline.catalog_service import CatalogService
from pipeline.event import FieldError, format_timestamp

FILE_CHARS_MAX: Final = 8 * 1024 * 1024
VALUES_MAX: Final = 500_000  # aliases can multiply; this bounds what a small file may unfold to
DEPTH_MAX: Final = 32
SECTIONS: Final = ("accounts", "customers", "features", "dimensions")

Kind = Literal["account", "customer", "feature", "dimension"]


class CatalogFileError(CatalogError):
    """The file cannot be applied; each error's field is the path in the file and its message begins with the line."""


class Entry(msgspec.Struct, frozen=True):
    """One object of the file: its fields, its path, and the lines that the object and its fields stand on."""

    fields: dict[str, Any]
    path: str
    line: int
    lines: dict[str, int]


class CatalogFile(msgspec.Struct, frozen=True):
    """A file that was read, its values not yet checked. `account` None: the caller says whose definitions they are."""

    account: str | None
    accounts: tuple[Entry, ...] = ()
    customers: tuple[Entry, ...] = ()
    features: tuple[Entry, ...] = ()
    dimensions: tuple[Entry, ...] = ()


class FieldChange(msgspec.Struct, frozen=True):
    """A field's value before and after; `before` is None where the object is new."""

    name: str
    before: object
    after: object


class Change(msgspec.Struct, frozen=True):
    """What applying the file does to one object."""

    kind: Kind
    account: str
    id: str
    action: Action
    fields: tuple[FieldChange, ...]
    after: Account | Customer | Feature | Dimension


def read_catalog_file(text: str) -> CatalogFile:
    """The file's objects. Raises CatalogFileError for what is no YAML, unknown sections and wrong shapes."""
    if len(text) > FILE_CHARS_MAX:
        raise CatalogFileError([FieldError("", "too_large", f"has {len(text)} characters; at most {FILE_CHARS_MAX}")])
    reader = _Reader()
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        found = reader.value(root, "", 0) if root is not None else None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise CatalogFileError([_fault("", line, "syntax", f"is no YAML: {error.problem}")]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise CatalogFileError([_fault("", 1, "syntax", f"is no YAML: {error}")]) from error
    if not reader.faults and not isinstance(found, dict):
        reader.wrong("", 1, "type", f"must hold {', '.join(SECTIONS)}; see the example in the README")
    sections = _sections(reader, found) if isinstance(found, dict) else {}
    account = found.get("account") if isinstance(found, dict) else None
    if account is not None and not isinstance(account, str):
        reader.wrong("account", reader.lines["account"], "type", "must be a string; put it in quotes")
    if reader.faults:
        raise CatalogFileError(reader.faults)
    return CatalogFile(account, **sections)


def plan(catalog: Catalog, file: CatalogFile, *, account: str, now_us: int) -> tuple[Change, ...]:
    """What applying the file now would do, object by object in the file's order.

    `account` is used where the file names none. Raises CatalogFileError with every fault of every object.
    """
    owner = file.account or account
    faults: list[FieldError] = []
    changes = [
        *_planned(file.accounts, faults, lambda given: _account_change(catalog, given)),
        *_planned(file.customers, faults, lambda given: _customer_change(catalog, owner, given, now_us)),
        *_planned(file.features, faults, lambda given: _feature_change(catalog, owner, given, now_us)),
        *_planned(file.dimensions, faults, lambda given: _dimension_change(catalog, owner, given, now_us)),
    ]
    created = {change.id for change in changes if change.kind == "account"}
    if catalog.account(owner) is None and owner not in created:
        faults.append(_fault("account", 1, "not_found", f"there is no account {owner!r}; list it under accounts"))
    if faults:
        raise CatalogFileError(faults)
    return tuple(changes)


async def apply_file(service: CatalogService, file: CatalogFile, *, account: str) -> Sequence[Change]:
    """Apply the file; what was done. Raises CatalogFileError, then nothing was written, or CatalogUnavailable."""
    return await service.apply(lambda catalog, now_us: plan(catalog, file, account=account, now_us=now_us))


def render_plan(changes: Iterable[Change]) -> RenderableType:
    """The changes for people: one line per field that differs, and how many objects stay as they are."""
    table = Table("", "object", "field", "before", "after", show_edge=False, pad_edge=False)
    unchanged = 0
    for change in changes:
        unchanged += change.action == "unchanged"
        sign, style = _SIGNS[change.action]
        for index, field in enumerate(change.fields):
            name = Text(f"{change.kind} {change.id}" if index == 0 else "")
            before = Text("" if change.action == "create" else _shown(field.before))
            table.add_row(Text(sign, style), name, Text(field.name), before, Text(_shown(field.after), style))
    if not table.row_count:
        return Text(f"nothing to change; {unchanged} unchanged")
    table.caption = Text(f"{unchanged} unchanged")
    return table


# ------------------------------------------------------------------------------------------------ private

_SIGNS: Final[dict[Action, tuple[str, str]]] = {
    "create": ("+", "green"),
    "update": ("~", "yellow"),
    "unchanged": ("", ""),
}
_first_name = re.compile(r"[^.\[]*").match
_PLAIN_TAGS: Final = {f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null")}
_TEXT_TAGS: Final = {f"tag:yaml.org,2002:{name}" for name in ("str", "timestamp")}


def _fault(path: str, line: int, code: str, message: str) -> FieldError:
    return FieldError(path, code, f"line {line}: {message}")


class _Reader:
    """YAML nodes to plain values, remembering on which line each path stands."""

    def __init__(self) -> None:
        self.faults: list[FieldError] = []
        self.lines: dict[str, int] = {}
        self._values = 0
        self._constructor = SafeConstructor()

    def wrong(self, path: str, line: int, code: str, message: str) -> None:
        self.faults.append(_fault(path, line, code, message))

    def value(self, node: yaml.Node, path: str, depth: int) -> Any:
        """Raises ValueError when the file unfolds beyond all measure."""
        line = node.start_mark.line + 1
        self.lines.setdefault(path, line)
        self._values += 1
        if self._values > VALUES_MAX or depth > DEPTH_MAX:
            raise ValueError(f"more than {VALUES_MAX} values or {DEPTH_MAX} levels; do aliases refer to each other?")
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path, depth)
            case yaml.SequenceNode():
                return [self.value(child, f"{path}[{i}]", depth + 1) for i, child in enumerate(node.value)]
            case yaml.ScalarNode() if node.tag in _TEXT_TAGS:
                return node.value  # instants stay text: their rules are the catalog's, not YAML's
            case yaml.ScalarNode() if node.tag in _PLAIN_TAGS:
                return self._constructor.construct_object(node)
        self.wrong(path, line, "type", f"the tag {node.tag} is not plain data")
        return None

    def _mapping(self, node: yaml.MappingNode, path: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag not in _TEXT_TAGS:
                self.wrong(path, line, "type", "every key must be text; put it in quotes")
                continue
            key = key_node.value
            here = f"{path}.{key}" if path else key
            if key in found:
                self.wrong(here, line, "duplicate_key", f"key {key!r} comes twice")
            self.lines[here] = line
            found[key] = self.value(child, here, depth + 1)
        return found


def _sections(reader: _Reader, found: Mapping[str, Any]) -> dict[str, tuple[Entry, ...]]:
    sections: dict[str, tuple[Entry, ...]] = {}
    for name, listed in found.items():
        if name == "account":
            continue
        if name not in SECTIONS:
            reader.wrong(
                name, reader.lines[name], "unknown_field", f"is no section; they are account, {', '.join(SECTIONS)}"
            )
        elif listed is not None and not isinstance(listed, list):
            reader.wrong(name, reader.lines[name], "type", "must be a list of objects, each beginning with a dash")
        else:
            sections[name] = _entries(reader, name, listed or [])
    return sections


def _entries(reader: _Reader, section: str, listed: list[Any]) -> tuple[Entry, ...]:
    entries, seen = [], set()
    id_field = "key" if section == "dimensions" else "id"
    for index, fields in enumerate(listed):
        path = f"{section}[{index}]"
        line = reader.lines[path]
        if not isinstance(fields, dict):
            reader.wrong(path, line, "type", f"must be an object with {id_field} and more")
            continue
        name = fields.get(id_field)
        if isinstance(name, str) and name in seen:
            reader.wrong(path, line, "duplicate_key", f"{id_field} {name!r} comes twice in {section}")
        elif isinstance(name, str):
            seen.add(name)
        entries.append(Entry(fields, path, line, {key: reader.lines[f"{path}.{key}"] for key in fields}))
    return tuple(entries)


def _planned(
    entries: Iterable[Entry], faults: list[FieldError], change: Callable[[dict[str, Any]], Change]
) -> list[Change]:
    changes = []
    for entry in entries:
        try:
            changes.append(change(entry.fields))
        except CatalogError as error:
            faults += [_placed(entry, fault) for fault in error.errors]
    return changes


def _placed(entry: Entry, fault: FieldError) -> FieldError:
    name = _first_name(fault.field)
    line = entry.lines.get(name[0] if name else "", entry.line)
    return _fault(f"{entry.path}.{fault.field}" if fault.field else entry.path, line, fault.code, fault.message)


def _account_change(catalog: Catalog, given: Mapping[str, object]) -> Change:
    after = account_from(given)
    before = catalog.account(after.id)
    fields = tuple(
        FieldChange(name, getattr(before, name, None), getattr(after, name))
        for name in ("name", "segment")
        if getattr(after, name) != getattr(before, name, {} if name == "segment" else None)
    )
    action: Action = "create" if before is None else "update" if fields else "unchanged"
    return Change("account", after.id, after.id, action, fields, after)


def _customer_change(catalog: Catalog, account: str, given: Mapping[str, object], now_us: int) -> Change:
    proposal = propose_customer(catalog, account, given, now_us, replace=True)
    before = customer_fields(proposal.before) if proposal.before else None
    fields = _differences(before, customer_fields(proposal.after))
    return Change("customer", account, proposal.after.id, proposal.action, fields, proposal.after)


def _feature_change(catalog: Catalog, account: str, given: Mapping[str, object], now_us: int) -> Change:
    proposal = propose_feature(catalog, account, given, now_us, replace=True)
    before = feature_fields(proposal.before) if proposal.before else None
    fields = _differences(before, feature_fields(proposal.after))
    return Change("feature", account, proposal.after.id, proposal.action, fields, proposal.after)


def _dimension_change(catalog: Catalog, account: str, given: Mapping[str, object], now_us: int) -> Change:
    proposal = propose_dimension(catalog, account, given, now_us, replace=True)
    before = dimension_fields(proposal.before) if proposal.before else None
    fields = _differences(before, dimension_fields(proposal.after))
    return Change("dimension", account, proposal.after.key, proposal.action, fields, proposal.after)


def _differences(before: Mapping[str, object] | None, after: Mapping[str, object]) -> tuple[FieldChange, ...]:
    """For a new object the fields that say something besides its id, otherwise those that differ."""
    if before is None:
        said = {
            name: value for name, value in after.items() if name not in ("id", "key") and value not in _SAYS_NOTHING
        }
        return tuple(FieldChange(name, None, value) for name, value in said.items())
    return tuple(FieldChange(name, before[name], value) for name, value in after.items() if before[name] != value)


_SAYS_NOTHING: Final[tuple[object, ...]] = ("", None, (), {}, False, format_timestamp(0))


def _shown(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()

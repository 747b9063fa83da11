"""What a request would change: the revision it asks for, beside the one that it changes.

Rules: pure. The first revision of an object holds since 1970 unless it says otherwise; a later one from the time of
the change on, yet never before the head, so that what was written last is what holds in the end. A request that
says what already holds at its time changes nothing and makes no revision.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Generic, Literal, TypeVar

import msgspec

from pipeline.catalog import Catalog, Customer, Dimension, Feature, holding
from pipeline.catalog_input import customer_from, dimension_from, feature_from
from pipeline.event import parse_timestamp

Action = Literal["create", "update", "unchanged"]
_T = TypeVar("_T", Feature, Dimension, Customer)
_R = TypeVar("_R", Feature, Dimension)


class Proposal(msgspec.Struct, Generic[_T], frozen=True):
    """`after` is what is to be written (for `unchanged`: what holds); `before` what it takes the place of."""

    action: Action
    before: _T | None
    after: _T


def propose_feature(
    catalog: Catalog, account: str, given: Mapping[str, object], now_us: int, *, replace: bool
) -> Proposal[Feature]:
    """The feature with the id in `given`. `replace`: fields not given get their defaults, else they stay.

    Raises CatalogError.
    """
    revisions = catalog.feature_revisions(account, _name(given, "id"))
    if not revisions:
        return Proposal("create", None, feature_from(account, given))
    from_us, held, head = _place(given, revisions, now_us)
    after = feature_from(account, given, base=None if replace else held or head)
    return _against(held, head, msgspec.structs.replace(after, effective_from_us=from_us))


def propose_dimension(
    catalog: Catalog, account: str, given: Mapping[str, object], now_us: int, *, replace: bool
) -> Proposal[Dimension]:
    """The dimension with the key in `given`; `replace` as for features. Raises CatalogError."""
    revisions = catalog.dimension_revisions(account, _name(given, "key"))
    if not revisions:
        return Proposal("create", None, dimension_from(account, given))
    from_us, held, head = _place(given, revisions, now_us)
    after = dimension_from(account, given, base=None if replace else held or head)
    return _against(held, head, msgspec.structs.replace(after, effective_from_us=from_us))


def propose_customer(
    catalog: Catalog, account: str, given: Mapping[str, object], now_us: int, *, replace: bool
) -> Proposal[Customer]:
    """The customer with the id in `given`; `replace` as for features. They have no revisions. Raises CatalogError."""
    before = catalog.customer(account, _name(given, "id"))
    if before is None:
        return Proposal("create", None, msgspec.structs.replace(customer_from(account, given), created_us=now_us))
    after = customer_from(account, given, base=None if replace else before)
    after = msgspec.structs.replace(after, created_us=before.created_us)
    if after == msgspec.structs.replace(before, rev=after.rev):
        return Proposal("unchanged", before, before)
    return Proposal("update", before, after)


def _name(given: Mapping[str, object], field: str) -> str:
    """The name to look up; the checks that follow refuse what is no string."""
    name = given.get(field)
    return name if isinstance(name, str) else ""


def _place(given: Mapping[str, object], revisions: tuple[_R, ...], now_us: int) -> tuple[int, _R | None, _R]:
    """From when the new revision holds, what holds then at present, and the head."""
    head: Any = holding(revisions, max(r.effective_from_us for r in revisions))
    from_us = max(now_us, head.effective_from_us)
    wanted = given.get("effective_from")
    if isinstance(wanted, str):
        with suppress(ValueError):  # the checks of all fields find it again and name it
            from_us = parse_timestamp(wanted)
    return from_us, holding(revisions, from_us), head


def _against(held: _R | None, head: _R, after: _R) -> Proposal[_R]:
    same: Any = msgspec.structs.replace(after, effective_from_us=held.effective_from_us, rev=held.rev) if held else None
    if held is not None and same == held:
        return Proposal("unchanged", held, held)
    return Proposal("update", held or head, after)

"""Where a partition goes on, in every case that group, ledger and log can be in together."""

import pytest

from pipeline.block import GAP_RULES, RULES, Committed, Intent
from pipeline.going_on import Going, LedgerAhead, Lost, StoreBehind, going_on, out_of_log
from pipeline.ports import Epoch

EPOCH = Epoch(3, known=True, first_offset=5)
FRESH = Epoch(3, known=False, first_offset=0)


def _block(start: int, end: int) -> Intent:
    return Intent(3, start, end, 1, 2, 3, RULES, 4)


def _gap(start: int, end: int) -> Intent:
    return Intent(3, start, end, 0, 0, 0, GAP_RULES, 4)


def _at(offset: int, intent: Intent | None = None) -> Committed:
    return Committed(3, offset, intent)


@pytest.mark.parametrize(
    ("ours", "ledger", "epoch", "expected"),
    [
        (None, None, FRESH, Lost(None)),
        (None, None, EPOCH, Lost(_at(5))),
        (None, _block(10, 20), EPOCH, Lost(_at(10, _block(10, 20)))),
        (None, _gap(10, 20), EPOCH, Lost(_at(20))),
        (_at(5), None, EPOCH, _at(5)),
        (_at(20), _block(10, 20), EPOCH, _at(20)),
        (_at(20, _block(20, 30)), _block(10, 20), EPOCH, _at(20, _block(20, 30))),
        (_at(10, _block(10, 20)), _block(10, 20), EPOCH, _at(10, _block(10, 20))),
        (_at(10), _block(10, 20), EPOCH, LedgerAhead(_at(10, _block(10, 20)))),
        (_at(7), _block(10, 20), EPOCH, LedgerAhead(_at(10, _block(10, 20)))),
        (_at(10, _block(10, 20)), _gap(10, 40), EPOCH, LedgerAhead(_at(40))),
        (_at(7, _block(7, 10)), _gap(10, 40), EPOCH, LedgerAhead(_at(40))),
        (_at(40), _gap(10, 40), EPOCH, _at(40)),
    ],
)
def test_a_partition_goes_on_where_all_three_agree(
    ours: Committed | None, ledger: Intent | None, epoch: Epoch, expected: Going
) -> None:
    """The ledger wins where it knows more; a range that was given up is never entered again."""
    assert going_on(0, ours, ledger, epoch) == expected


@pytest.mark.parametrize(
    ("ours", "ledger", "epoch"),
    [
        (_at(6), None, EPOCH),
        (_at(0), None, FRESH),
        (_at(30), _block(10, 20), EPOCH),
        (_at(15), _block(10, 20), EPOCH),
        (_at(50), _gap(10, 40), EPOCH),
    ],
)
def test_a_store_behind_the_offsets_names_the_way_out(ours: Committed, ledger: Intent | None, epoch: Epoch) -> None:
    """Going on would leave a hole."""
    found = going_on(7, ours, ledger, epoch)
    assert isinstance(found, StoreBehind)
    assert "tally offsets reset --partition 7 --to ledger" in found.reason


def test_the_log_must_hold_what_comes_next() -> None:
    """Both ends belong to it."""
    assert out_of_log(2, 10, 10, 20) is None
    assert out_of_log(2, 20, 10, 20) is None
    assert "tally offsets skip --partition 2" in str(out_of_log(2, 9, 10, 20))
    assert "the log was put back" in str(out_of_log(2, 21, 10, 20))

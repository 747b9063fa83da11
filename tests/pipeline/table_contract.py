"""What every Table promises; run against the one on RocksDB and the one in memory."""

from collections.abc import Callable
from typing import Protocol

import pytest

from pipeline.block import Position, Sighting, pack_sighting
from pipeline.ports import Marker, Table, TableClosed


class ClosableTable(Table, Protocol):
    """A table whose user opened it."""

    def close(self) -> None:
        """No use after this."""

    def ids_estimate(self) -> int:
        """About how many ids it holds."""


def sighting(offset: int, *, epoch: int = 0, line: int = 0) -> bytes:
    """A packed sighting at a position."""
    return pack_sighting(Sighting(Position(epoch, offset, line), 1, 2))


def key(number: int) -> bytes:
    """A 16-byte key."""
    return number.to_bytes(16, "little")


class TableContract:
    """Inherit and give `table`, a function that opens a fresh one."""

    table: Callable[[], ClosableTable]

    def test_what_was_put_is_found_and_nothing_else(self) -> None:
        """Also asked for many at once, several times the same, or none."""
        table = self.table()
        table.put({key(1): sighting(1), key(2): sighting(2)})
        assert table.get_many([key(2), key(3), key(1), key(2)]) == {key(1): sighting(1), key(2): sighting(2)}
        assert table.get_many([]) == {}
        table.close()

    def test_the_smaller_position_wins_whatever_the_order_of_restoring(self) -> None:
        """Within one batch, against what is there, and over epochs."""
        table = self.table()
        table.put({key(1): sighting(5), key(2): sighting(5), key(3): sighting(0, epoch=1)})
        table.restore([(key(1), sighting(9)), (key(2), sighting(4)), (key(3), sighting(8))])
        table.restore([(key(4), sighting(7)), (key(4), sighting(6)), (key(4), sighting(6, line=1))])
        assert table.get_many([key(n) for n in (1, 2, 3, 4)]) == {
            key(1): sighting(5),
            key(2): sighting(4),
            key(3): sighting(8),
            key(4): sighting(6),
        }
        table.close()

    def test_the_marker_moves_with_what_was_read_back_only(self) -> None:
        """Neither a put nor a restore without one touches it."""
        table = self.table()
        assert table.marker() == Marker(0, 0, 0)
        table.put({key(1): sighting(1)})
        table.restore([(key(2), sighting(2))])
        assert table.marker() == Marker(0, 0, 0)
        table.restore([], Marker(2**40, 3, 2**41))
        assert table.marker() == Marker(2**40, 3, 2**41)
        table.close()

    def test_a_closed_table_says_so_to_whoever_still_uses_it(self) -> None:
        """Its session has lost the partition."""
        table = self.table()
        table.close()
        table.close()
        for use in (
            lambda: table.get_many([key(1)]),
            lambda: table.put({key(1): sighting(1)}),
            lambda: table.restore([(key(1), sighting(1))]),
            table.marker,
        ):
            with pytest.raises(TableClosed):
                use()

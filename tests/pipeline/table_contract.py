"""What every Table promises; run against the one on RocksDB and the one in memory."""

from collections.abc import Callable
from typing import Protocol

import pytest

from pipeline.block import Position, Sighting, pack_sighting
from pipeline.ports import Border, Marker, Table, TableClosed


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

    def test_what_is_there_already_is_taken_for_known(self) -> None:
        """Reading back what the session wrote itself changes nothing."""
        table = self.table()
        table.put({key(1): sighting(1), key(2): sighting(2)})
        table.restore([(key(1), sighting(1)), (key(2), sighting(3))], Marker(1, 0, 3))
        assert table.get_many([key(1), key(2)]) == {key(1): sighting(1), key(2): sighting(2)}
        table.close()

    def test_entries_come_page_by_page_in_the_order_of_their_keys(self) -> None:
        """Neither marker nor border is among them; what is put meanwhile does no harm."""
        table = self.table()
        entries = {key(n * 7 % 100): sighting(n) for n in range(100)}
        table.put(entries)
        table.restore([], Marker(1, 2, 3))
        table.expire([], Border(0, 1))
        found: list[tuple[bytes, bytes]] = []
        while page := table.page(found[-1][0] if found else b"", 7):
            assert len(page) <= 7
            found += page
        assert found == sorted(entries.items())
        table.close()

    def test_expired_keys_are_gone_and_the_border_tells_of_it(self) -> None:
        """The marker stays where it is."""
        table = self.table()
        assert table.border() == Border(0, 0)
        table.restore([(key(n), sighting(n)) for n in range(5)], Marker(9, 0, 5))
        table.expire([key(1), key(3), key(77)], Border(2, 2**41))
        assert sorted(table.get_many([key(n) for n in range(5)])) == [key(0), key(2), key(4)]
        assert (table.border(), table.marker()) == (Border(2, 2**41), Marker(9, 0, 5))
        table.close()

    def test_the_filter_never_says_no_to_what_it_was_told(self) -> None:
        """An empty one says no to all."""
        table = self.table()
        keys = [(n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128).to_bytes(16, "little") for n in range(1, 3000)]
        assert table.may_be_expired(keys) == []
        table.remember_expired(b"".join(keys[:2000]))
        assert table.may_be_expired([]) == []
        found = table.may_be_expired(keys)
        assert found[:2000] == keys[:2000]
        assert len(found) < 2500
        assert table.remembered() == Border(0, 0)
        table.save_expired(Border(1, 5))
        assert table.remembered() == Border(1, 5)
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
            table.border,
            lambda: table.page(b"", 1),
            lambda: table.expire([key(1)], Border(0, 1)),
        ):
            with pytest.raises(TableClosed):
                use()

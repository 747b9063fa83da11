"""Dedup: verdicts are a function of the log alone, however it is cut and however often it is read."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from pipeline.block import Line, Position, Verdict, earlier, unpack_sighting
from pipeline.event import Event, derived_id_hash, id_hash, partition_of
from pipeline.stages.dedup import identify, judge

PARTITIONS = 2


class Sent(NamedTuple):
    """An event of the log: id (None for none), content, account known or not; or a line that is none."""

    identity: str | None
    value: int
    known: bool
    good: bool


SENT = st.builds(
    Sent,
    st.none() | st.sampled_from("abcdef"),
    st.integers(0, 1),
    st.sampled_from([True, True, True, False]),
    st.sampled_from([True, True, True, False]),
)
LOGS = st.lists(SENT, max_size=25)


def lines_of(log: Sequence[Sent], first: int = 0) -> list[Line]:
    """Lines at offset n // 3, line n % 3."""
    return [
        Line(
            offset=n // 3,
            line=n % 3,
            append_ms=n * 1000,
            account="acme" if sent.known else "nobody",
            raw=b"",
            event=Event(client_id=f"c{sent.value}", timestamp_us=0, transaction_id=sent.identity)
            if sent.good
            else None,
        )
        for n, sent in enumerate(log)
        if n >= first
    ]


def oracle(log: Sequence[Sent], partition: int) -> list[Verdict]:
    """The same in plain words: the first one counts."""
    seen: dict[str, int] = {}
    verdicts = []
    for sent in log:
        if not sent.good or not sent.known:
            verdicts.append(Verdict.REJECTED)
        elif sent.identity is None:
            verdicts.append(Verdict.ACCEPTED)
        elif partition_of(id_hash("acme", sent.identity), PARTITIONS) != partition:
            verdicts.append(Verdict.REROUTED)
        elif sent.identity not in seen:
            seen[sent.identity] = sent.value
            verdicts.append(Verdict.ACCEPTED)
        else:
            verdicts.append(Verdict.DUPLICATE if seen[sent.identity] == sent.value else Verdict.CONFLICT)
    return verdicts


def block(lines: Sequence[Line], table: dict[bytes, bytes], partition: int, epoch: int = 0) -> dict[bytes, bytes]:
    """One block: verdicts go into the lines, sightings come back."""

    def lookup(keys: Sequence[bytes]) -> Mapping[bytes, bytes]:
        return {key: table[key] for key in keys if key in table}

    identify(
        lines,
        topic="t",
        epoch=epoch,
        partition=partition,
        partitions=PARTITIONS,
        known_account=lambda account: account == "acme",
    )
    return judge(lines, epoch=epoch, lookup=lookup)


@given(LOGS, st.integers(0, PARTITIONS - 1), st.lists(st.integers(0, 25)))
def test_verdicts_are_those_of_a_plain_reading_however_the_log_is_cut(
    log: list[Sent], partition: int, cuts: list[int]
) -> None:
    """Any blocks, one after the other with their sightings in the table."""
    table: dict[bytes, bytes] = {}
    verdicts = []
    edges = sorted({0, len(log), *[cut for cut in cuts if cut < len(log)]})
    for start, end in pairwise(edges):
        lines = lines_of(log[:end], start)
        table.update(block(lines, table, partition))
        verdicts += [line.verdict for line in lines]
    assert verdicts == oracle(log, partition)


@given(LOGS, st.integers(0, PARTITIONS - 1), st.integers(0, 25), st.integers(0, 25))
def test_a_block_built_again_comes_out_the_same_whatever_the_table_has_learnt_since(
    log: list[Sent], partition: int, cut: int, later: int
) -> None:
    """Its own sightings, and those of blocks after it, are no reason for another verdict."""
    start = min(cut, len(log))
    end = min(start + later, len(log))
    table = block(lines_of(log[:start]), {}, partition)
    once = lines_of(log[:end], start)
    added = block(once, table, partition)
    whole = block(lines_of(log), {}, partition)
    for known in ({**table, **added}, whole):
        again = lines_of(log[:end], start)
        assert block(again, known, partition) == added
        assert [line.verdict for line in again] == [line.verdict for line in once]


@given(LOGS, st.integers(0, PARTITIONS - 1))
def test_sightings_are_the_accepted_ones_in_the_order_of_the_log(log: list[Sent], partition: int) -> None:
    """Position, content and append time of each first one; rejected and misplaced ones leave nothing."""
    lines = lines_of(log)
    added = block(lines, {}, partition)
    accepted = [line for line in lines if line.verdict is Verdict.ACCEPTED]
    assert list(added) == [line.key.to_bytes(16, "little") for line in accepted]
    assert [unpack_sighting(value) for value in added.values()] == [
        (Position(0, line.offset, line.line), line.content, line.append_ms // 1000) for line in accepted
    ]


@given(LOGS, LOGS)
def test_a_topic_made_anew_keeps_its_ids_and_gives_new_ones_to_events_without(one: list[Sent], two: list[Sent]) -> None:
    """Epochs come before offsets, so what was first stays first; positions of another epoch are others."""
    table = block(lines_of(one), {}, 0)
    lines = lines_of(two)
    block(lines, table, 0, epoch=1)
    verdicts = oracle([*one, *two], 0)[len(one) :]
    assert [line.verdict for line in lines] == verdicts


def test_of_two_sightings_the_table_keeps_the_earlier() -> None:
    """A later one restored first does not make the first event a duplicate of itself."""
    log = [Sent("a", 0, True, True)] * 3
    home = partition_of(id_hash("acme", "a"), PARTITIONS)
    first = block(lines_of(log), {}, home)
    late = block(lines_of(log, 2), {}, home)
    (key,) = first
    assert earlier(late[key], first[key]) == first[key]
    lines = lines_of(log)
    assert block(lines, late, home) == first
    assert [line.verdict for line in lines] == [Verdict.ACCEPTED, Verdict.DUPLICATE, Verdict.DUPLICATE]


def test_an_event_without_id_is_named_by_its_position() -> None:
    """Two equal ones are two; read again, each is itself."""
    lines = lines_of([Sent(None, 0, True, True)] * 2)
    block(lines, {}, 1, epoch=4)
    assert [line.key for line in lines] == [derived_id_hash(4, "t", 1, 0, n) for n in range(2)]


def test_an_unknown_account_is_a_refusal_that_names_it_and_comes_before_routing() -> None:
    """It belongs to nobody, so it is sent nowhere."""
    lines = lines_of([Sent("a", 0, False, True), Sent("b", 0, False, True)])
    block(lines, {}, 0)
    assert [(line.verdict, line.errors[0].code) for line in lines] == [(Verdict.REJECTED, "unknown_account")] * 2


def test_a_conflict_says_where_the_first_one_lies() -> None:
    """Whoever looks into it finds both."""
    home = partition_of(id_hash("acme", "a"), PARTITIONS)
    lines = lines_of([Sent("a", 0, True, True), Sent("a", 1, True, True)])
    block(lines, {}, home)
    assert lines[1].errors[0].field == "transactionId"
    assert "offset 0" in lines[1].errors[0].message

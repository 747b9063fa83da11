"""Runs a worker with one bug in it, to show that the harness sees it.

``python tests/faults/planted.py FILE``: FILE names one of BUGS, or nothing for the worker as it is. A bug is a change
of a few words in the source of the production code, made before the worker starts; code that has changed so that the
words are gone ends the worker with an error, so that no bug is planted in vain.
"""

import inspect
import runpy
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline import session, worker
from pipeline.adapters import block_store
from pipeline.block import RULES
from pipeline.stages import build, dedup

_Change = tuple[Any, str, str, str]  # module or class, function, words, other words

#: A rebuilt block is compared with its intent, and doubtful rows are looked for: nets of the product's own that would
#: stop the partition before anything is lost. Bugs that fall into them are planted with a hole in them.
_NO_CHECK: Final[_Change] = (
    session.Session,
    "_rebuild_block",
    "if (block.counts.accepted, block.crc) != (intent.rows, intent.crc):",
    "if False:",
)
_NO_PROOF: Final[_Change] = (
    session.Session,
    "_prove",
    "landed = await self._landed(block)\n    if landed.complete:",
    "landed = Landed({})\n    if True:",
)

BUGS: Final[dict[str, tuple[_Change, ...]]] = {
    # an id is taken for seen from the moment its block is built, so that its own replay is a duplicate
    "seen-before-insert": (
        (dedup, "judge", "if first.position >= position:", "if first.position > position:"),
        _NO_CHECK,
    ),
    # every insert lands, whether its block is there or not
    "no-insert-dedup": (
        (
            block_store.BlockStore,
            "insert",
            '"insert_deduplication_token": block.token,',
            '"insert_deduplicate": 0, "deduplicate_insert": "disable",',
        ),
        _NO_PROOF,
    ),
    # a block that is built again ends one record early
    "wrong-block-edge": (
        (
            session.Session,
            "_rebuild_block",
            "taken = inbox.take_until(intent.end)",
            "taken = inbox.take_until(intent.end)\n    taken = taken._replace(records=taken.records[:-1])",
        ),
        _NO_CHECK,
    ),
    # the end is committed whatever became of the insert
    "end-before-insert": (
        (
            session.Session,
            "_rows",
            "await self._io(self._out.blocks.insert, block,",
            "self._out.io.submit(self._out.blocks.insert, block,",
        ),
    ),
    # a commit that the group refuses is taken for done, by sessions that hear of the rebalance late, as they may
    "stale-generation": (
        (
            worker.Worker,
            "release",
            "sessions, self._sessions = self._sessions, {}",
            "await asyncio.sleep(3 if self._sessions else 0)\n    sessions, self._sessions = self._sessions, {}",
        ),
        (
            session.Session,
            "_commit",
            "if answer is CommitAnswer.DONE:",
            "if answer in (CommitAnswer.DONE, CommitAnswer.REFUSED):",
        ),
        _NO_CHECK,
        _NO_PROOF,
    ),
}


def plant(name: str) -> None:
    """Puts the bug into the code that this process has imported. Raises ValueError where its words are gone."""
    for owner, function, words, others in BUGS[name]:
        _change(owner, function, words, others)
    build.RULE_SETS[RULES] = build.RuleSet(judge=dedup.judge)


def _change(owner: Any, name: str, words: str, others: str) -> None:
    function: Callable[..., Any] = getattr(owner, name)
    source = textwrap.dedent(getattr(function, "planted", None) or inspect.getsource(function))
    if source.count(words) != 1:
        raise ValueError(f"{name} has not {words!r} once: the bug must be planted in another way")
    source = source.replace(words, others)
    module: ModuleType = inspect.getmodule(function) if isinstance(function, FunctionType) else owner  # type: ignore[assignment]
    found: dict[str, Any] = {}
    exec(compile(source, f"planted {name}", "exec"), vars(module), found)  # noqa: S102 - our own source
    found[name].planted = source
    setattr(owner, name, found[name])


def main() -> None:
    """The program."""
    name = Path(sys.argv[1]).read_text().strip()
    if name:
        plant(name)
        print(f"planted {name}", file=sys.stderr)
    sys.argv = ["faust", "-A", "pipeline.app", "worker"]
    runpy.run_module("faust.__main__", run_name="__main__")  # `faust` itself is imported by now


if __name__ == "__main__":
    main()

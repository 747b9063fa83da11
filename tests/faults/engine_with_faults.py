"""The engine's process with faults in its inserts, for the harness; run it like `pipeline.local.engine`.

The file named by FAULTS_ARM holds one word that the next insert of a block obeys once; without that file nothing is
changed: `answer-lost` dies after the insert is done and before it is answered; `refuse` answers with an error although
the insert is done; `slow` does the insert, then answers 3 s late.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.local.engine import main
from pipeline.local.handle import EngineError, Handle, Output

_arm = Path(os.environ["FAULTS_ARM"])
_insert = Handle.insert
_BLOCK = b"ingest"


def insert(self: Handle, sql: bytes, format_name: str, pieces: Iterable[memoryview]) -> Output:
    """The engine's own insert, then the fault."""
    output = _insert(self, sql, format_name, pieces)
    action = _taken() if _BLOCK in sql else ""
    if action == "answer-lost":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "refuse":
        raise EngineError("Code: 159. DB::Exception: the harness lost this answer. (TIMEOUT_EXCEEDED)")
    if action == "slow":
        time.sleep(3)
    return output


def _taken() -> str:
    """The word that is armed; whoever renames the file first has it."""
    mine: Any = _arm.with_name(f"{_arm.name}.taken")
    try:
        _arm.rename(mine)
    except FileNotFoundError:
        return ""
    return mine.read_text().strip()


if __name__ == "__main__":
    Handle.insert = insert  # type: ignore[method-assign]
    sys.exit(main())

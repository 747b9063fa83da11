"""What keeps a worker's memory from growing with its partitions and threads."""

import subprocess
import sys
from pathlib import Path

from pipeline.adapters.rocks import Tables


def test_what_is_written_and_not_on_disk_yet_counts_as_the_caches(tmp_path: Path) -> None:
    """So that one setting bounds a worker's tables."""
    tables = Tables(tmp_path, 64 << 20, tables=2)
    one, other = tables.open("t-0"), tables.open("t-1")
    before = one.cached_bytes()
    for table in (one, other):
        table.put({number.to_bytes(16, "big"): b"v" * 20 for number in range(20_000)})
    assert one.cached_bytes() - before > 2 * 20_000 * 36
    one.close()
    other.close()


def test_arrow_and_the_threads_of_a_worker_share_the_memory_that_glibc_keeps() -> None:
    """Unless the environment says otherwise."""
    program = (
        "import pyarrow as pa\n"
        "from pipeline.memory import keep_memory_together\n"
        "keep_memory_together()\n"
        "print(pa.default_memory_pool().backend_name)\n"
    )

    def backend(**extra: str) -> str:
        done = subprocess.run([sys.executable, "-c", program], env=extra, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert backend() == "system"
    assert backend(ARROW_DEFAULT_MEMORY_POOL="mimalloc") == "mimalloc"


def test_arrow_imports_nothing_later() -> None:
    """Rows for the store are made in the event loop of the API, which stood still while pandas was imported."""
    program = (
        "import sys\n"
        "import pyarrow as pa\n"
        "from pipeline.memory import load_late_imports\n"
        "early = set(sys.modules)\n"
        "load_late_imports()\n"
        "before = set(sys.modules)\n"
        "pa.Table.from_pylist([{'used': 1}], schema=pa.schema([('used', pa.int64())]))\n"
        "print(len(set(sys.modules) - before), 'pandas' in early, 'pandas' in before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False", "True"]

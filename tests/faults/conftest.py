"""Tests of the harness by itself: its modules are imported as the programs import them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

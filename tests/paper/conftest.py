"""The items of `benchmarks/paper` import their helpers by bare names, as scripts do."""

from __future__ import annotations

import sys
from pathlib import Path

PAPER = Path(__file__).resolve().parents[2] / "benchmarks" / "paper"
sys.path.insert(0, str(PAPER))

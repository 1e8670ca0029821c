"""What every benchmark shares: rows of JSON on standard output, checked targets, exit status, the environment.

Import it before hzo_hil: it puts the checkout's root on the path, so that a benchmark runs from a clone as it does
with an install. It knows no benchmark.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, "==": operator.eq}


def arguments(doc: str | None, **flags: str) -> argparse.Namespace:
    """The command line: `--quick`, and further flags by name with their help."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="less work, within a minute")
    for name, text in flags.items():
        parser.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args()


def meets(value: float, target: str) -> bool:
    """Whether a value meets a target such as "<= 1.25".

    >>> meets(1.2, "<= 1.25"), meets(2015, "== 2016")
    (True, False)
    """
    sign, _, bound = target.partition(" ")
    return bool(COMPARE[sign](value, float(bound)))


class Rows:
    """Prints rows and remembers whether each met its target.

    A target is for `ratio` where a row has one, else for `value`.
    """

    def __init__(self) -> None:
        self.missed = 0
        self.kept: list[dict[str, Any]] = []  # what was printed

    def row(
        self,
        case: str,
        value: float | int | str,
        unit: str,
        *,
        against: str | None = None,
        ratio: float | None = None,
        target: str | None = None,
        **more: Any,
    ) -> None:
        found: dict[str, Any] = {"case": case, "value": _short(value), "unit": unit}
        if against is not None:
            found["against"] = against
        if ratio is not None:
            found["ratio"] = _short(ratio)
        if target is not None:
            judged = value if ratio is None else ratio
            found |= {"target": target, "ok": isinstance(judged, (int, float)) and meets(judged, target)}
            self.missed += not found["ok"]
        self.kept.append(found | {name: _short(v) for name, v in more.items()})
        print(json.dumps(self.kept[-1]), flush=True)

    def environment(self) -> None:
        """A row on where this ran: versions, cores, threads. No clock, no commit, no names of machines."""
        import numpy
        import torch

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.row(
            "environment", platform.python_version(), "python", torch=torch.__version__, numpy=numpy.__version__,
            cores=cores, torch_threads=torch.get_num_threads(), system=platform.system(), machine=platform.machine(),
        )  # fmt: skip

    def exit(self) -> None:
        """End the process: status 1 if any target was missed."""
        sys.exit(1 if self.missed else 0)


def _short(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value

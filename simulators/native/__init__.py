"""The fast route: kernels in C behind a plain ABI, loaded with ctypes; every one of them has a slower twin in numpy.

The library is built by `build.py` beside this file (pip does it), comes with the wheels, and links to nothing but the
C library. Without it everything works, slower. Knows nothing of physics: the callers name the kernels.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from hzo_hil.simulators.native.build import library_path, source_digest

_HERE = Path(__file__).parent
SUFFIXES = {"float32": "f32", "float64": "f64"}
REALS = {"float32": ctypes.c_float, "float64": ctypes.c_double}
OFF = "HZO_HIL_NATIVE"  # set to 0: stay with numpy, to compare the two


class Library:
    """The kernels of the widest instruction set that this processor and the library share."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.hzo_level.restype = ctypes.c_char_p
        self._library.hzo_sources.restype = ctypes.c_char_p
        self.level = self._library.hzo_level().decode()
        self.sources = self._library.hzo_sources().decode()

    def kernel(self, name: str, *types: Any) -> Any:
        """The C function of a plain name, such as "normals_f32", taking arguments of these ctypes types; no result."""
        function = getattr(self._library, f"hzo_{name}_{self.level}")
        function.argtypes, function.restype = types, None
        return function


@cache
def _load() -> tuple[Library | None, str]:
    if os.environ.get(OFF) == "0":
        return None, f"numpy ({OFF}=0)"
    path = library_path(_HERE)
    if not path.exists():
        return (
            None,
            "numpy (no kernel library: build it with python simulators/native/build.py, which needs a C compiler)",
        )
    try:
        found = Library(path)
    except (OSError, AttributeError) as reason:
        return None, f"numpy (the kernel library does not load: {reason})"
    if found.sources != source_digest(_HERE):
        return None, "numpy (the kernel library is older than its sources: run python simulators/native/build.py)"
    return found, f"C kernels ({found.level})"


def library() -> Library | None:
    """The kernels; None where they are not built, do not fit or are switched off."""
    return _load()[0]


def route() -> str:
    """One line for people: the route in use, and why where it is the slow one."""
    return _load()[1]


def threads() -> int:
    """How many threads the kernels may use: HZO_HIL_THREADS, else OMP_NUM_THREADS, else one for each core."""
    for name in ("HZO_HIL_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(name, "")
        if text.isdecimal() and int(text) > 0:
            return int(text)
    return os.cpu_count() or 1


def over_rows(work: Callable[[slice], None], rows: int, least: int) -> None:
    """Call `work` for slices of `rows`, in threads while each gets at least `least` rows; kernels free the GIL.

    The result must not depend on where the slices end.
    """
    parts = min(threads(), rows // max(least, 1))
    if parts <= 1:
        work(slice(0, rows))
        return
    ends = [rows * i // parts for i in range(parts + 1)]
    list(_pool(os.getpid(), parts).map(work, [slice(a, b) for a, b in itertools.pairwise(ends)]))


@cache
def _pool(process: int, parts: int) -> ThreadPoolExecutor:
    """Kept for the life of the process; a forked child makes its own."""
    return ThreadPoolExecutor(parts, thread_name_prefix="hzo-kernels")

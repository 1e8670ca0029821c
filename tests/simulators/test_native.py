"""The kernel library: a stale one is never used in silence, its absence is said, and threads change no bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hzo_hil.simulators import native, noise
from hzo_hil.simulators.native import build

HERE = Path(native.__file__).parent
SHOW = "from hzo_hil.simulators import native; print(native.route())"


def route(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, **environment}, cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    return done.stdout.strip()


def test_a_library_that_is_there_is_the_one_of_these_sources():
    """Else every comparison of kernels with numpy would compare numpy with itself."""
    if not build.library_path(HERE).exists():
        pytest.skip("the kernels are not built: python simulators/native/build.py")
    assert native.library() is not None, native.route()


def test_it_can_be_switched_off_and_says_so():
    assert route(HZO_HIL_NATIVE="0") == "numpy (HZO_HIL_NATIVE=0)"


def test_other_sources_have_another_digest(tmp_path):
    for path in [*HERE.glob("*.c"), *HERE.glob("*.h")]:
        shutil.copy(path, tmp_path / path.name)
    before = build.source_digest(tmp_path)
    assert before == build.source_digest(HERE)
    common = tmp_path / "common.h"
    common.write_bytes(common.read_bytes().replace(b"\n", b"\r\n"))
    assert build.source_digest(tmp_path) == before, "line ends as Windows checks them out"
    common.write_text(common.read_text(encoding="utf-8") + "/* */", encoding="utf-8")
    assert build.source_digest(tmp_path) != before


@pytest.mark.skipif(build.find_compiler() is None, reason="needs a C compiler")
def test_a_build_and_a_compiler_that_complains(tmp_path):
    for path in [*HERE.glob("*.c"), *HERE.glob("*.h")]:
        shutil.copy(path, tmp_path / path.name)
    made = build.build(tmp_path)
    assert made == build.library_path(tmp_path)
    assert native.Library(made).sources == build.source_digest(HERE)
    (tmp_path / "kernels.c").write_text("not C", encoding="utf-8")
    with pytest.raises(RuntimeError, match="the C compiler failed"):
        build.build(tmp_path)


def test_threads_share_the_rows_and_change_nothing(monkeypatch):
    keys = np.arange(70_000, dtype=np.uint64)
    found = []
    for count in ("1", "2", "5"):
        monkeypatch.setenv("HZO_HIL_THREADS", count)
        assert native.threads() == int(count)
        found.append(noise.normals(keys, 1, 7))
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    seen: list[slice] = []
    native.over_rows(seen.append, 10, 3)
    ends = sorted((part.start, part.stop) for part in seen)
    assert len(ends) == 3
    assert [a for a, _ in ends[1:]] == [b for _, b in ends[:-1]] and ends[0][0] == 0 and ends[-1][1] == 10

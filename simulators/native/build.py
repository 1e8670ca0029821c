"""Builds the kernel library beside its sources: python simulators/native/build.py [--target TRIPLE].

Uses the compiler of CC, else cc, gcc or clang, else the one of the package `ziglang` (which pip fetches where a build
finds no other, and which builds for other systems, too). Runs by itself: it imports nothing of the project.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

# One object per instruction set; the processor is asked at run time which one it can run.
X86_LEVELS = {"base": "x86-64", "v3": "x86-64-v3", "v4": "x86-64-v4"}
FLAGS = "-std=c11 -O3 -fPIC -fvisibility=hidden -fno-math-errno -fno-trapping-math -ffp-contract=fast -Wall -Wextra"
_ENDINGS = {"windows": ".dll", "darwin": ".dylib", "macos": ".dylib"}


def library_path(folder: Path, target: str = "") -> Path:
    """Where the library for `target` (empty: this machine) lies in `folder`.

    The dot in its name keeps Python from taking it for an extension module.
    """
    system = target.lower() if target else sys.platform.replace("win32", "windows")
    ending = next((e for name, e in _ENDINGS.items() if name in system), ".so")
    return folder / f"hzo.kernels{ending}"


def source_digest(folder: Path) -> str:
    """Hash of all C sources; the library carries the one it was built from."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.c"), *folder.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:16]


def find_compiler() -> list[str] | None:
    """The command of a C compiler; None if there is none."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    return zig()


def zig() -> list[str] | None:
    return [sys.executable, "-m", "ziglang", "cc"] if importlib.util.find_spec("ziglang") else None


def build(folder: Path, target: str = "") -> Path | None:
    """Compile all kernels into the library in `folder`; None without a compiler, RuntimeError if it complains."""
    compiler = zig() if target else find_compiler()
    if compiler is None:
        return None
    if target:
        compiler = [*compiler, "-target", target]
    machine = target.partition("-")[0] if target else platform.machine().lower()
    levels = X86_LEVELS if machine in ("x86_64", "amd64") else {"base": ""}
    define = [f'-DHZO_SOURCES="{source_digest(folder)}"', *(["-DHZO_X86"] if len(levels) > 1 else [])]
    with tempfile.TemporaryDirectory() as scratch:
        objects = []
        for level, processor in levels.items():
            objects.append(str(Path(scratch, f"kernels_{level}.o")))
            naming = [f"-DHZO_LEVEL={level}", *_processor_flags(compiler, processor)]
            _run([*compiler, *FLAGS.split(), *define, *naming, "-c", str(folder / "kernels.c"), "-o", objects[-1]])
        objects.append(str(Path(scratch, "dispatch.o")))
        _run([*compiler, *FLAGS.split(), *define, "-c", str(folder / "dispatch.c"), "-o", objects[-1]])
        out = library_path(folder, target)
        made = Path(scratch, out.name)
        _run([*compiler, "-shared", "-s", *objects, "-o", str(made), *([] if out.suffix == ".dll" else ["-lm"])])
        # Replaced as a whole: a running process keeps the library it has loaded.
        beside = out.with_suffix(f".new{os.getpid()}")
        shutil.copyfile(made, beside)
        os.replace(beside, out)
    return out


def _processor_flags(compiler: list[str], processor: str) -> list[str]:
    if not processor:
        return []
    named = f"-mcpu={processor.replace('-', '_')}" if "ziglang" in compiler else f"-march={processor}"
    return [named, *(["-mprefer-vector-width=512"] if processor.endswith("v4") else [])]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the C compiler failed: {shlex.join(command)}\n{done.stderr}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--target", default="", help="another system, by ziglang: x86_64-windows-gnu, aarch64-macos, ..."
    )
    made = build(Path(__file__).resolve().parent, parser.parse_args().target)
    print(made.name if made else "no C compiler found: set CC, or pip install ziglang; the numpy route is used")
    return 0 if made else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Builds the firmware once a session and starts it: as a program of this machine, or on an emulated Cortex-M3.

Where a compiler or the emulator is missing, the tests that need it skip and say which.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FIRMWARE = Path(__file__).resolve().parents[2] / "devices" / "firmware"
WARNINGS = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]

Start = Callable[..., int]


def needs(*tools: str) -> None:
    """Skip where a tool is missing."""
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool}, which is not installed here")


def make(target: str, build: Path, defines: str = "", folder: Path = FIRMWARE, timeout: float = 120) -> None:
    command = ["make", "-C", str(folder), target, f"BUILD={build}", f"DEFINES={defines}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def describe() -> ModuleType:
    """devices/firmware/describe.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("firmware_describe", FIRMWARE / "describe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def description(describe: ModuleType) -> dict[str, Any]:
    found = json.loads(describe.text())
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="session")
def host_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs("make", "gcc")
    if sys.platform == "win32":
        pytest.skip("the host build of the firmware uses POSIX sockets")
    build = tmp_path_factory.mktemp("firmware-host")
    make("host", build)
    return build / "firmware"


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`image(defines)`: the Cortex-M3 image, built once for each set of definitions."""
    needs("make", "arm-none-eabi-gcc", "qemu-system-arm")
    built: dict[str, Path] = {}

    def build(defines: str) -> Path:
        if defines not in built:
            folder = tmp_path_factory.mktemp("firmware-lm3s6965")
            make("lm3s6965", folder, defines)
            built[defines] = folder / "lm3s6965.elf"
        return built[defines]

    return build


@contextmanager
def _running(command: list[str], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def listening(program: Path, noise: int = 0, boot: int = 1) -> Iterator[int]:
    """The port that a fresh host build listens on."""
    command = [str(program), "--tcp", "0", "--noise", str(noise), "--boot", str(boot)]
    with _running(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@pytest.fixture
def start_host(host_program: Path) -> Iterator[Start]:
    """`start_host(noise=0, boot=1)`: the port of a fresh host build."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(listening(host_program, **options))


class Emulated:
    """A board in QEMU: `port` is its UART, `reset()` presses its button (RAM keeps what it holds)."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port
        self._tell({"execute": "qmp_capabilities"})

    def reset(self) -> None:
        self._tell({"execute": "system_reset"})

    def _tell(self, command: dict[str, Any]) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        while "return" not in json.loads(self.process.stdout.readline()):
            pass


@pytest.fixture
def start_emulator(image: Callable[[str], Path]) -> Iterator[Callable[..., Emulated]]:
    """`start_emulator(defines="")`: a board that has just been switched on."""
    with ExitStack() as stack:

        def start(defines: str = "") -> Emulated:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            serial = f"tcp:127.0.0.1:{port},server=on,wait=off,nodelay=on"
            command = ["qemu-system-arm", "-M", "lm3s6965evb", "-kernel", str(image(defines)), "-display", "none"]
            command += ["-monitor", "none", "-serial", serial, "-qmp", "stdio"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            return Emulated(stack.enter_context(_running(command, **pipes)), port)

        yield start

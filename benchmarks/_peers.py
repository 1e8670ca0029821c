"""Other people's simulators, timed beside ours: each in an environment of its own, in a process that waits to be asked.

On the command line `--peer NAME=PYTHON` gives the interpreter of an environment made from `peers/NAME.txt`. It knows no
peer; the scripts in `peers/` do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

PEERS = Path(__file__).resolve().parent / "peers"


def interpreters() -> dict[str, str]:
    """Take `--peer NAME=PYTHON` (as often as wanted) off the command line."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON")
    known, sys.argv[1:] = parser.parse_known_args()
    pairs = dict(text.partition("=")[::2] for text in known.peer)
    for name, python in pairs.items():
        if not (PEERS / f"{name}.txt").exists() or not Path(python).exists():
            parser.error(f"--peer {name}={python}: no pins peers/{name}.txt, or no such interpreter")
    return pairs


def missing(name: str) -> str:
    """What a row says where a peer was not given."""
    return f"not installed: pip install -r benchmarks/peers/{name}.txt elsewhere, then --peer {name}=PYTHON"


class Peer:
    """A script of `peers/` that runs in another environment, and answers one line of JSON with another."""

    def __init__(self, python: str, script: str, **setting: Any) -> None:
        command = [python, str(PEERS / script)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
        self.facts = self.ask(**setting)

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._process.args} ended with status {self._process.wait()}: its error is above")
        found: dict[str, Any] = json.loads(answer)
        return found

    def seconds(self) -> float:
        """One timed call, measured over there."""
        return float(self.ask(times=1)["seconds"][0])

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

"""The main job as two terminals: one process serves the device, without torch, another trains on it by its URL."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hzo_hil.records import RunFolder

ROOT = Path(__file__).resolve().parents[2]
DEVICE = {
    "kind": "onn",
    "preset": "calibrated_chip",
    "options": {"layers": 2, "ports": 8, "activation": "tanh"},
    "seed": 7,
    "max_batch": 256,
    "longest_call_s": 1.0,
}
RUN: dict[str, Any] = {
    "name": "served",
    "data": {"name": "digits", "limit_train": 64, "limit_test": 40},
    "network": [
        {"host": "torch.nn:Linear", "arguments": {"in_features": 64, "out_features": 8}},
        {"opaque": "chip"},
        {"host": "torch.nn:Linear", "arguments": {"in_features": 8, "out_features": 10}},
    ],
    "method": {"tree": "chain", "probes": "hadamard", "eps": 0.1},
    "train": {"epochs": 2, "batch_size": 16, "checkpoint_every": 2},
    "where": {"picture": False, "threads": 1},
}
WITHOUT_TORCH = (
    "import sys; sys.modules['torch'] = None; sys.path.insert(0, {root!r});"
    " from hzo_hil.cli import main; main(sys.argv[1:])"
)


class Terminal:
    """`hzo-hil serve ...` in a process that cannot import torch."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-c", WITHOUT_TORCH.format(root=str(ROOT)), "serve", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline()

    @property
    def url(self) -> str:
        return "zmq+" + self.first.split(" at ")[1].strip()

    def stop(self, sent: signal.Signals = signal.SIGINT) -> str:
        self.process.send_signal(sent)
        _, rest = self.process.communicate(timeout=20)
        return str(rest)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Terminal]:
    place = tmp_path / "device.yaml"
    place.write_text(yaml.safe_dump(DEVICE), encoding="utf-8")
    terminal = Terminal(str(place), "--bind", "tcp://127.0.0.1:0")
    try:
        yield terminal
    finally:
        if terminal.process.poll() is None:
            terminal.kill()


def config(tmp_path: Path, name: str, device: dict[str, Any]) -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**RUN, "devices": {"chip": device}}), encoding="utf-8")
    return path


def rows_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def parameters(folder: Path) -> dict[str, torch.Tensor]:
    model = RunFolder.open(folder).load_checkpoint("last")["model"]
    return {k: v for k, v in model.items() if isinstance(v, torch.Tensor)}


DATASHEET = {"kind": "onn", "options": DEVICE["options"]}


@pytest.mark.parametrize("credit", ["loss", "activity", "feedback"])
def test_other_methods_on_a_served_device_are_those_in_process(
    served: Terminal, tmp_path: Path, hzo: Any, credit: str
) -> None:
    method = ["--set", f"method={{credit: {credit}, probes: 'gaussian:1'}}"]
    if credit == "loss":
        method += ["--set", "train.optimizer={name: SPSA, lr: 0.05, options: {eps: 0.1}}"]
    remote = config(tmp_path, "remote", {"url": served.url, "datasheet": DATASHEET})
    local = config(tmp_path, "local", DEVICE)
    for path, folder in ((remote, "a"), (local, "b")):
        done = hzo("train", path, "--run-dir", tmp_path / folder, "--quiet", *method)
        assert done.status == 0, done.err
    a, b = parameters(tmp_path / "a"), parameters(tmp_path / "b")
    assert len(a) >= 6 and all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.skipif(os.name != "posix", reason="stops the server with SIGINT")
def test_a_run_on_a_served_device_is_the_run_in_process_to_the_bit(served: Terminal, tmp_path: Path, hzo: Any) -> None:
    """Noise included: its keys travel with the queries."""
    remote = config(tmp_path, "remote", {"url": served.url, "datasheet": DATASHEET})
    local = config(tmp_path, "local", DEVICE)
    for path, folder in ((remote, "a"), (local, "b")):
        assert hzo("train", path, "--run-dir", tmp_path / folder, "--quiet").status == 0
    a, b = parameters(tmp_path / "a"), parameters(tmp_path / "b")
    assert len(a) >= 6 and all(torch.equal(a[k], b[k]) for k in b)
    done = [json.loads((tmp_path / f / "summary.json").read_text(encoding="utf-8")) for f in "ab"]
    assert all("link/resent" in row for row in rows_of(tmp_path / "a"))
    spent = [d["ledger"]["purposes"]["probes"]["queries"] for d in done]
    assert spent[0] == spent[1]
    assert "stopped from outside" in served.stop()


@pytest.mark.skipif(os.name != "posix", reason="Windows has no polite kill")
def test_a_server_that_is_terminated_ends_as_by_ctrl_c(served: Terminal) -> None:
    assert "stopped from outside" in served.stop(signal.SIGTERM)
    assert served.process.returncode == 0


def test_a_run_goes_on_where_the_device_has_moved_to(served: Terminal, tmp_path: Path, hzo: Any) -> None:
    path = config(tmp_path, "moving", {"url": served.url, "datasheet": DATASHEET})
    budget = ["--set", "budget.max_queries=3000"]
    assert hzo("train", path, "--run-dir", tmp_path / "run", "--quiet", *budget).status == 0
    other = Terminal(str(tmp_path / "device.yaml"), "--bind", "tcp://127.0.0.1:0")
    try:
        moved = ["--set", f"devices.chip.url={other.url}"]
        done = hzo("train", path, "--resume", "--run-dir", tmp_path / "run", "--quiet", *moved)
        assert done.status == 0, done.err
    finally:
        other.kill()
    whole = config(tmp_path, "moving", DEVICE)
    assert hzo("train", whole, "--run-dir", tmp_path / "whole", "--quiet").status == 0
    a, b = parameters(tmp_path / "run"), parameters(tmp_path / "whole")
    assert all(torch.equal(a[k], b[k]) for k in b)


@pytest.mark.skipif(os.name != "posix", reason="kills the host with SIGKILL")
def test_a_run_whose_host_was_killed_resumes_at_once_to_the_bit(served: Terminal, tmp_path: Path, hzo: Any) -> None:
    """The dead host's session has not expired yet: the new one waits for it instead of giving up."""
    path = config(tmp_path, "killed", {"url": served.url, "datasheet": DATASHEET})
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from hzo_hil.cli import main; main(sys.argv[1:])"
    arguments = ["train", str(path), "--run-dir", str(tmp_path / "run"), "--set", "train.epochs=12"]
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.DEVNULL) as host:
        while not (tmp_path / "run" / "metrics.jsonl").exists() or len(rows_of(tmp_path / "run")) < 12:
            assert host.poll() is None
            time.sleep(0.05)
        host.kill()
    epochs = ["--set", "train.epochs=12", "--quiet"]
    done = hzo("train", path, "--resume", "--run-dir", tmp_path / "run", *epochs)
    assert done.status == 0, done.err
    assert hzo("train", config(tmp_path, "killed", DEVICE), "--run-dir", tmp_path / "whole", *epochs).status == 0
    a, b = parameters(tmp_path / "run"), parameters(tmp_path / "whole")
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_eval_and_check_take_a_url(served: Terminal, tmp_path: Path, hzo: Any) -> None:
    path = config(tmp_path, "remote", {"url": served.url, "datasheet": DATASHEET})
    assert hzo("train", path, "--run-dir", tmp_path / "run", "--quiet").status == 0
    found = hzo("eval", tmp_path / "run", "--device", served.url, "--json").json
    assert found["device"] == {"chip": "onn-calibrated_chip-7"}
    checked = hzo("device", "check", served.url, "--quick", "--json")
    assert checked.status == 0, checked.out
    assert checked.json["passed"] is True


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("device", "check", "gopher://x"), "is no address of a device: it starts with one of zmq+tcp://"),
        (("device", "check", "serial:///dev/no-such-port"), "/dev/no-such-port"),
        (("serve", "{device}", "--bind", "tcp://0.0.0.0:5555"), "keys"),
        (("serve", "{device}", "--bind", "carrier://x"), "carrier://x"),
        (("serve", "{device}", "--bind", "tcp://127.0.0.1:99999"), "the port is a number up to 65535"),
        (("device", "check", "zmq+tcp://127.0.0.1"), "the port is a number up to 65535"),
        (("serve", "{device}", "--bind", "serial+tcp://0.0.0.0:5556"), "has no keys"),
        (("serve", "{device}", "--bind", "serial+tcp://127.0.0.1:0", "--keys", "."), "a serial line has no keys"),
        (("serve", "{device}", "--bind", "tcp://127.0.0.1:0", "--credit", "0"), "credit is the number of queries"),
        (("serve", "nothing.yaml", "--bind", "tcp://127.0.0.1:0"), "nothing.yaml"),
        (
            (
                "serve",
                str(ROOT / "configs" / "iris_firmware.yaml"),
                "--bind",
                "tcp://127.0.0.1:0",
                "--park-after",
                "-1",
            ),
            "",
        ),
        (("device", "new", "not-a-name!"), "not-a-name!"),
    ],
)
def test_mistakes_are_explained(arguments: tuple[str, ...], words: str, tmp_path: Path, hzo: Any) -> None:
    place = tmp_path / "device.yaml"
    place.write_text(yaml.safe_dump(DEVICE), encoding="utf-8")
    found = hzo(*(a.replace("{device}", str(place)) for a in arguments))
    assert found.status in (1, 2), found.out
    assert words in found.err and "Traceback" not in found.err


def test_a_port_in_use_is_named(tmp_path: Path, hzo: Any) -> None:
    place = tmp_path / "device.yaml"
    place.write_text(yaml.safe_dump(DEVICE), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = hzo("serve", place, "--bind", f"tcp://127.0.0.1:{port}")
    assert found.status == 2 and str(port) in found.err and "in use" in found.err


def test_nobody_at_the_address(tmp_path: Path, hzo: Any) -> None:
    path = config(tmp_path, "remote", {"url": "zmq+tcp://127.0.0.1:9", "options": {"connect_s": 0.5}})
    found = hzo("train", path, "--run-dir", tmp_path / "run", "--quiet")
    assert found.status == 1 and "nobody answers at zmq+tcp://127.0.0.1:9" in found.err
    assert not (tmp_path / "run").exists()


def test_options_of_a_remote_device_are_checked(tmp_path: Path, hzo: Any) -> None:
    path = config(tmp_path, "remote", {"url": "zmq+tcp://127.0.0.1:9", "options": {"patient_s": 0.5}})
    found = hzo("train", path, "--run-dir", tmp_path / "run", "--quiet")
    assert found.status == 2 and "patient_s" in found.err


def test_keys_are_made_and_never_overwritten(tmp_path: Path, hzo: Any) -> None:
    assert hzo("device", "keys", tmp_path / "keys").status == 0
    assert (tmp_path / "keys" / "device.key").exists()
    if os.name == "posix":
        assert (tmp_path / "keys" / "device.key").stat().st_mode & 0o777 == 0o600
    found = hzo("device", "keys", tmp_path / "keys")
    assert found.status == 2 and "never overwritten" in found.err

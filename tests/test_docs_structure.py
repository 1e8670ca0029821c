"""The Python of docs/structure.md runs, given what it speaks of, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from hzo_hil.devices.api import Local
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.zoo import HostConv

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")


def test_its_python_runs():
    same = Local.conv(16, 16, (4, 4), 3, padding=1)
    scope: dict[str, Any] = {
        "device": FakeDevice.mlp([4, 4, 3], "identity"), "batch": torch.randn(16, 4), "conv1": HostConv(same),
        "conv2": HostConv(same), "core": FakeDevice.mlp([4, 3], "identity", read_noise=0.01),
    }  # fmt: skip
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    for block in blocks:
        exec(block, scope)
    assert [c.what for c in scope["checked"]][1] == "linear"
    assert scope["conv"].structure.out_shape == (16, 16)
    x = torch.randn(5, 16 * 16)
    assert scope["block"](x).shape == x.shape


def test_its_files_exist():
    for path in re.findall(r"`(?:python )?((?:simulators|benchmarks)/[\w./]+\.py)`", PAGE):
        assert (ROOT / path).is_file(), path

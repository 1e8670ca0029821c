"""Noise belongs to its key, its write, its chip and its time: not to batches, routes, threads or engines.

Every stage of every kind of chip is asked for itself: behind a converter a difference would grow from stage to stage.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hzo_hil.simulators import chip, native, noise
from tests.simulators import seed_parts as parts

ROOT = Path(__file__).resolve().parents[2]
STAGES = {name: (model, converted) for name, model, converted in parts.stages()}
NO_CUDA = pytest.mark.skipif("not __import__('torch').cuda.is_available()", reason="needs a CUDA device")
PLAIN = [name for name, (_, converted) in STAGES.items() if not converted]


def same(found: Any, expected: Any, name: str) -> None:
    """Equal to rounding; behind converters and counters at most one value in 10,000 is off, and by one step.

    Of so few values one more may be: 100,000 a stage showed 0 to 2 off.
    """
    model, converted = STAGES[name]
    scale = max(1.0, float(np.abs(expected).max()))
    off = np.abs(found - expected) > 1e-5 * scale
    if not converted:
        assert not off.any(), f"{name}: up to {np.abs(found - expected).max()}"
        return
    assert off.sum() <= 1 + 1e-4 * off.size, f"{name}: {off.sum()} of {off.size}"
    if model.output.step:
        assert np.abs(found - expected).max() <= 1.001 * model.output.step


@cache
def usual(name: str) -> Any:
    return parts.answer(STAGES[name][0])


def elsewhere(folder: Path, **environment: str) -> dict[str, Any]:
    """The answers of another process."""
    file = folder / "answers.npz"
    command = [sys.executable, "-m", "tests.simulators.seed_parts", str(file)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(np.load(file))


def test_every_kind_of_chip_is_here() -> None:
    assert set(chip.known()) == set(parts.SHAPES) == set(parts.NOISE) == set(parts.CONVERTERS) == set(CLOCKS)


# --- the same draws, however they are asked for ------------------------------------------------------------------


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("size", [1, 7])
def test_a_batch_may_be_split(name: str, size: int) -> None:
    model, _ = STAGES[name]
    held, inputs, keys = parts.state(model), parts.rows(model), parts.keys()
    count = 40 * size
    found = [model.run(held, inputs[i : i + size], keys[i : i + size]) for i in range(0, count, size)]
    same(np.concatenate(found), usual(name)[:count], name)


@pytest.mark.parametrize("name", STAGES)
def test_rows_may_change_places(name: str) -> None:
    model, _ = STAGES[name]
    order = np.random.default_rng(0).permutation(parts.ROWS)
    same(model.run(parts.state(model), parts.rows(model)[order], parts.keys()[order]), usual(name)[order], name)


@pytest.mark.parametrize("name", PLAIN)
def test_double_precision_sees_the_same_draws(name: str) -> None:
    model, _ = STAGES[name]
    found = model.run(parts.state(model), parts.rows(model).astype(np.float64), parts.keys())
    assert found.dtype == np.float64
    assert np.allclose(found, usual(name), rtol=0, atol=2e-5 * max(1.0, float(np.abs(found).max())))


def test_both_routes_draw_alike(tmp_path: Path) -> None:
    if native.library() is None:
        pytest.skip("the kernels are not built: there is one route only")
    found = elsewhere(tmp_path, HZO_HIL_NATIVE="0")
    assert found.keys() == STAGES.keys()
    for name, values in found.items():
        same(values, usual(name), name)


def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With parts of the rows that fit no tile, each in a thread."""
    if native.library() is None:
        pytest.skip("the kernels are not built: nothing runs in threads")
    expected = {name: usual(name) for name in STAGES}
    parted = []

    def over_rows(work: Callable[[slice], None], rows: int, least: int) -> None:
        ends = sorted({0, min(1, rows), rows // 3, rows // 2, rows})
        parted.append(rows)
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(work, [slice(*pair) for pair in itertools.pairwise(ends)]))

    monkeypatch.setattr(native, "over_rows", over_rows)
    for name, values in expected.items():
        assert np.array_equal(parts.answer(STAGES[name][0]), values), name
    assert len(parted) > len(STAGES)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("place", ["cpu", pytest.param("cuda", marks=NO_CUDA)])
def test_torch_draws_alike(name: str, place: str) -> None:
    import torch

    model, _ = STAGES[name]
    inputs = torch.tensor(parts.rows(model), device=place)
    found = model.run(parts.state(model), inputs, noise.keys_like(parts.keys(), inputs))
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float32 and found.device == inputs.device
    same(found.cpu().numpy(), usual(name), name)


# --- four clocks -------------------------------------------------------------------------------------------------

MESH_CLOCKS: dict[str, list[dict[str, Any]]] = {
    "chip": [{"coupler_std": 0.1}, {"phase_bias": 0.1}, {"gamma_std": 0.01}, {"loss_db": 0.1, "loss_std_db": 0.1}],
    "write": [{"programming_std": 0.1}],
    "shot": [{"shot_phase_std": 0.1}, {"noise_std": 0.1}, {"bandwidth": 2e10}],
    "drift": [{"phase_drift_std": 0.1}, {"phase_drift_std": 0.1, "phase_drift_law": "flicker"}],
}
CLOCKS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "onn": MESH_CLOCKS,
    "chip": MESH_CLOCKS,
    "svd_onn": MESH_CLOCKS,
    "tensor_core": MESH_CLOCKS,
    "emulator": {
        "chip": [{"weight_mismatch": 0.1}, {"slope_mismatch": 0.1}],
        "write": [{"write_noise": 0.1}, {"weight_format": "fp8_e5m2", "rounding": "stochastic"}],
        "shot": [
            {"read_noise_std": 0.1},
            {"input_noise_std": 0.1},
            {"accumulate_format": "fp8_e5m2", "rounding": "stochastic"},
        ],
    },
    "conv_emulator": {"write": [{"write_noise": 0.1}], "shot": [{"read_noise_std": 0.1}]},
    "ring_bank": {
        "chip": [{"resonance_std": 1e9}],
        "write": [{"programming_std": 0.05}],
        "shot": [{"bandwidth": 2e10}, {"noise_std": 0.1}],
        "drift": [{"drift_std": 1e9}, {"drift_std": 1e9, "drift_law": "flicker"}],
    },
    "diffractive": {
        "chip": [{"shift_std": 0.5}, {"distance_std": 1e-4}, {"mask_std": 0.2}],
        "write": [{"programming_std": 0.2}],
        "shot": [{"shot_phase_std": 0.2}, {"noise_std": 0.1}],
        "drift": [{"drift_std": 0.5}],
    },
    "crossbar": {
        "chip": [{"stuck": 0.3}],
        "write": [{"write_noise": (0.1,)}],
        "shot": [{"read_noise": 0.1}, {"amplifier_noise": 1e-7}, {"noise_std": 0.1}],
        "drift": [{"drift_nu": 0.1}, {"drift_nu": 0.1, "drift_nu_std": 0.05}],
    },
}
"""By kind and clock: settings that turn on what this clock draws, and nothing of the others."""
CASES = [
    pytest.param(kind, clock, setting, id=f"{kind}-{clock}-{'-'.join(setting)}")
    for kind, clocks in CLOCKS.items()
    for clock, settings in clocks.items()
    for setting in settings
]


def answer(
    kind: str, setting: dict[str, Any], seed: int = 3, write: int = 1, shot: int = 0, seconds: float = 5.0
) -> Any:
    """What comes out of a whole chip."""
    out: Any = None
    for index, model in enumerate(chip.build(kind, seed=seed, **parts.SHAPES[kind], **setting)):
        out = parts.rows(model, np.float64, 30) if out is None else out
        held = parts.state(model, int(noise.derive(write, index)[0]), seconds)
        out = model.run(held, out, noise.derive(parts.keys(30), shot, index))
    return out


@pytest.mark.parametrize(("kind", "clock", "setting"), CASES)
def test_each_clock_changes_its_own_stream_and_no_other(kind: str, clock: str, setting: dict[str, Any]) -> None:
    base = answer(kind, setting)
    assert not np.allclose(base, answer(kind, {}), atol=1e-6)
    assert np.array_equal(base, answer(kind, setting))
    moved = {
        "chip": answer(kind, setting, seed=4),
        "write": answer(kind, setting, write=2),
        "shot": answer(kind, setting, shot=1),
        "drift": answer(kind, setting, seconds=90.0),
    }
    changed = {name for name, found in moved.items() if not np.array_equal(found, base)}
    # Another chip drifts along another path, unless all of its elements follow the same law without chance.
    own = {"chip", "drift"} if clock == "drift" and setting.keys() != {"drift_nu"} else {clock}
    assert changed == own


@pytest.mark.parametrize("kind", CLOCKS)
def test_with_everything_on_every_clock_moves_the_answers(kind: str) -> None:
    setting = parts.NOISE[kind]
    base = answer(kind, setting)
    moves: dict[str, dict[str, Any]] = {
        "chip": {"seed": 4}, "write": {"write": 2}, "shot": {"shot": 1}, "drift": {"seconds": 90.0},
    }  # fmt: skip
    for clock, move in moves.items():
        assert np.array_equal(answer(kind, setting, **move), base) == (clock not in CLOCKS[kind]), clock
    assert np.array_equal(answer(kind, setting), base)

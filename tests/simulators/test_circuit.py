"""Routes through a mesh: kernels, numpy and torch agree to rounding; rows do not depend on their neighbours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hzo_hil.simulators import circuit, circuit_kernels, mesh, native, sweep
from hzo_hil.simulators.circuit import Setting
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.imperfect import MeshErrors
from hzo_hil.simulators.layouts import Layout
from hzo_hil.simulators.stages import MeshStage, SVDStage
from tests.simulators.mesh_routes import every_route, fabricated, keys, light, phases

LAYOUTS = [Layout(2), Layout(7), Layout(33), Layout(6, "reck"), Layout(8, "butterfly")]
NAMES = [f"{made.scheme} {made.ports}" for made in LAYOUTS]
KINDS = {"float32": 4e-6, "float64": 1e-13, "complex64": 4e-6, "complex128": 1e-13}
PLACES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
def test_walks_agree_with_the_matrix_of_the_data_sheet(layout, kind):
    made, x, told = fabricated(layout), light(layout, kind), phases(layout, 3)
    first, second = made._couplers
    walked = made.circuit.walk(told, x)
    plain = np.empty_like(walked)
    made.circuit.walk_numpy(told, x, plain)
    for vector, found, slow in zip(told, walked, plain, strict=True):
        matrix = mesh.unitary(np, layout.gather, *layout.split(vector), errors=(first, second), loss=made._loss)
        assert np.abs(Setting(made.circuit, vector).matrix - matrix).max() < 1e-13
        for answer in (found, slow):
            assert answer.dtype == np.result_type(kind, np.complex64)
            assert np.abs(answer - x @ matrix.T).max() < KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=NAMES)
@pytest.mark.parametrize("more", [{}, {"shot_phase_std": 0.4}, {"noise_clip": 2.0}], ids=["", "strong", "cut"])
def test_kernel_and_numpy_draw_the_same_noise(layout, kind, more):
    made, x = fabricated(layout, **more), light(layout, kind)
    setting = Setting(made.circuit, phases(layout)[0])
    whole = made.walk_rows(setting, x, keys(50))
    plain = setting.noisy_plain(x, keys(50), made.shot_streams, made.errors.shot)
    assert whole.dtype == plain.dtype == np.result_type(kind, np.complex64)
    assert np.abs(whole - plain).max() < KINDS[kind]
    assert np.abs(whole - x @ setting.matrix.T).max() > 0.01


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clip", [0.0, 2.0])
def test_tensors_meet_the_same_noise(place, kind, clip):
    made, x = fabricated(Layout(7), noise_clip=clip), light(Layout(7), kind)
    setting = Setting(made.circuit, phases(Layout(7))[0])
    found = made.walk_rows(setting, torch.tensor(x, device=place), torch.tensor(keys(50).view(np.int64), device=place))
    assert np.abs(found.cpu().numpy() - made.walk_rows(setting, x, keys(50))).max() < KINDS[kind]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shot", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_stages_take_tensors(place, shot, kind):
    errors = MeshErrors(coupler_std=0.05, loss_db=0.1, shot_phase_std=shot)
    for model in (
        MeshStage(6, errors=errors, detector=Detector(noise_std=0.1)),
        MeshStage(8, "intensity", errors, scheme="butterfly"),
        SVDStage(5, 3, errors=errors, scale=2.0, trained="phases", scheme="reck"),
    ):
        state = model.program(model.initial(np.random.default_rng(0)), 1)
        x = np.random.default_rng(1).uniform(-1, 1, (40, model.in_width)).astype(kind)
        usual = model.run(state, x, keys(40))
        found = model.run(state, torch.tensor(x, device=place), torch.tensor(keys(40).view(np.int64), device=place))
        assert str(found.dtype) == f"torch.{kind}"
        assert np.abs(found.cpu().numpy() - usual).max() < (5e-6 if kind == "float32" else 1e-13)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layout", "rows"), [(Layout(8), 3), (Layout(8), 400), (Layout(8, "butterfly"), 10)])
def test_sweeps_take_tensors(place, kind, layout, rows):
    made, x, told = fabricated(layout), light(layout, kind, rows), phases(layout, 3)
    tensor = torch.tensor(x, device=place)
    drawn = keys(3, 2, rows)
    theirs = torch.tensor(drawn.view(np.int64), device=place)
    pairs = [
        (sweep.fields(made, told, tensor), sweep.fields(made, told, x)),
        (made.circuit.walk(told, tensor), made.circuit.walk(told, x)),
        (sweep.fields(made, told, tensor, theirs), sweep.fields(made, told, x, drawn)),
    ]
    for found, usual in pairs:
        assert found.device.type == place
        assert found.cpu().numpy().dtype == usual.dtype
        assert np.abs(found.cpu().numpy() - usual).max() < 2 * KINDS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("route", ["kernel", "numpy"])
def test_a_row_is_the_same_in_any_company(kind, route, monkeypatch):
    """Bit for bit: split at odd places, turned round, in threads, and in other chunks of the numpy route."""
    layout = Layout(9)
    made, x, drawn = fabricated(layout), light(layout, kind, 77), keys(77)
    setting = Setting(made.circuit, phases(layout)[0])

    def noisy(some: np.ndarray, theirs: np.ndarray) -> np.ndarray:
        if route == "kernel":
            return made.walk_rows(setting, some, theirs)
        return setting.noisy_plain(some, theirs, made.shot_streams, made.errors.shot)

    whole = noisy(x, drawn)
    still = made.circuit.walk(setting.phases[None], x)[0]
    parts = [slice(0, 1), slice(1, 18), slice(18, 50), slice(50, 77)]
    assert np.array_equal(np.concatenate([noisy(x[p], drawn[p]) for p in parts]), whole)
    assert np.array_equal(noisy(x[::-1], drawn[::-1]), whole[::-1])
    assert np.array_equal(np.concatenate([made.circuit.walk(setting.phases[None], x[p])[0] for p in parts]), still)
    monkeypatch.setattr(circuit_kernels, "_LEAST", 1)
    monkeypatch.setattr(circuit, "_NUMPY_BYTES", 64 * layout.nodes * 5)
    monkeypatch.setenv("HZO_HIL_THREADS", "3")
    assert np.array_equal(noisy(x, drawn), whole)
    assert np.array_equal(made.circuit.walk(setting.phases[None], x)[0], still)
    many = phases(layout, 5)
    threaded = made.circuit.walk(many, x)
    monkeypatch.setenv("HZO_HIL_THREADS", "1")
    assert np.array_equal(made.circuit.walk(many, x), threaded)


def test_without_the_library_all_of_it_works(tmp_path):
    """The same figures from a process that is told to do without; the same noise, to rounding."""
    file = tmp_path / "found.npz"
    command = [sys.executable, "-m", "tests.simulators.mesh_routes", str(file)]
    root = Path(__file__).resolve().parents[2]
    subprocess.run(command, cwd=root, env={**os.environ, native.OFF: "0"}, check=True)
    found = np.load(file)
    assert str(found["route"]).startswith("numpy")
    for name, usual in every_route().items():
        slow = found[name]
        assert slow.dtype == usual.dtype
        assert np.abs(slow - usual).max() < (1e-5 if usual.dtype == np.complex64 else 1e-12), name


# --- many settings at once ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [3, 400])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sweep_is_its_single_calls(rows, kind):
    """On both sides of the crossover between walks and compiled matrices."""
    layout = Layout(8)
    made, x, told = fabricated(layout), light(layout, kind, rows), phases(layout, 4)
    assert made.circuit.prefers_walk(rows) == (rows == 3)
    found = sweep.fields(made, told, x)
    expected = np.stack([x @ made.matrix(vector).T for vector in told])
    assert found.dtype == np.result_type(kind, np.complex64)
    assert np.abs(found - expected).max() < KINDS[kind]


def test_a_sweep_over_shots_is_its_single_shots():
    layout = Layout(6)
    made, x, told = fabricated(layout), light(layout, "float32", 20), phases(layout, 3)
    drawn = sweep.shot_keys(keys(3, 20), 5)
    assert drawn.shape == (3, 5, 20)
    assert len(np.unique(drawn)) == drawn.size
    found = sweep.fields(made, told, x, drawn)
    assert found.shape == (3, 5, 20, 6)
    for p in range(3):
        for shot in range(5):
            assert np.array_equal(found[p, shot], made.walk_rows(Setting(made.circuit, told[p]), x, drawn[p, shot]))
    assert np.array_equal(sweep.fields(made, told, x, drawn[:, 2]), found[:, 2])


@pytest.mark.parametrize("shot", [0.0, 0.1])
@pytest.mark.parametrize("detection", ["homodyne", "intensity"])
def test_outputs_of_a_sweep_are_writes_and_runs(shot, detection):
    errors = MeshErrors(coupler_std=0.1, programming_std=0.1, shot_phase_std=shot, phase_bits=8, crosstalk=0.01)
    model = MeshStage(5, detection, errors, Detector(detection, noise_std=0.1))
    told = np.random.default_rng(0).uniform(0, 6, (3, model.layout.phases))
    x, drawn = light(model.layout, "float64", 30), keys(3, 2, 30)
    found = sweep.outputs(model, told, x, drawn, np.array([7, 8, 9]))
    assert found.shape == (3, 2, 30, 5)
    for p in range(3):
        state = model.program(model.named_phases(told[p]), 7 + p)
        for s in range(2):
            assert np.abs(model.run(state, x, drawn[p, s]) - found[p, s]).max() < 1e-12


def test_bad_sweeps_are_refused():
    made = fabricated(Layout(4))
    x = light(Layout(4), "float32", 10)
    with pytest.raises(ValueError, match=r"a mesh of 4 ports takes phases \[vectors, 16\], not \[2, 15\]"):
        sweep.fields(made, np.zeros((2, 15)), x)
    with pytest.raises(ValueError, match=r"takes inputs \[batch, 4\], not \[10, 3\]"):
        sweep.fields(made, np.zeros((2, 16)), x[:, :3])
    with pytest.raises(ValueError, match=r"keys must be \[2, 10\] or \[2, shots, 10\], not \[10\]"):
        sweep.fields(made, np.zeros((2, 16)), x, keys(10))

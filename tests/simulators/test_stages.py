"""Stage models: without imperfections they are their data sheet; each imperfection acts where and when it should."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hzo_hil.simulators.converters import convert, uniform_port
from hzo_hil.simulators.detector import Detector
from hzo_hil.simulators.elementwise import CURVES
from hzo_hil.simulators.imperfect import MeshErrors
from hzo_hil.simulators.lowprecision import cast
from hzo_hil.simulators.model import StageModel
from hzo_hil.simulators.stages import Elementwise, EmulatedLinear, MeshStage, SVDStage

PERFECT: dict[str, StageModel] = {
    "homodyne": MeshStage(6),
    "intensity": MeshStage(5, "intensity"),
    "svd wide": SVDStage(5, 3),
    "svd tall": SVDStage(3, 5),
    "svd by phases": SVDStage(4, 3, trained="phases", scale=2.5),
    **{kind: Elementwise(4, kind, gain=1.3) for kind in CURVES},
    "emulator": EmulatedLinear(5, 4),
    "emulator tanh": EmulatedLinear(5, 4, "tanh", bias=False),
}
KEYS = np.arange(300, dtype=np.uint64)


def rows(model: StageModel, dtype=np.float64, count: int = 300) -> np.ndarray:
    return np.random.default_rng(7).uniform(-1, 1, (count, model.in_width)).astype(dtype)


def values_of(model: StageModel, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values away from the initial ones, inside every parameter's range."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, value in model.initial(rng).items():
        low, high = next((p.low, p.high) for p in model.parameters if p.name == name)
        found[name] = np.clip(value + 0.3 * rng.standard_normal(value.shape), low, high)
    return found


def run(model: StageModel, values, inputs, keys=KEYS, write: int = 1) -> np.ndarray:
    return model.run(model.program(values, write), inputs, keys[: len(inputs)])


@pytest.mark.parametrize("model", PERFECT.values(), ids=PERFECT)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_a_perfect_stage_is_its_data_sheet(model, dtype, tolerance):
    values, inputs = values_of(model), rows(model, dtype)
    outputs = run(model, values, inputs)
    assert outputs.dtype == dtype
    assert outputs.shape == (300, model.out_width)
    assert np.allclose(outputs, model.ideal(np, values, inputs), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("model", PERFECT.values(), ids=PERFECT)
def test_declared_structure_and_linearity_are_true(model):
    state = model.program(values_of(model), 1)
    base = rows(model, count=2)[:1]

    def jacobian(at: np.ndarray) -> np.ndarray:
        step = 1e-6 * np.eye(model.in_width)
        pair = [model.run(state, at + sign * step, KEYS[: model.in_width]) for sign in (1, -1)]
        return (pair[0] - pair[1]) / 2e-6

    here, there = jacobian(base), jacobian(0.3 - base)
    assert np.allclose(here, there, atol=1e-8) == model.linear
    if model.structure == "diagonal":
        assert np.allclose(here, np.diag(np.diag(here)), atol=1e-9)


@pytest.mark.parametrize("model", PERFECT.values(), ids=PERFECT)
def test_initial_values_are_valid_and_follow_the_generator(model):
    first, again, other = (model.initial(np.random.default_rng(s)) for s in (1, 1, 2))
    assert set(first) == {p.name for p in model.parameters}
    for p in model.parameters:
        assert first[p.name].shape == p.shape
        assert first[p.name].dtype == np.float64
        assert p.low <= first[p.name].min() <= first[p.name].max() <= p.high
        assert np.array_equal(first[p.name], again[p.name])
    assert not first or any(not np.array_equal(first[n], other[n]) for n in first)


@pytest.mark.parametrize("model", [MeshStage(8), SVDStage(8, 8), SVDStage(8, 8, trained="phases")])
def test_initial_meshes_keep_all_the_light(model):
    out = run(model, model.initial(np.random.default_rng(0)), np.eye(8))
    assert np.allclose(out @ out.T, np.eye(8), atol=1e-10)


@pytest.mark.parametrize("model", PERFECT.values(), ids=PERFECT)
def test_settings_are_plain_data(model):
    assert json.loads(json.dumps(model.settings(), allow_nan=False))["model"] == type(model).__name__


@pytest.mark.parametrize("model", [m for m in PERFECT.values() if m.parameters])
def test_wrong_values_are_refused(model):
    values = values_of(model)
    name = model.parameters[0].name
    with pytest.raises(ValueError, match=rf"stage '{model.name}' takes parameters .*, not \["):
        model.program({}, 1)
    with pytest.raises(ValueError, match=rf"parameter '{name}' has shape"):
        model.program(values | {name: np.zeros(1)}, 1)
    with pytest.raises(ValueError, match=rf"parameter '{name}' holds NaN or infinity"):
        model.program(values | {name: values[name] * np.nan}, 1)


# --- noise clocks -------------------------------------------------------------------------------------------------

NOISY: dict[str, StageModel] = {
    "homodyne": MeshStage(6, errors=MeshErrors(programming_std=0.05), detector=Detector(noise_std=0.1)),
    "per shot": MeshStage(5, "intensity", MeshErrors(shot_phase_std=0.1), Detector("intensity", bandwidth=20e9)),
    "svd": SVDStage(5, 3, errors=MeshErrors(shot_phase_std=0.1), detector=Detector(noise_std=0.1)),
    "activation": Elementwise(4, "tanh", detector=Detector(noise_std=0.1)),
    "emulator": EmulatedLinear(
        5, 4, in_bits=7, in_bound=1.0, out_bits=9, out_bound=12.0, read_noise_std=0.06, write_noise=0.02,
        accumulate_format="bf16", rounding="stochastic",
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", NOISY.values(), ids=NOISY)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_row_gets_the_same_answer_in_any_batch(model, dtype):
    """A matmul may round differently in another batch, which a rounding then turns into one step: rarely."""
    values, inputs = values_of(model), rows(model, dtype)
    state = model.program(values, 1)
    whole = model.run(state, inputs, KEYS)
    order = np.random.default_rng(0).permutation(300)
    parts = [model.run(state, inputs[part], KEYS[part]) for part in np.array_split(order, 7)]
    differ = ~np.isclose(np.concatenate(parts), whole[order], rtol=1e-5, atol=1e-6)
    assert differ.mean() <= 1e-3


@pytest.mark.parametrize("model", NOISY.values(), ids=NOISY)
def test_every_key_is_a_shot_of_its_own(model):
    state = model.program(values_of(model), 1)
    inputs = np.repeat(rows(model, count=1), 100, axis=0)
    out = model.run(state, inputs, KEYS[:100])
    assert np.array_equal(out, model.run(state, inputs, KEYS[:100]))
    assert len(np.unique(out, axis=0)) > 50
    same = model.run(state, inputs, np.full(100, 9, np.uint64))
    assert np.ptp(same, axis=0).max() < 1e-12


@pytest.mark.parametrize(
    ("model", "clock"),
    [
        (MeshStage(6, errors=MeshErrors(coupler_std=0.1, phase_bias=0.1, gamma_std=0.01, crosstalk=0.01)), "chip"),
        (MeshStage(6, errors=MeshErrors(programming_std=0.1)), "write"),
        (MeshStage(6, errors=MeshErrors(shot_phase_std=0.1)), "shot"),
        (SVDStage(4, 6, errors=MeshErrors(coupler_std=0.1, loss_db=0.1, loss_std_db=0.1)), "chip"),
        (SVDStage(4, 6, errors=MeshErrors(programming_std=0.1)), "write"),
        (SVDStage(4, 6, errors=MeshErrors(shot_phase_std=0.1)), "shot"),
        (MeshStage(6, detector=Detector(noise_std=0.1)), "shot"),
        (EmulatedLinear(6, 6, write_noise=0.1), "write"),
        (EmulatedLinear(6, 6, read_noise_std=0.1), "shot"),
        (EmulatedLinear(6, 6, weight_format="fp8_e5m2", rounding="stochastic"), "write"),
        (EmulatedLinear(6, 6, accumulate_format="fp8_e5m2", rounding="stochastic"), "shot"),
    ],
)
def test_each_clock_changes_its_own_noise_only(model, clock):
    values, inputs = values_of(model), rows(model)
    base = run(model, values, inputs)
    assert not np.allclose(base, model.ideal(np, values, inputs), atol=1e-6)
    other_write = run(model, values, inputs, write=2)
    other_shot = run(model, values, inputs, keys=KEYS + np.uint64(1000))
    assert np.array_equal(base, other_write) == (clock != "write")
    assert np.array_equal(base, other_shot) == (clock != "shot")


def test_another_chip_of_the_same_kind_answers_differently():
    errors = MeshErrors(coupler_std=0.05)
    made = [MeshStage(4, errors=errors, seed=s, index=i) for s, i in [(0, 0), (1, 0), (0, 1)]]
    answers = [run(m, values_of(made[0]), np.eye(4)) for m in made]
    assert not np.allclose(answers[0], answers[1], atol=1e-3)
    assert not np.allclose(answers[0], answers[2], atol=1e-3)


def test_read_noise_is_declared_and_has_its_strength():
    """Variance of 1,200 to 1,800 dark outputs, |z| < 5: false alarm 6e-7 a model."""
    for model in (NOISY["homodyne"], NOISY["activation"], EmulatedLinear(5, 4, read_noise_std=0.06)):
        out = run(model, values_of(model) if model.parameters else {}, np.zeros((300, model.in_width)))
        spread = out - (values_of(model).get("bias", 0.0) if model.parameters else 0.0)
        assert abs((spread**2).mean() / model.read_noise**2 - 1) * (out.size / 2) ** 0.5 < 5


# --- meshes -------------------------------------------------------------------------------------------------------


def test_mesh_parameters_wrap_and_carry_the_converter_s_levels():
    model = MeshStage(4, errors=MeshErrors(phase_bits=8))
    shapes = {p.name: p.shape for p in model.parameters}
    assert shapes == {"theta": (6,), "phi": (6,), "out_phase": (4,)}
    for p in model.parameters:
        assert (p.low, p.high, p.period, p.edge) == (0.0, 2 * math.pi, 2 * math.pi, "wrap")
        assert p.levels is not None
        assert len(p.levels) == 147


def test_only_the_nearest_level_counts():
    model = MeshStage(4, errors=MeshErrors(phase_bits=8))
    levels = np.array(model.parameters[0].levels)
    values = {p.name: levels[np.arange(40, 40 + p.shape[0])] for p in model.parameters}
    nudged = {n: v + 0.004 for n, v in values.items()}
    moved = {n: v + 0.1 for n, v in values.items()}
    out = run(model, values, np.eye(4))
    assert np.array_equal(run(model, nudged, np.eye(4)), out)
    assert not np.allclose(run(model, moved, np.eye(4)), out, atol=1e-3)
    assert np.allclose(out, model.ideal(np, values, np.eye(4)), atol=1e-12)


def test_inputs_are_clipped_and_outputs_quantised_by_the_ports():
    model = MeshStage(4, input=uniform_port(None, -0.5, 0.5), output=uniform_port(5, -1.0, 1.0))
    values = values_of(model)
    inputs = 3 * rows(model)
    expected = model.ideal(np, values, np.clip(inputs, -0.5, 0.5))
    out = run(model, values, inputs)
    assert np.allclose(out, convert(expected, model.output), atol=1e-12)
    assert np.allclose(out / model.output.step, np.rint(out / model.output.step), atol=1e-9)


def test_a_detector_must_fit_the_detection():
    with pytest.raises(ValueError, match="detection 'intensity', but a homodyne detector"):
        MeshStage(4, "intensity", detector=Detector("homodyne"))
    with pytest.raises(ValueError, match="signed outputs need a homodyne detector"):
        SVDStage(4, 4, detector=Detector("intensity"))
    with pytest.raises(ValueError, match="trained is 'weight' or 'phases', not 'both'"):
        SVDStage(4, 4, trained="both")


def test_svd_by_phases_can_take_over_a_matrix():
    weight = np.random.default_rng(3).standard_normal((3, 5))
    scale = np.linalg.norm(weight, 2)
    model = SVDStage(5, 3, trained="phases", scale=scale)
    assert np.allclose(run(model, model.phases_of(weight), np.eye(5)).T, weight, atol=1e-10)


def test_quantised_attenuators_take_as_many_bits_as_the_phases():
    model = SVDStage(4, 4, trained="phases", errors=MeshErrors(phase_bits=4, v_max=7.0))
    assert len(next(p for p in model.parameters if p.name == "attenuation").levels) == 16


# --- element-wise and emulator ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("identity", lambda u: u),
        ("relu", lambda u: np.maximum(u, 0)),
        ("tanh", np.tanh),
        ("sigmoid", lambda u: 1 / (1 + np.exp(-u))),
        ("square", np.square),
        ("electro_optic", lambda u: np.sin(np.pi / 2 * np.tanh(u))),
        ("saturable", lambda u: u * np.exp(-1 / (1 + u**2))),
    ],
)
def test_curves_are_their_formulas(kind, expected):
    u = np.linspace(-4, 4, 81)[:, None]
    assert np.allclose(run(Elementwise(1, kind, gain=0.7), {}, u), expected(0.7 * u), atol=1e-14)


def test_an_activation_never_writes_into_its_input():
    inputs = rows(NOISY["activation"])
    before = inputs.copy()
    run(Elementwise(4, "identity", detector=Detector(noise_std=0.1)), {}, inputs)
    assert np.array_equal(inputs, before)


def test_the_emulator_does_its_steps_in_the_stated_order():
    model = EmulatedLinear(
        6, 5, "tanh", in_bits=5, in_bound=0.8, out_bits=6, out_bound=2.0, weight_format="fixed1.4",
        accumulate_format="bf16",
    )  # fmt: skip
    values, inputs = values_of(model), rows(model)
    weight = cast(values["weight"], "fixed1.4")
    sums = cast(convert(inputs, uniform_port(5, -0.8, 0.8)) @ weight.T, "bf16") + values["bias"]
    assert np.allclose(run(model, values, inputs), np.tanh(convert(sums, uniform_port(6, -2.0, 2.0))), atol=1e-12)


def test_write_noise_is_relative_to_the_weight_range():
    """Variance of 10,000 weights, |z| < 5: false alarm 1.2e-6 for both."""
    for bound, scale in ((0.5, 0.5), (math.inf, 0.2)):
        model = EmulatedLinear(100, 100, bias=False, write_noise=0.1, weight_bound=bound)
        weight = np.full((100, 100), 0.2)
        spread = run(model, {"weight": weight}, np.eye(100)) - weight.T
        assert abs(spread.var() / (0.1 * scale) ** 2 - 1) * 5000**0.5 < 5


def test_fixed_point_weights_declare_their_levels():
    levels = EmulatedLinear(2, 2, weight_format="fixed1.2", weight_bound=1.0).parameters[0].levels
    assert levels == tuple(k / 4 for k in range(-4, 5))
    assert EmulatedLinear(2, 2, weight_format="fixed1.2", rounding="stochastic").parameters[0].levels is None
    assert EmulatedLinear(2, 2).parameters[0].levels is None


def test_converter_ends_show_only_where_the_read_out_is_the_converter():
    options = {"out_bits": 9, "out_bound": 12.0}
    assert EmulatedLinear(2, 2, **options).output == uniform_port(9, -12.0, 12.0)
    assert EmulatedLinear(2, 2, "tanh", **options).output.step == 0


def test_bad_stages_are_refused():
    with pytest.raises(ValueError, match="unknown activation 'gelu': known are identity, relu"):
        Elementwise(2, "gelu")
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        EmulatedLinear(2, 2, "gelu")
    with pytest.raises(ValueError, match="gain 0 not 0"):
        Elementwise(2, gain=0)
    with pytest.raises(ValueError, match="0 to 2 values"):
        EmulatedLinear(0, 2)
    with pytest.raises(ValueError, match="needs finite ends"):
        EmulatedLinear(2, 2, in_bits=8)
    with pytest.raises(ValueError, match="unknown number format 'fp4'"):
        EmulatedLinear(2, 2, weight_format="fp4")

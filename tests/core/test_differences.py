"""Differences have the order they state, default steps suit device and converter, and impossible steps are refused."""

from __future__ import annotations

import numpy as np
import pytest

from hzo_hil import Opaque, Plan, Stage
from hzo_hil.devices.api import BoundarySpec, StageSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.differences import SCHEMES, check_step, default_step, scheme, snap
from tests.core.nets import OnHost, affine_opaque, gradients, inputs, loss_of, worst

CENTRAL, FORWARD, RICHARDSON = (SCHEMES[n] for n in ("central", "forward", "richardson"))


@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize(("name", "order"), [("forward", 1), ("central", 2), ("richardson", 4)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(name, order, probes):
    steps = [0.1, 0.05] if name == "richardson" else [0.02, 0.01]
    errors = []
    for eps in steps:
        module = affine_opaque([4, 5, 3], tree="chain", probes=probes, differences=name, eps=eps).requires_grad_(False)
        x = inputs(6, 4)
        errors.append(worst(gradients(module, [], x), gradients(OnHost(module, "tanh"), [], x)))
    assert errors[0] > 1e-7
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("name", "queries"), [("central", 14), ("richardson", 28), ("forward", 8)])
def test_queries_of_seven_probes(name, queries):
    assert scheme(name).queries(7) == queries


NOISE, EPS, ROWS, WIDTH = 0.01, 0.1, 600, 8


@pytest.mark.parametrize(
    ("probes", "name", "gain"),
    [
        ("coordinate", "central", 8.0),
        ("hadamard", "central", 1.0),
        ("coordinate", "forward", 4 * 8.0),
        # Levels eps and eps / 2 weigh 1/9 and 16/9, and half a step doubles the noise: 65/9 of central at this eps.
        ("coordinate", "richardson", 65 / 9 * 8.0),
    ],
)
def test_read_noise_reaches_the_target_as_the_formula_says(probes, name, gain):
    """v = gain s^2 ||T||^2 / (2 eps^2) with gain M for coordinate, M / N for Hadamard.

    4,800 elements (those of a sample share a reference with forward differences, so some 600 independent ones): the
    mean square has a standard error below 6 %; the bound of 30 % is five of them, false alarms below 1e-5
    over the four cases.
    """
    script = Script(noise=NOISE, seed=3)
    device = FakeDevice.mlp([WIDTH, WIDTH], "identity", dtype="float64", script=script, keyed=True)
    plan = Plan(probes=probes, differences=name, eps=EPS, shared=False)
    module = affine_opaque([WIDTH, WIDTH], "identity", device=device, plan=plan)
    module.requires_grad_(False)
    x = inputs(ROWS, WIDTH)
    top = inputs(1, WIDTH, seed=1, grad=False).expand(ROWS, WIDTH)
    module(x).backward(top)
    x_grad = top.numpy() @ module.stages[0].weight.numpy()
    energy = float(((x.grad.numpy() - x_grad) ** 2).sum(axis=1).mean())
    expected = gain * NOISE**2 * float((top[0] ** 2).sum()) / (2 * EPS**2)
    assert energy == pytest.approx(expected, rel=0.3)


def test_repeats_divide_the_noise():
    """Same bound and false-alarm rate as above, for one case."""
    energies = []
    for declared in (False, True):
        script = Script(noise=NOISE, seed=3)
        device = FakeDevice.mlp(
            [WIDTH, WIDTH], "identity", dtype="float64", script=script, keyed=True, repeats=declared
        )
        plan = Plan(eps=EPS, repeats=4, shared=False)
        module = affine_opaque([WIDTH, WIDTH], "identity", device=device, plan=plan).requires_grad_(False)
        x = inputs(ROWS, WIDTH)
        top = inputs(1, WIDTH, seed=1, grad=False).expand(ROWS, WIDTH)
        module(x).backward(top)
        error = x.grad.numpy() - top.numpy() @ module.stages[0].weight.numpy()
        energies.append(float((error**2).sum(axis=1).mean()))
    expected = WIDTH * NOISE**2 * float((top[0] ** 2).sum()) / (2 * EPS**2) / 4
    assert energies == [pytest.approx(expected, rel=0.3)] * 2


# ---- steps


def test_default_steps_balance_noise_and_truncation():
    assert default_step(CENTRAL, "float64", None, 0, np.inf) == pytest.approx((3.3e-16) ** (1 / 3))
    assert default_step(FORWARD, "float32", None, 0, np.inf) == pytest.approx((1.8e-7) ** 0.5)
    assert default_step(RICHARDSON, "float32", 0.01, 0, np.inf) == pytest.approx(0.03**0.2)
    assert default_step(CENTRAL, "float32", 0.06, 0, 1.0) == 0.25  # a quarter of the range


@pytest.mark.parametrize(
    ("step", "converter", "expected"), [(0.1, 0.0, 0.1), (0.1, 0.03, 0.12), (0.09, 0.03, 0.09), (1e-6, 0.5, 0.5)]
)
def test_steps_are_raised_to_whole_converter_steps(step, converter, expected):
    assert snap(step, converter) == pytest.approx(expected)


def test_richardsons_half_step_is_whole_too():
    assert default_step(RICHARDSON, "float64", 0.0, 0.25, np.inf) == 0.5
    assert check_step(RICHARDSON, 0.55, 0.25, np.inf, 0) == 1.0


@pytest.mark.parametrize(
    ("eps", "converter", "span", "words"),
    [
        (
            0.004,
            0.01,
            np.inf,
            r"moves an input by 0\.004, less than the input converter's step of 0\.01.*eps of at least 0\.01,",
        ),
        (
            0.6,
            0.0,
            1.0,
            r"eps 0\.6 at boundary 3 does not fit into the drivable range: it may be at most 0\.5 with these probes",
        ),
        (np.inf, 0.0, np.inf, r"eps at boundary 3 is inf: a step must be positive and finite"),
        (0.0, 0.0, 1.0, r"eps at boundary 3 is 0\.0"),
    ],
)
def test_steps_that_cannot_work_are_refused(eps, converter, span, words):
    with pytest.raises(BadInput, match=words):
        check_step(CENTRAL, eps, converter, span, 3)
    if converter:
        with pytest.raises(BadInput, match=r"moves an input by 0\.002, .*eps of at least 0\.02,"):
            check_step(RICHARDSON, eps, converter, span, 3)


def test_a_probe_below_the_converters_step_is_refused_before_anything_is_sent():
    device = FakeDevice.mlp([3, 2], boundaries=BoundarySpec(low=-1, high=1, in_step=2 / 255))
    with pytest.raises(BadInput, match=r"probe at boundary 0 moves an input by 0\.005, .*the device would not see it"):
        Opaque(device, eps=0.005)
    assert not device.calls and not device.writes


@pytest.mark.parametrize(
    ("probes", "fits", "too_large"), [("coordinate", 0.5, 0.51), ("hadamard", 0.5, 0.51), ("sphere:3", 0.25, 0.26)]
)
def test_a_probe_must_fit_the_range_with_all_it_moves(probes, fits, too_large):
    """Directions on a sphere in 4 dimensions move an element by up to 2 eps."""
    device = FakeDevice.mlp([4, 2], boundaries=BoundarySpec(low=0, high=1))
    assert Opaque(device, probes=probes, eps=fits).resolved.eps == (fits,)
    with pytest.raises(BadInput, match=r"eps .* at boundary 0 does not fit into the drivable range"):
        Opaque(device, probes=probes, eps=too_large)


@pytest.mark.parametrize("probes", ["coordinate", "hadamard", "gaussian:4", "sphere:4", "rademacher:4"])
def test_default_steps_of_a_noisy_device_fit_its_range(probes):
    device = FakeDevice.mlp([5, 5, 2], "sigmoid", boundaries=BoundarySpec(low=0, high=1), read_noise=0.1)
    module = Opaque(device, probes=probes)
    x = inputs(4, 5, grad=False).float().sigmoid().requires_grad_()
    loss_of(module(x)).backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_a_step_through_a_float32_device_is_one_that_float32_can_see():
    """The default step of a boundary suits the coarsest device of the segment, not the one that is driven."""
    fine, coarse = (FakeDevice.mlp([4, 4], dtype=d) for d in ("float64", "float32"))

    def steps(tree: str, *devices: FakeDevice) -> tuple[float, ...]:
        return Opaque([Stage(d, 0) for d in devices], tree=tree).resolved.eps

    small, large = (3.3e-16) ** (1 / 3), (1.8e-7) ** (1 / 3)
    last = FakeDevice.mlp([4, 4])
    assert steps("chain", fine, coarse) == (pytest.approx(small), pytest.approx(large))
    assert steps("chain", coarse, fine, last) == (pytest.approx(large), pytest.approx(small), pytest.approx(large))
    assert steps("direct", coarse, fine, last) == (pytest.approx(large),) * 3


def test_whole_converter_steps_make_an_exact_derivative_of_a_linear_stage():
    """Through a 6-bit converter, with activations between its levels, a linear stage's derivative is exact."""
    spec = StageSpec("scale", 3, 3, structure="diagonal", linear=True)
    for probes in ("coordinate", "hadamard"):
        device = FakeDevice.functions(
            [(spec, lambda a, p: 3 * a)], dtype="float64", boundaries=BoundarySpec(low=-1, high=1, in_step=2 / 62)
        )
        module = Opaque(device, probes=probes)
        x = inputs(50, 3, grad=False).tanh().requires_grad_()
        module(x).sum().backward()
        np.testing.assert_allclose(x.grad.numpy(), 3.0, rtol=1e-9)

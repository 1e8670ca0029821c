"""Each target rule against something known: autograd, closed forms, another library's gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from hzo_hil import Opaque, Stage
from hzo_hil.credit.activity import ActivityPerturbation
from hzo_hil.credit.align import AlignAda
from hzo_hil.credit.difference import DifferenceTargets
from hzo_hil.credit.feedback import DirectFeedback, FeedbackAlignment
from hzo_hil.credit.needs import CREDITS
from hzo_hil.devices.api import BoundarySpec, StageSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice
from hzo_hil.probes import probe_set
from tests.core.nets import (
    OnHost,
    affine_opaque,
    cosine,
    differing,
    gradients,
    inputs,
    loss_of,
    spent_and_predicted,
    worst,
)  # fmt: skip

WIDTHS = (4, 5, 3, 2)
COSTS = {"virtual_time": True, "latency_s": 1e-3, "query_s": 3e-6, "settling_s": 0.02}


def pair(credit, activation="tanh", widths=WIDTHS, x=None):
    """Gradients by the rule, and autograd's, of the same network; the module."""
    module = affine_opaque(widths, activation, credit=credit)
    x = inputs(6, widths[0]) if x is None else x
    exact = gradients(OnHost(module, activation), list(module.parameters()), x)
    return gradients(module, list(module.parameters()), x), exact, module


# --- feedback alignment ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid", "identity"])
def test_feedback_through_the_transposed_weights_is_backpropagation(activation):
    rule = FeedbackAlignment(0, "opaque")
    reference = affine_opaque(WIDTHS, activation)
    rule.matrices = {k: s.weight.detach().numpy() for k, s in enumerate(reference.stages)}
    found, exact, module = pair(rule, activation)
    assert worst(found, exact) < 1e-12
    assert module.ledger.accounts["probes"].queries == 0


def test_random_feedback_is_its_formula():
    found, _, module = pair("feedback")
    x, b = inputs(6, 4), [module.target_rule.matrix(module.network, k) for k in range(3)]
    assert b[1].shape == (3, 5) and np.std(FeedbackAlignment(1, "a").matrix(module.network, 1)) > 0
    h = [x.detach()]
    for stage in module.stages:
        h.append(torch.tanh(h[-1] @ stage.weight.detach().T + stage.bias.detach()))
    last = h[3].clone().requires_grad_()
    (d,) = torch.autograd.grad(loss_of(last), last)
    for k in (2, 1, 0):
        d = d * (1 - h[k + 1] ** 2)
        assert torch.allclose(found[2 * k], d.T @ h[k], rtol=1e-10)
        d = d @ torch.as_tensor(b[k])
    assert torch.allclose(found[-1], d, rtol=1e-10)


def test_feedback_alignment_is_that_of_biotorch():
    pytest.importorskip("biotorch", reason="biotorch is not installed (pip install --no-deps biotorch)")
    from biotorch.layers.fa import Linear

    found, _, module = pair("feedback")
    layers = []
    for k, stage in enumerate(module.stages):
        layer = Linear(WIDTHS[k], WIDTHS[k + 1], bias=True).double()
        feedback = torch.as_tensor(module.target_rule.matrix(module.network, k))
        with torch.no_grad():
            layer.weight.copy_(stage.weight)
            layer.bias.copy_(stage.bias)
            layer.weight_backward.copy_(feedback)
        layers += [layer, torch.nn.Tanh()]
    other = torch.nn.Sequential(*layers)
    wanted = [p for layer in layers[::2] for p in (layer.weight, layer.bias)]
    loss_of(other(inputs(6, 4, grad=False))).backward()
    assert worst(found[:-1], [p.grad for p in wanted]) < 1e-10


def test_direct_feedback_sends_the_error_to_every_linear_stage():
    found, _, module = pair("direct_feedback", "identity")
    x = inputs(6, 4, grad=False)
    h, error = [x], None
    for stage in module.stages:
        h.append(h[-1] @ stage.weight.detach().T + stage.bias.detach())
    last = h[3].clone().requires_grad_()
    (error,) = torch.autograd.grad(loss_of(last), last)
    assert torch.allclose(found[4], error.T @ h[2])
    for k in (1, 0):
        d = error @ torch.as_tensor(module.target_rule.matrix(module.network, k + 1))
        assert torch.allclose(found[2 * k], d.T @ h[k]) and torch.allclose(found[2 * k + 1], d.sum(0))


@pytest.mark.parametrize("twins", [True, False])
def test_elementwise_stages_keep_their_true_derivative(twins):
    """A matrix, a tanh stage of its own, a matrix: with the transposed weights feedback is backpropagation."""
    layers = [*_linear_and_tanh(twins), *_linear_and_tanh(twins)]
    rule = FeedbackAlignment(0, "opaque")
    module = Opaque(layers, credit=rule).double()
    rule.matrices = {k: module.stages[k].weight.detach().numpy() for k in (0, 2)}

    def host(x):
        for k in (0, 2):
            x = torch.tanh(x @ module.stages[k].weight.T)
        return x

    x = inputs(5, 3)
    parameters = list(module.parameters())
    found, exact = gradients(module, parameters, x), gradients(host, parameters, x)
    assert worst(found, exact) < (1e-12 if twins else 1e-7)
    assert module.ledger.accounts["probes"].queries == (0 if twins else 2 * 2 * 5)


def _linear_and_tanh(twins):
    matrix = FakeDevice.mlp([3, 3], "identity", bias=False, dtype="float64", seed=1)
    tanh = StageSpec("tanh", 3, 3, structure="diagonal")
    bend = FakeDevice.functions([(tanh, lambda inputs, _: np.tanh(inputs))], dtype="float64")
    weight = dict(matrix.read(0))
    return [
        Stage(matrix, 0, leaf="delta", initial=weight),
        Stage(bend, 0, twin=torch.tanh if twins else None),
    ]


# --- align-ada -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "tanh"])
def test_at_the_initial_weights_align_ada_is_the_gradient(activation):
    found, exact, _ = pair("align", activation)
    assert worst(found, exact) < 1e-12


def test_align_ada_goes_back_through_the_weights_it_started_from():
    module = affine_opaque(WIDTHS, "identity", credit="align")
    x = inputs(6, 4)
    loss_of(module(x)).backward()
    start = [s.weight.detach().clone() for s in module.stages]
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype))
    found = gradients(module, list(module.parameters()), x)
    h = [x.detach()]
    for stage in module.stages:
        h.append(h[-1] @ stage.weight.detach().T + stage.bias.detach())
    last = h[3].clone().requires_grad_()
    (d,) = torch.autograd.grad(loss_of(last), last)
    for k in (2, 1, 0):
        assert torch.allclose(found[2 * k], d.T @ h[k])
        d = d @ start[k]


# --- difference target propagation -----------------------------------------------------------------------------


def test_exact_inverses_give_the_gauss_newton_target():
    """Square and linear: the target at a boundary is (J^T J)^-1 J^T of that at the end, whatever eta."""
    widths = (3, 3, 3, 3)
    for step in (0.01, 1.0):
        rule = DifferenceTargets(0, "opaque", step=step, noise=0.0)
        module = affine_opaque(widths, "identity", credit=rule)
        for k in (0, 1, 2):
            w, b = module.stages[k].weight.detach(), module.stages[k].bias.detach()
            rule.inverses[k] = lambda y, w=w, b=b: torch.linalg.solve(w, (y - b).T).T
        x = inputs(5, 3)
        found = gradients(module, list(module.parameters()), x)
        h = [x.detach()]
        for stage in module.stages:
            h.append(h[-1] @ stage.weight.detach().T + stage.bias.detach())
        last = h[3].clone().requires_grad_()
        (e,) = torch.autograd.grad(loss_of(last), last)
        jacobian = torch.eye(3, dtype=torch.float64)
        for k in (2, 1, 0):
            target = e @ torch.linalg.pinv(jacobian).T
            assert torch.allclose(found[2 * k], target.T @ h[k], rtol=1e-8), (step, k)
            jacobian = jacobian @ module.stages[k].weight.detach()


def test_learned_inverses_come_to_invert_a_linear_stage():
    rule = DifferenceTargets(0, "opaque", fit_steps=300, rate=1e-2)
    module = affine_opaque((3, 3, 3), "identity", credit=rule)
    with torch.no_grad():
        for stage in module.stages:
            stage.weight.copy_(torch.linalg.qr(stage.weight)[0])
    loss_of(module(inputs(64, 3, grad=False))).backward()
    x = inputs(20, 3, seed=9, grad=False)
    with torch.no_grad():
        again = rule.inverses[1](x @ module.stages[1].weight.T + module.stages[1].bias)
    assert float((again - x).norm() / x.norm()) < 0.1
    assert module.ledger.accounts["probes"].queries == 64


# --- activity perturbation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("probes", ["gaussian:1", "rademacher:1"])
@pytest.mark.parametrize("seed", [0])
def test_the_mean_of_activity_perturbation_is_the_gradient(probes, seed):
    """One direction in the joint space of all boundaries: Hotelling's T^2 over 600 estimates; false alarm 1e-4."""
    module = affine_opaque((2, 3, 1), "tanh", credit="activity", probes=probes, eps=1e-4, seed=seed)
    x = inputs(1, 2, grad=False)
    parameters = [*module.stages[0].parameters()]
    estimates = []
    for _ in range(600):
        found = torch.autograd.grad(loss_of(module(x)), parameters)
        estimates.append(torch.cat([f.flatten() for f in found]).numpy())
    exact = torch.autograd.grad(loss_of(OnHost(module, "tanh")(x)), parameters)
    exact = torch.cat([e.flatten() for e in exact]).numpy()
    # Gradients of a single sample lie in the span of its targets: three numbers, those of the bias.
    drawn = np.stack(estimates)[:, -3:]
    off = drawn.mean(0) - exact[-3:]
    n, p = drawn.shape
    t2 = n * off @ np.linalg.solve(np.cov(drawn.T), off)
    assert stats.f.sf(t2 * (n - p) / (p * (n - 1)), p, n - p) > 1e-4


def test_activity_perturbation_moves_every_boundary_at_once():
    module = affine_opaque(WIDTHS, "tanh", credit="activity", probes="rademacher:4", eps=1e-3)
    x = inputs(6, 4)
    found = gradients(module, list(module.parameters()), x)
    # Up and down, four directions, three stages, six samples.
    assert module.ledger.accounts["probes"].queries == 2 * 4 * 3 * 6
    assert float(found[-1].norm()) > 0
    # The last stage needs no estimate.
    exact = gradients(OnHost(module, "tanh"), list(module.parameters()), x)
    assert worst(found[4:6], exact[4:6]) < 1e-12


def test_many_directions_come_near_the_gradient():
    module = affine_opaque(WIDTHS, "tanh", credit="activity", probes="rademacher:400", eps=1e-3)
    x = inputs(8, 4)
    parameters = list(module.parameters())
    assert cosine(gradients(module, parameters, x), gradients(OnHost(module, "tanh"), parameters, x)) > 0.97


# --- all of them -----------------------------------------------------------------------------------------------

RULES = [c for c in CREDITS if c not in ("hzo", "loss", "deployed")]


@pytest.mark.parametrize("needs_input", [False, True])
@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("credit", RULES)
def test_every_rule_costs_what_was_forecast(credit, repeats, needs_input):
    device = FakeDevice.mlp(WIDTHS, "tanh", **COSTS, max_batch=7)
    options = {"probes": "rademacher:2"} if credit == "activity" else {}
    module = affine_opaque(WIDTHS, "tanh", device=device, credit=credit, repeats=repeats, **options)
    wanted = [True] * 3
    spent, predicted = spent_and_predicted(
        module, inputs(5, 4, grad=needs_input), credit=credit, asks=module.target_questions(wanted, needs_input)
    )
    assert differing(spent, predicted) == []
    assert predicted.queries_per_sample * 5 == spent["probes"].queries


@pytest.mark.parametrize("credit", RULES)
def test_the_last_stage_learns_by_the_true_gradient(credit):
    options = {"probes": "gaussian:1"} if credit == "activity" else {}
    module = affine_opaque(WIDTHS, "tanh", credit=credit, **options)
    x, parameters = inputs(6, 4, grad=False), [*module.stages[2].parameters()]
    found = torch.autograd.grad(loss_of(module(x)), parameters)
    exact = torch.autograd.grad(loss_of(OnHost(module, "tanh")(x)), parameters)
    assert worst(found, exact) < 1e-12


@pytest.mark.parametrize("credit", [c for c, needs in CREDITS.items() if needs.inner])
def test_a_chip_without_inner_boundaries_is_refused_with_the_tier(credit):
    sealed = [BoundarySpec(), BoundarySpec(drive=False, read=False), BoundarySpec()]
    device = FakeDevice.mlp([3, 4, 3], boundaries=sealed)
    with pytest.raises(BadInput, match=rf"credit='{credit}' .* tier '{CREDITS[credit].tier}'.* at its ends only"):
        Opaque(device, credit=credit, **({"probes": "gaussian:1"} if credit == "activity" else {}))
    assert not device.calls


@pytest.mark.parametrize("credit", ["twin", "align"])
def test_missing_twins_are_refused_with_the_tier(credit):
    with pytest.raises(BadInput, match="needs a twin of every stage; none for 'layer1'.*tier 'twin'"):
        Opaque(FakeDevice.mlp([3, 4, 3]), credit=credit)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"credit": "activity"}, "'coordinate' names none: use probes gaussian:1"),
        ({"credit": "feedback", "leaf": "measured"}, "needs sigma' of stage 1 .*leaf: delta:NAME"),
        ({"credit": "feedback", "memory": "recompute"}, "needs all activations at once"),
        ({"credit": "nothing"}, "unknown credit 'nothing': choose hzo"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked(options, says):
    device = FakeDevice.mlp(WIDTHS, "tanh", dtype="float64")
    with pytest.raises(BadInput, match=says):
        affine_opaque(WIDTHS, "tanh", options.pop("leaf", "delta"), device=device, **options)
    assert not device.calls


@pytest.mark.parametrize("credit", RULES)
def test_a_restored_module_goes_on_as_the_one_that_was_saved(credit, tmp_path):
    options = {"probes": "gaussian:1"} if credit == "activity" else {}
    x = inputs(6, 4)

    def trained(module, steps):
        optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
        for _ in range(steps):
            optimiser.zero_grad()
            loss_of(module(x)).backward()
            optimiser.step()
        return [p.detach().clone() for p in module.parameters()]

    through = affine_opaque(WIDTHS, "tanh", credit=credit, **options)
    expected = trained(through, 4)
    half = affine_opaque(WIDTHS, "tanh", credit=credit, **options)
    trained(half, 2)
    torch.save(half.state_dict(), tmp_path / "half.pt")
    again = affine_opaque(WIDTHS, "tanh", credit=credit, **options)
    again.load_state_dict(torch.load(tmp_path / "half.pt", weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(trained(again, 2), expected, strict=True))


@pytest.mark.parametrize("rule", [FeedbackAlignment, DirectFeedback])
def test_feedback_keeps_the_size_of_targets(rule):
    """Normal with variance 1 / width: 64 x 64 numbers, whose mean square is 1/64 to 5 deviations: false alarm 6e-7."""
    module = affine_opaque((64, 64, 64), "identity")
    matrix = rule(0, "a").matrix(module.network, 1)
    assert abs((matrix**2).mean() * 64 - 1) < 5 * np.sqrt(2 / matrix.size)


def test_two_names_draw_two_feedbacks():
    module = affine_opaque(WIDTHS)
    a, b = (FeedbackAlignment(0, name).matrix(module.network, 1) for name in ("a", "b"))
    assert not np.allclose(a, b)


def test_rules_of_your_own_are_taken():
    rule = ActivityPerturbation(probe_set("gaussian:2"))
    assert affine_opaque(WIDTHS, credit=rule).credit == "activity"
    assert affine_opaque(WIDTHS, credit=AlignAda()).credit == "align"

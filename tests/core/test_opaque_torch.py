"""An `Opaque` is an ordinary torch module: wherever it stands in a model, however the model is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils.checkpoint import checkpoint

from hzo_hil import Opaque, Stage
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.updates.delta import DeltaRule

WIDTHS = [5, 6, 4, 5]


def opaque(dtype: str = "float64", device: FakeDevice | None = None, **options: Any) -> Opaque:
    device = device or FakeDevice.mlp(WIDTHS, dtype=dtype)  # type: ignore[arg-type]
    stages = [Stage(device, k, leaf=DeltaRule("tanh")) for k in range(3)]
    made = Opaque(stages, **{"probes": "hadamard", "seed": 3, **options})
    return made.double() if dtype == "float64" else made


def device_of(module: Opaque) -> Any:
    return module.network.devices[0]


def mirror(module: Opaque) -> nn.Sequential:
    """What the fake device computes, as ordinary torch with the same parameters."""
    layers: list[nn.Module] = []
    for masters in module.stages:
        linear = nn.Linear(*reversed(masters.weight.shape)).to(masters.weight)
        linear.load_state_dict({"weight": masters.weight.detach().clone(), "bias": masters.bias.detach().clone()})
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers)


def batch(count: int = 7, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTHS[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def host(seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(5, 5).double()


def loss_of(output: Tensor) -> Tensor:
    return (output**2).sum() + output.sum()


def close(found: Iterable[Tensor | None], expected: Iterable[Tensor | None], rtol: float = 1e-7) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a is not None and b is not None
        assert float((a - b).norm()) <= rtol * float(b.norm())


def grads(module: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in module.parameters()]


# ---- places in a model


@pytest.mark.parametrize("place", ["alone", "first", "middle", "last"])
def test_gradients_are_those_of_autograd_wherever_it_stands(place: str) -> None:
    onn = opaque()
    before = [host(1)] if place in ("middle", "last") else []
    after = [host(2)] if place in ("first", "middle") else []
    model, twin = nn.Sequential(*before, onn, *after), nn.Sequential(*before, mirror(onn), *after)
    x = batch().requires_grad_(place == "alone")
    loss_of(model(x)).backward()
    found = [g.clone() for g in grads(model) if g is not None]
    found_input = None if x.grad is None else x.grad.clone()
    model.zero_grad()
    x.grad = None
    loss_of(twin(x)).backward()
    close(found, grads(twin))
    if place == "alone":
        close([found_input], [x.grad])
    else:
        assert found_input is None


def test_the_same_module_twice_in_a_model() -> None:
    onn = opaque()
    middle = host(1)
    x = batch()
    loss_of(onn(middle(onn(x)))).backward()
    found = grads(onn)
    twin = mirror(onn)
    middle.zero_grad()
    loss_of(twin(middle(twin(x)))).backward()
    close(found, grads(twin))
    assert onn.forwards == 2


def test_an_input_that_needs_no_gradient_is_not_probed_for() -> None:
    with_input, without = opaque(), opaque()
    loss_of(with_input(batch().requires_grad_())).backward()
    loss_of(without(batch())).backward()
    inner = 7 * 2 * (8 + 4)  # Hadamard of widths 6 and 4, plus and minus
    assert without.ledger.accounts["probes"].queries == inner
    assert with_input.ledger.accounts["probes"].queries == inner + 7 * 2 * 8


def test_autograd_grad_leaves_dot_grad_alone() -> None:
    onn = opaque()
    x = batch().requires_grad_()
    found = torch.autograd.grad(loss_of(onn(x)), [x, *onn.parameters()])
    assert all(g is None for g in grads(onn)) and x.grad is None
    twin = mirror(onn)
    close(found, torch.autograd.grad(loss_of(twin(x)), [x, *twin.parameters()]))


def test_accumulated_gradients_equal_those_of_the_whole_batch() -> None:
    parts, whole = opaque(), opaque()
    for part in batch(12).split(5):
        loss_of(parts(part)).backward()
    loss_of(whole(batch(12))).backward()
    close(grads(parts), grads(whole), rtol=1e-12)


def test_frozen_masters_get_no_gradient_and_cost_no_probes_below_the_lowest_trained_stage() -> None:
    onn, free = opaque(tree="chain"), opaque(tree="chain")
    for p in onn.stages[0].parameters():
        p.requires_grad_(False)
    onn.stages[1].bias.requires_grad_(False)
    loss_of(onn(batch())).backward()
    loss_of(free(batch())).backward()
    assert [p.grad is None for p in onn.parameters()] == [True, True, False, True, False, False]
    kept = [g for p, g in zip(onn.parameters(), grads(free), strict=True) if p.requires_grad]
    close([g for g in grads(onn) if g is not None], kept, rtol=1e-12)
    assert onn.ledger.accounts["probes"].queries == 7 * 2 * 4


def test_a_wholly_frozen_module_still_passes_the_gradient_on() -> None:
    onn = opaque().requires_grad_(False)
    x = batch().requires_grad_()
    loss_of(onn(x)).backward()
    found, x.grad = x.grad, None
    loss_of(mirror(onn)(x)).backward()
    close([found], [x.grad])
    assert all(g is None for g in grads(onn))


def test_hooks_see_what_they_see_of_any_module() -> None:
    onn = opaque()
    seen: dict[str, Any] = {}
    onn.register_forward_hook(lambda m, i, o: seen.update(output=o.shape))
    onn.register_full_backward_hook(lambda m, gi, go: seen.update(gradients=(gi[0].shape, go[0].shape)))
    weight = onn.stages[0].weight
    weight.register_hook(lambda g: 2 * g)
    weight.register_post_accumulate_grad_hook(lambda p: seen.update(accumulated=p.grad.clone()))
    x = batch().requires_grad_()
    loss_of(onn(x)).backward()
    assert seen["output"] == (7, 5)
    assert seen["gradients"] == ((7, 5), (7, 5))
    twin = mirror(onn)
    loss_of(twin(batch())).backward()
    close([weight.grad / 2, seen["accumulated"] / 2], [twin[0].weight.grad] * 2)


# ---- more than one backward


def test_a_second_backward_probes_again_and_is_counted() -> None:
    onn = opaque()
    loss = loss_of(onn(batch()))
    loss.backward(retain_graph=True)
    once = onn.ledger.accounts["probes"].queries
    first = [g.clone() for g in grads(onn) if g is not None]
    loss.backward()
    assert once > 0
    assert onn.ledger.accounts["probes"].queries == 2 * once
    assert onn.ledger.accounts["forward"].queries == 3 * 7
    close(grads(onn), [2 * g for g in first], rtol=1e-12)


def test_a_second_backward_draws_its_own_noise() -> None:
    device = noisy()
    onn = opaque(device=device, dtype="float64")
    loss = loss_of(onn(batch()))
    loss.backward(retain_graph=True)
    first = [g.clone() for g in grads(onn) if g is not None]
    onn.zero_grad()
    loss.backward()
    below_the_probes = 4  # of 6: the last stage's gradients come from the forward alone
    again = grads(onn)
    assert not any(torch.equal(a, b) for a, b in zip(first[:below_the_probes], again[:below_the_probes], strict=True))


def test_double_backward_is_refused() -> None:
    onn = opaque()
    x = batch().requires_grad_()
    (gradient,) = torch.autograd.grad(loss_of(onn(x)), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ---- evaluation


def noisy(**options: Any) -> FakeDevice:
    return FakeDevice.mlp(WIDTHS, dtype="float64", keyed=True, script=Script(noise=0.1), **options)


def test_evaluation_has_its_own_purpose_and_does_not_advance_training_streams() -> None:
    plain, interrupted = opaque(device=noisy()), opaque(device=noisy())
    for step in range(3):
        loss_of(plain(batch(seed=step))).backward()
        with torch.no_grad():
            interrupted(batch(11))
        loss_of(interrupted(batch(seed=step))).backward()
    assert all(torch.equal(a, b) for a, b in zip(grads(plain), grads(interrupted), strict=True))
    assert plain.ledger.accounts["evaluation"].queries == 0
    assert interrupted.ledger.accounts["evaluation"].queries == 3 * 11
    for purpose in ("forward", "probes", "leaf"):
        assert plain.ledger.accounts[purpose].queries == interrupted.ledger.accounts[purpose].queries


@pytest.mark.parametrize("size", [1, 4, 20])
def test_evaluation_does_not_depend_on_how_it_is_split(size: int) -> None:
    whole, split = opaque(device=noisy()), opaque(device=noisy())
    with torch.no_grad():
        expected = whole(batch(20))
        found = torch.cat([split(part) for part in batch(20).split(size)])
    assert torch.equal(found, expected)
    assert not torch.equal(expected, mirror(whole)(batch(20)))


def test_inference_mode_evaluates_too() -> None:
    onn = opaque()
    with torch.inference_mode():
        output = onn(batch())
    torch.testing.assert_close(output.clone(), mirror(onn)(batch()).detach())
    assert onn.forwards == 0


# ---- what cannot work is refused in words


def test_torch_func_is_refused() -> None:
    onn = opaque()
    for transform in (torch.func.vmap(onn), torch.func.jacrev(onn), torch.func.grad(lambda x: onn(x).sum())):
        with pytest.raises(BadInput, match="does not work under torch.func.*a device has no batching rule"):
            transform(batch())
    assert not device_of(onn).calls


def test_a_data_parallel_replica_is_refused() -> None:
    onn = opaque()
    replica = onn._replicate_for_data_parallel()
    with pytest.raises(BadInput, match="cannot be replicated by DataParallel: use DistributedDataParallel"):
        replica(batch())
    assert not device_of(onn).calls


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_is_refused(reentrant: bool) -> None:
    onn = opaque()
    model = nn.Sequential(host(1), onn, host(2))
    output = checkpoint(model, batch().requires_grad_(), use_reentrant=reentrant)
    asked = len(device_of(onn).calls)
    with pytest.raises(BadInput, match="called within a backward pass. Activation checkpointing asks the device again"):
        loss_of(output).backward()
    assert len(device_of(onn).calls) == asked


# ---- compiled, mixed and double precision


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_gives_the_same() -> None:
    onn = opaque()
    model = nn.Sequential(host(1), onn, host(2))
    compiled = torch.compile(model, backend="eager")
    outputs, found = [], []
    for run in (model, compiled):
        model.zero_grad()
        outputs.append(run(batch()))
        loss_of(outputs[-1]).backward()
        found.append([g.clone() for g in grads(model) if g is not None])
    assert torch.equal(*outputs)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert onn.forwards == 2


def test_autocast_meets_float32_and_returns_the_inputs_dtype() -> None:
    device = FakeDevice.mlp(WIDTHS, keep_inputs=True)
    onn = opaque("float32", device=device)
    torch.manual_seed(0)
    first = nn.Linear(5, 5)
    between: list[Tensor] = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = first(batch(dtype=torch.float32))
        hidden.register_hook(between.append)
        output = onn(hidden)
        loss = loss_of(output)
    loss.backward()
    assert hidden.dtype == torch.bfloat16 and between[0].dtype == torch.bfloat16
    assert output.dtype == torch.float32
    assert np.array_equal(device.calls[0].inputs, hidden.detach().float().numpy())
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in onn.parameters())
    x = hidden.detach().float().requires_grad_()
    twin = mirror(onn)
    loss_of(twin(x)).backward()
    assert x.grad is not None
    close([between[0].float()], [x.grad], rtol=0.01)
    close(grads(onn), grads(twin), rtol=0.01)


@pytest.mark.parametrize("narrow", ["half", "bfloat16"])
def test_narrow_masters_are_refused_and_nothing_changes(narrow: str) -> None:
    onn = opaque("float32")
    before = [p.clone() for p in onn.parameters()]
    with pytest.raises(BadInput, match="master parameters of opaque stay float32 or float64.*torch.autocast"):
        getattr(onn, narrow)()
    assert all(torch.equal(a, b) for a, b in zip(onn.parameters(), before, strict=True))
    with pytest.raises(BadInput, match="stay float32 or float64"):
        nn.Sequential(onn).to(getattr(torch, "float16" if narrow == "half" else narrow))
    assert {p.dtype for p in onn.parameters()} == {torch.float32}


def test_float64_all_the_way() -> None:
    device = FakeDevice.mlp(WIDTHS, dtype="float64", keep_inputs=True)
    onn = opaque(device=device)
    x = batch().requires_grad_()
    output = onn(x)
    loss_of(output).backward()
    assert output.dtype == torch.float64
    assert np.array_equal(device.calls[0].inputs, x.detach().numpy())
    assert device.writes[0].parameters["weight"].dtype == np.float64
    assert np.array_equal(device.writes[0].parameters["weight"], onn.stages[0].weight.detach().numpy())
    assert x.grad is not None and x.grad.dtype == torch.float64


# ---- shapes


@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)])
def test_leading_dimensions_are_restored(lead: tuple[int, ...]) -> None:
    onn = opaque()
    x = torch.randn(*lead, 5, dtype=torch.float64).requires_grad_()
    output = onn(x)
    loss_of(output).backward()
    assert output.shape == (*lead, 5)
    assert x.grad is not None and x.grad.shape == x.shape
    found, x.grad = x.grad, None
    expected = mirror(onn)(x)
    torch.testing.assert_close(output, expected)
    loss_of(expected).backward()
    close([found], [x.grad])


@pytest.mark.parametrize("lead", [(0,), (0, 3), (3, 0)])
def test_an_empty_batch_asks_nothing_and_has_zero_gradients(lead: tuple[int, ...]) -> None:
    onn = opaque()
    x = torch.zeros(*lead, 5, dtype=torch.float64, requires_grad=True)
    output = onn(x)
    output.sum().backward()
    assert output.shape == (*lead, 5) and output.dtype == torch.float64
    assert x.grad is not None and x.grad.shape == x.shape
    assert all(g is not None and not g.any() for g in grads(onn))
    with torch.no_grad():
        assert onn(x).shape == (*lead, 5)
    assert not device_of(onn).calls and onn.forwards == 0


# ---- stale weights

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum, foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, foreach=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "adam, foreach": lambda p: torch.optim.Adam(p, lr=0.05, foreach=True),
    "adam, fused": lambda p: torch.optim.Adam(p, lr=0.05, fused=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.05),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.05),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_every_optimiser_moves_the_device(name: str) -> None:
    onn = opaque()
    optimiser = OPTIMISERS[name](onn.parameters())
    before = [p.clone() for p in onn.parameters()]
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        output = onn(batch())
        torch.testing.assert_close(output.detach(), mirror(onn)(batch()).detach(), rtol=1e-10, atol=1e-10)
        loss = loss_of(output)
        loss.backward()
        losses.append(float(loss.detach()))
        optimiser.step()
    assert losses[-1] < losses[0]
    assert not any(torch.equal(a, b) for a, b in zip(before, onn.parameters(), strict=True))


def test_lbfgs_with_its_closure() -> None:
    onn = opaque()
    optimiser = torch.optim.LBFGS(onn.parameters(), max_iter=4)
    losses: list[float] = []

    def closure() -> float:
        optimiser.zero_grad()
        loss = loss_of(onn(batch()))
        loss.backward()
        losses.append(float(loss.detach()))
        return losses[-1]

    optimiser.step(closure)
    assert losses[-1] < losses[0]


def _data(m: Opaque) -> None:
    m.stages[1].weight.data[0, 0] += 0.5


def _numpy(m: Opaque) -> None:
    m.stages[1].weight.detach().numpy()[0, 0] += 0.5


def _vector(m: Opaque) -> None:
    vector_to_parameters(parameters_to_vector(m.parameters()) + 0.25, m.parameters())


def _load(m: Opaque) -> None:
    m.load_state_dict({k: v + 0.25 if isinstance(v, Tensor) else v for k, v in m.state_dict().items()})


def _swap(m: Opaque) -> None:
    m.stages[2].bias = nn.Parameter(m.stages[2].bias.detach() + 0.5)


def _to(m: Opaque) -> None:
    m.to(torch.float32).stages[0].bias.data += 0.125
    m.to(torch.float64)


@pytest.mark.parametrize("change", [_data, _numpy, _vector, _load, _swap, _to])
def test_weights_changed_behind_its_back_are_written_before_the_next_query(change: Callable[[Opaque], None]) -> None:
    onn = opaque()
    before = onn(batch()).detach()
    change(onn)
    with torch.no_grad():
        after = onn(batch())
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, mirror(onn)(batch()).detach(), rtol=1e-10, atol=1e-10)


def test_loading_the_state_of_another_module_at_the_same_epoch_is_seen() -> None:
    first, second = opaque(), opaque(seed=4)
    first(batch())
    assert first.written.epochs == second.written.epochs
    first.load_state_dict(second.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(first(batch()), mirror(second)(batch()).detach(), rtol=1e-10, atol=1e-10)


def test_unchanged_weights_are_written_once() -> None:
    onn = opaque()
    for _ in range(3):
        loss_of(onn(batch())).backward()
    assert [w.stage for w in device_of(onn).writes] == [0, 1, 2]
    onn.stages[1].weight.data[2, 3] += 1.0
    onn(batch())
    last = device_of(onn).writes[-1]
    assert len(device_of(onn).writes) == 4 and last.stage == 1
    assert {name: list(where) for name, where in last.where.items()} == {"weight": [2 * 6 + 3], "bias": []}


def test_a_change_below_one_converter_step_is_kept_in_the_master_and_not_written() -> None:
    levels = tuple(np.linspace(-3, 3, 61))
    onn = opaque(device=FakeDevice.mlp(WIDTHS, dtype="float64", parameter={"low": -3, "high": 3, "levels": levels}))
    onn.stages[0].weight.data.fill_(0.1)
    onn(batch())
    written = len(device_of(onn).writes)
    for _ in range(4):
        onn.stages[0].weight.data += 0.01
        onn(batch())
    assert len(device_of(onn).writes) == written
    onn.stages[0].weight.data += 0.02
    onn(batch())
    assert len(device_of(onn).writes) == written + 1
    np.testing.assert_allclose(device_of(onn).read(0)["weight"], 0.2)


@pytest.mark.parametrize("between", ["step", "step and forward"])
def test_a_step_between_forward_and_backward_names_the_order(between: str) -> None:
    onn = opaque()
    optimiser = torch.optim.SGD(onn.parameters(), lr=0.1)
    loss_of(onn(batch())).backward()
    loss = loss_of(onn(batch(seed=1)))
    optimiser.step()
    if between == "step and forward":
        onn(batch())
    asked = len(device_of(onn).calls)
    with pytest.raises(BadInput, match="Keep the order forward, backward, optimizer.step()"):
        loss.backward()
    assert len(device_of(onn).calls) == asked


# ---- bad input: nothing is sent


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: torch.zeros(3, 4), r"opaque takes inputs \[\.\.\., 5\], not \[3, 4\]"),
        (lambda: torch.tensor(1.0), r"opaque takes inputs \[\.\.\., 5\], not \[\]"),
        (lambda: torch.zeros(3, 5, dtype=torch.int64), r"takes a float tensor \[\.\.\., 5\], not torch.int64"),
        (lambda: torch.zeros(3, 5, dtype=torch.complex64), r"takes a float tensor .* not torch.complex64"),
        (lambda: np.zeros((3, 5)), r"takes a float tensor .* not float64"),
        (lambda: [[0.0] * 5], r"takes a float tensor .* not list"),
        (lambda: torch.full((3, 5), torch.nan), "15 of 15 inputs of opaque are NaN or infinite; nothing was sent"),
        (lambda: torch.tensor([[0, 1, 2, 3, torch.inf]]), "1 of 5 inputs of opaque are NaN or infinite"),
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_bad_inputs_are_refused_before_anything_is_sent(make: Callable[[], Any], text: str, grad: bool) -> None:
    onn = opaque("float32")
    with torch.set_grad_enabled(grad), pytest.raises(BadInput, match=text):
        onn(make())
    assert not device_of(onn).calls and not device_of(onn).writes


def test_a_gradient_that_is_not_finite_is_refused_before_anything_is_sent() -> None:
    onn = opaque()
    output = onn(batch())
    asked = len(device_of(onn).calls)
    with pytest.raises(BadInput, match="35 of 35 values of the gradient that reached opaque are NaN or infinite"):
        (output.sum() * torch.nan).backward()
    assert len(device_of(onn).calls) == asked
    assert all(g is None for g in grads(onn))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_masters_that_are_not_finite_are_never_written(value: float) -> None:
    onn = opaque()
    onn(batch())
    asked, written = len(device_of(onn).calls), len(device_of(onn).writes)
    onn.stages[1].weight.data[0, :2] = value
    with pytest.raises(
        BadInput, match=r"stage 2 \('layer2'\): parameter 'weight' holds 2 non-finite values, nothing was writ.*lower"
    ):
        onn(batch())
    assert (len(device_of(onn).calls), len(device_of(onn).writes)) == (asked, written)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"buffer_bytes": 0}, "buffer_bytes is 0: with no room for early answers nothing could be asked"),
        ({"max_bad_steps": 0}, "max_bad_steps must be at least 1"),
        ({"max_saturated": 0.0}, "max_saturated above 0"),
        ({"credit": "guess"}, "unknown credit 'guess': choose hzo, activity"),
        ({"credit": "twin"}, "needs a twin of every stage; none for 'layer1', 'layer2', 'layer3'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        opaque(**options)

"""Feature reuse: a perturbed pass is the whole model's, bit for bit, and runs only what follows the perturbation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hzo_hil.devices.errors import BadInput
from hzo_hil.layers import Residual
from hzo_hil.optim import FeatureReuse
from tests.optim.models import batch, residual, small_resnet20


def shared() -> nn.Sequential:
    """One linear layer in three places, two of them the branches of a skip."""
    torch.manual_seed(0)
    twice = nn.Linear(3, 3)
    return nn.Sequential(nn.Linear(3, 3), Residual(nn.Sequential(nn.Tanh(), twice), twice), nn.Tanh(), twice).double()


def every(model: nn.Module, inputs: Tensor) -> None:
    """Perturb one element of each parameter; compare with the whole model in the same mode."""
    reuse = FeatureReuse(model)
    with torch.no_grad():
        with reuse.keep():
            assert torch.equal(reuse(inputs), model(inputs))
        for name, parameter in model.named_parameters():
            flat = parameter.view(-1)
            before = flat[-1].item()
            flat[-1] += 0.1
            with reuse.perturbed(parameter):
                assert torch.equal(reuse(inputs), model(inputs)), name
            flat[-1] = before


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [residual, shared])
def test_every_parameter_restarts_to_the_whole_models_bits(make: Callable[[], nn.Module], training: bool) -> None:
    every(make().train(training), batch()[0])


def test_every_parameter_of_resnet_20_restarts_to_the_whole_models_bits() -> None:
    every(small_resnet20(), batch(3 * 64, rows=3, dtype=torch.float32)[0])


def test_only_what_follows_is_run() -> None:
    model = residual()
    ran: list[str] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    reuse, (inputs, _) = FeatureReuse(model), batch()
    with reuse.keep():
        reuse(inputs)
    ran.clear()
    for perturbed, expected in {
        "5.bias": ["5"],
        "4.skip.weight": ["4.skip", "5"],
        "4.body.1.weight": ["4.body.1", "4.body.2", "4.body.3", "5"],
        "2.body.2.weight": ["2.body.2", "3", "4.skip", "4.body.0", "4.body.1", "4.body.2", "4.body.3", "5"],
    }.items():
        with reuse.perturbed(model.get_parameter(perturbed)):
            reuse(inputs)
        assert ran == expected
        ran.clear()


def test_a_model_with_a_forward_of_its_own_is_one_piece() -> None:
    class Doubled(nn.Sequential):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    every(nn.Sequential(nn.Linear(3, 3), Doubled(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))).double(), batch()[0])


def test_a_parameter_of_nowhere_restarts_at_the_inputs() -> None:
    model, (inputs, _) = residual(), batch()
    reuse = FeatureReuse(model)
    with reuse.keep():
        whole = reuse(inputs)
    with reuse.perturbed(nn.Parameter(torch.zeros(1))):
        assert torch.equal(reuse(inputs), whole)


def test_other_inputs_than_were_kept_are_refused() -> None:
    model, (inputs, _) = residual(), batch()
    reuse = FeatureReuse(model)
    with pytest.raises(BadInput, match="no features are kept"), reuse.perturbed(model[5].bias):
        pass
    with pytest.raises(BadInput, match="ran the model on a second one"), reuse.keep():
        reuse(inputs)
        reuse(inputs)
    with reuse.perturbed(model[5].bias), pytest.raises(BadInput, match="other inputs than the closure gives now"):
        reuse(inputs.clone())
    inputs += 1
    with reuse.perturbed(model[5].bias), pytest.raises(BadInput, match="at the input was changed in place"):
        reuse(inputs)


def test_a_block_that_changes_its_input_in_place_is_found() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3).double()

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = self.inner(inputs.relu_())
            return found

    block = Block()
    reuse, (inputs, _) = FeatureReuse(nn.Sequential(nn.Linear(3, 3).double(), block)), batch()
    with torch.no_grad(), reuse.keep():
        reuse(inputs)
    with reuse.perturbed(block.inner.bias), pytest.raises(BadInput, match="kept at 1 was changed in place"):
        reuse(inputs)

"""Leaf rules: from a stage's inputs and the target at its output to the gradient of its parameters.

One file per rule. A rule sees one core at a time: for a tiled stage it is called once per block, because block outputs
add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

from hzo_hil.devices.api import ParameterSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Stage

Array = NDArray[Any]


@dataclass(frozen=True)
class Leaf:
    """What a rule is given. Tensors are on the host device of the masters, detached.

    `inputs` [samples, in] and `outputs` [samples, out] in activations; `target` [samples, out] is dLoss/doutputs;
    `parameters` hold the values as written. `query(values, purpose="leaf")` writes changed parameters (host units, by
    name), runs the inputs through this stage alone and returns [samples, out]; only rules with `queries` may call it.
    `key` names the stream for random choices; `count(event)` enters an event of this stage in the ledger.
    """

    stage: Stage
    specs: Mapping[str, ParameterSpec]
    parameters: Mapping[str, Tensor]
    inputs: Tensor
    outputs: Tensor
    target: Tensor
    query: Callable[..., Array]
    key: int
    count: Callable[[str], None] = lambda _: None


class LeafRule(Protocol):
    """`gradients` returns dLoss/dparameter by name, in each parameter's shape, summed over samples.

    `check` is called once, before any device time: it raises `BadInput` where the stage is not one for this rule.
    `cost(specs)` is (writes, queries per sample) of one call, known beforehand.
    """

    queries: bool

    def check(self, stage: Stage) -> None: ...
    def gradients(self, leaf: Leaf) -> dict[str, Tensor]: ...
    def cost(self, specs: Mapping[str, ParameterSpec]) -> tuple[int, int]: ...


def automatic(stage: Stage, probes: str = "coordinate", eps: float | None = None) -> LeafRule:
    """The cheapest rule that applies: a twin, the delta rule, shifts of what is declared sinusoidal, small differences.

    `probes` and `eps` are those of the differences.
    """
    from hzo_hil.updates.autograd import LocalAutograd
    from hzo_hil.updates.delta import DeltaRule
    from hzo_hil.updates.probing import ParameterProbing
    from hzo_hil.updates.shift import ParameterShift

    if stage.twin is not None:
        return LocalAutograd()
    if DeltaRule.fits(stage):
        return DeltaRule()
    return ParameterShift(probes, eps) if ParameterShift.fits(stage) else ParameterProbing(probes, eps)


def rules_for(stages: Sequence[Stage], credit: str) -> list[LeafRule | None]:
    """The rule of each stage. Credit `loss` moves parameters by losses alone and has none."""
    return [None if credit == "loss" else rule_for(s) for s in stages]


def rule_for(stage: Stage) -> LeafRule | None:
    """A stage's rule: what it names, or for `auto` the one that fits; None for a stage without parameters."""
    from hzo_hil.updates.autograd import LocalAutograd
    from hzo_hil.updates.delta import DeltaRule
    from hzo_hil.updates.learned import LearnedTwin
    from hzo_hil.updates.probing import ParameterProbing
    from hzo_hil.updates.shift import ParameterShift

    if not stage.parameters:
        return None
    rule: Any = stage.leaf
    if rule == "auto":
        rule = automatic(stage)
    elif isinstance(rule, str):
        named = {
            "delta": DeltaRule, "autograd": LocalAutograd, "shift": ParameterShift, "probing": ParameterProbing,
            "learned_twin": LearnedTwin,
        }  # fmt: skip
        if rule not in named:
            raise BadInput(f"unknown leaf rule {rule!r} for stage {stage.label}: choose auto, {', '.join(named)}")
        rule = named[rule]()
    rule.check(stage)
    return rule

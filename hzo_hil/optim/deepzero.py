"""DeepZero: coordinate-wise gradients of a sparse, changing set of coordinates (Chen et al., ICLR 2024).

    g_i = (l(w + eps e_i) - l(w)) / eps for i in the mask, 0 elsewhere; then SGD with momentum and weight decay
    queries: 1 + coordinates in the mask, and 1 for each replica

A mask holds the layer-wise fractions that `layer_fractions` found by ZO-GraSP and is drawn anew every `mask_steps`.
With a model wrapped in `FeatureReuse` each probe restarts from the perturbed layer; with replicas of the model,
coordinates are shared out. Neither changes a bit of the result. It knows nothing of devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.cge import coordinate_gradient
from hzo_hil.optim.descent import Descent
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.grasp import RANKINGS, SPARSITY, layer_fractions, prunable
from hzo_hil.optim.oracle import Closure, Oracle
from hzo_hil.optim.replicas import Probes, Replicas
from hzo_hil.optim.settings import COUNT, Bound, choose
from hzo_hil.optim.walk import Walk, statistics_kept
from hzo_hil.streams import torch_generator

PART = Bound(high=1.0)


class DeepZero(Descent):
    """`fractions`: of each trained parameter, in order, the part that a mask leaves out; one number: the same of each
    weight, or of all where none has two axes; None: nothing, which is CGE. Or `sparsity`, with `pruning_queries` and
    `ranking` as for `layer_fractions`: then `prepare` finds them before the first step, with this `eps`.

    `mask_steps`: steps to a fresh mask: those of one epoch in the poster, of five in the authors' code. `model`: whose
    running statistics advance once a step; a `FeatureReuse` restarts as well. `replicas`: copies of `model`, perhaps on
    devices of their own; `step` then takes a closure for each, after the model's. Other defaults are as published, with
    batches of 256 and an `lr` that rises for 3 epochs and falls to 0 as a cosine at the 50th.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        fractions: Sequence[float] | float | None = None,
        mask_steps: int = 1,
        eps: float = 5e-3,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        seed: int = 0,
        model: nn.Module | None = None,
        replicas: Sequence[nn.Module] = (),
        sparsity: float = 0.0,
        pruning_queries: int = 192,
        ranking: str = "abs",
    ) -> None:
        COUNT.check("DeepZero", "mask_steps", mask_steps)
        SPARSITY.check("DeepZero", "sparsity", sparsity)
        COUNT.check("DeepZero", "pruning_queries", pruning_queries)
        if sparsity and fractions is not None:
            raise BadInput("DeepZero: fractions say what sparsity has ZO-GraSP find: give the one or the other")
        super().__init__(params, lr, eps, momentum, weight_decay, seed)
        self.mask_steps = mask_steps
        self.model = model
        self.replicas = Replicas(self.param_groups, model, replicas)
        if sparsity and not any(prunable(t) for t in Flat(self.param_groups).tensors):
            raise BadInput(
                "DeepZero: sparsity prunes parameters with two axes or more, and none is trained: give fractions,"
                " one number for the same of each"
            )
        self.sparsity = sparsity
        self.pruning_queries = pruning_queries
        self.ranking = choose("DeepZero", "ranking", ranking, RANKINGS)
        self.state["fractions"] = None if sparsity else self._given(0.0 if fractions is None else fractions)
        self._mask: tuple[int, Probes] | None = None  # of which period

    @property
    def coordinates(self) -> int:
        """How many coordinates a step perturbs; known before ZO-GraSP has found out where they lie."""
        at = Flat(self.param_groups)
        sizes = at.sizes
        if self.state["fractions"] is None:
            return at.size - round(self.sparsity * sum(t.numel() for t in at.tensors if prunable(t)))
        return sum(kept(n, fraction) for n, fraction in zip(sizes, self.state["fractions"], strict=True))

    @property
    def queries_per_step(self) -> int:
        return 1 + len(self.replicas) + self.coordinates

    @property
    def queries_before(self) -> int:
        return 2 * (self.pruning_queries + 1) if self.state["fractions"] is None else 0

    @torch.no_grad()
    def prepare(self, closure: Closure) -> None:
        """ZO-GraSP on the closure's minibatch, where `sparsity` asks for it and no state that was loaded has it."""
        if not (asked := self.queries_before):
            return
        tensors, eps = Flat(self.param_groups).tensors, float(self.defaults["eps"])
        with statistics_kept(self.model):
            self.state["fractions"] = layer_fractions(
                tensors, closure, self.sparsity, self.ranking, self.pruning_queries, eps, self.state["seed"]
            )
        self.state["queries"] += asked

    def step(self, closure: Closure | None = None, *others: Closure) -> float:  # type: ignore[override]
        """One step; `others` are the replicas' closures, on the same batch. Raises as every `LossOnly`."""
        with self.replicas.asked_by(others):
            return super().step(closure)

    def estimate(self, closure: Closure, *others: Closure) -> list[Tensor]:
        """As in `Descent`; `others` are the replicas' closures."""
        with self.replicas.asked_by(others):
            return super().estimate(closure)

    def _asking(self, at: Flat, closure: Closure | None, use: Any) -> Any:
        if closure is None:
            return super()._asking(at, closure, use)
        share = self.replicas.shares(self._probes(at))[0]
        walk = Walk(self.model, closure, [at.tensors[number] for _, number in share])
        with walk.under_way():
            return super()._asking(at, walk, use)

    def _gradient(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        shares = self.replicas.shares(self._probes(at))
        return self.replicas.gradient(
            lambda share: coordinate_gradient(at, w, oracle, share), w, shares, oracle, self.state["step"]
        )

    def _probes(self, at: Flat) -> Probes:
        """The coordinates of this step's mask, and the number of the parameter of each: a function of seed and step."""
        if self.state["fractions"] is None:
            raise BadInput("DeepZero with sparsity: call prepare(closure) before the first step, which finds fractions")
        period = self.state["step"] // self.mask_steps
        if self._mask is None or self._mask[0] != period:
            self._mask = (period, self._drawn(at, period))
        return self._mask[1]

    def _given(self, fractions: Sequence[float] | float) -> list[float]:
        tensors = Flat(self.param_groups).tensors
        if isinstance(fractions, (int, float)):
            weights = [prunable(t) for t in tensors]
            fractions = [fractions if weight or not any(weights) else 0.0 for weight in weights]
        return _checked(fractions, len(tensors))

    def _drawn(self, at: Flat, period: int) -> Probes:
        found: Probes = []
        start = 0
        for number, (size, fraction) in enumerate(zip(at.sizes, self.state["fractions"], strict=True)):
            generator = torch_generator(self.state["seed"], "deepzero mask", period, number)
            chosen = torch.randperm(size, generator=generator)[: kept(size, fraction)].sort().values + start
            found += [(coordinate, number) for coordinate in chosen.tolist()]
            start += size
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._mask = None


def kept(size: int, fraction: float) -> int:
    """Coordinates of a parameter in a mask that leaves out `fraction` of them."""
    return size - round(fraction * size)


def _checked(fractions: Sequence[float], count: int) -> list[float]:
    if len(fractions) != count:
        raise BadInput(f"DeepZero trains {count} parameters and got {len(fractions)} fractions: one for each, in order")
    for number, fraction in enumerate(fractions):
        PART.check("DeepZero", f"the fraction of parameter {number}", fraction)
    return [float(f) for f in fractions]

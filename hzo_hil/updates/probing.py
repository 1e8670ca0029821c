"""Parameter probing: nothing is known of the stage but that it answers. Its parameters are perturbed and the answers
read.

g . u = sum_b <T_b, f(a_b; w + eps u) - f(a_b; w - eps u)> / (2 eps), one stage deep, 2 writes and 2 queries a sample
per probe. Bias O(eps^2). Directions are those of a probe set over all parameters of the stage, taken as one vector;
what counts is the change as written, after range and converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hzo_hil.devices.api import ParameterSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Stage
from hzo_hil.parameters import difference, settled, widest_gap
from hzo_hil.probes import probe_set
from hzo_hil.updates import Leaf

Array = NDArray[Any]


class ParameterProbing:
    """`eps`: change per parameter in its own unit (phases: rad); None: two converter steps, else 0.01 (phases 0.1)."""

    queries = True

    def __init__(self, probes: str = "coordinate", eps: float | None = None) -> None:
        self.set = probe_set(probes)
        if eps is not None and not (np.isfinite(eps) and eps > 0):
            raise BadInput(f"eps of parameter probing is {eps}: it must be positive and finite")
        self.eps = eps

    def check(self, stage: Stage) -> None:
        for name, (_, spec) in stage.parameters.items():
            gap = widest_gap(spec)
            if self.eps is not None and 2 * self.eps < gap:
                raise BadInput(
                    f"a probe of {self.eps:g} on parameter {name!r} of stage {stage.label} is smaller than its"
                    " converter's"
                    f" steps (up to {gap:g}): the device would not move. Use eps of at least {gap / 2:g}"
                )
            low, high = self._room(spec, sum(s.size for _, s in stage.parameters.values()))
            if low > high:
                raise BadInput(
                    f"{self.set.name} probes do not fit into the range {spec.low:g}..{spec.high:g} of parameter"
                    f" {name!r}"
                    f" of stage {stage.label}. Use a smaller eps, or coordinate or hadamard probes"
                )

    def cost(self, specs: Mapping[str, ParameterSpec]) -> tuple[int, int]:
        rows = 2 * self.set.count(sum(s.size for s in specs.values()))
        return rows, rows

    def gradients(self, leaf: Leaf) -> dict[str, Tensor]:
        names = list(leaf.parameters)
        total = sum(leaf.specs[n].size for n in names)
        held = {n: leaf.parameters[n].detach().cpu().double().numpy().ravel() for n in names}
        base = np.concatenate([v.clip(*self._room(leaf.specs[n], total)) for n, v in held.items()])
        steps = np.concatenate([np.full(leaf.specs[n].size, self._step(leaf.specs[n])) for n in names])
        directions = self.set.directions(len(base), leaf.key, 0, 1)[0]
        target = leaf.target.detach().cpu().double().numpy()
        moved = np.empty_like(directions)
        change = np.empty(len(directions))
        for p, direction in enumerate(directions):
            signs = (1, -1) if p % 2 == 0 else (-1, 1)
            written = {s: self._write(leaf, names, base + s * steps * direction) for s in signs}
            answers = {s: leaf.query(values) for s, values in written.items()}
            moved[p] = _moved(leaf.specs, names, written[1], written[-1])
            change[p] = np.vdot(target, answers[1].astype(np.float64) - answers[-1])
        gradient = self._decode(moved, change, steps, leaf.key)
        found: dict[str, Tensor] = {}
        for name in names:
            like = leaf.parameters[name]
            part, gradient = gradient[: like.numel()], gradient[like.numel() :]
            found[name] = torch.as_tensor(part.reshape(like.shape)).to(like)
        return found

    def _decode(self, moved: Array, change: Array, steps: Array, key: int) -> Array:
        if self.set.per_sample:
            return self.set.decode((change / 2)[None], len(steps), key, 0)[0].astype(np.float64) / steps
        if not self.set.spread:
            step = np.diagonal(moved)
            return np.divide(change, step, out=np.zeros_like(change), where=step != 0)
        return np.linalg.lstsq(moved, change, rcond=None)[0]

    def _step(self, spec: ParameterSpec) -> float:
        if self.eps is not None:
            return self.eps
        return max(2 * widest_gap(spec), 0.1 if spec.period else 0.01)

    def _write(self, leaf: Leaf, names: list[str], vector: Array) -> dict[str, Array]:
        """Values by name as they will be written."""
        values: dict[str, Array] = {}
        at = 0
        for name in names:
            spec = leaf.specs[name]
            wanted = vector[at : at + spec.size].reshape(spec.shape)
            values[name] = settled(spec, wanted, leaf.stage.device.capabilities.dtype, f"stage {leaf.stage.label}")
            at += spec.size
        return values

    def _room(self, spec: ParameterSpec, total: int) -> tuple[float, float]:
        """Where a base must lie: a random set's decoder knows the planned steps only, none may be cut short."""
        if not self.set.per_sample or spec.edge == "wrap":
            return -np.inf, np.inf
        reach = self._step(spec) * self.set.reach(total)
        return spec.low + reach, spec.high - reach


def _moved(
    specs: Mapping[str, ParameterSpec], names: list[str], plus: Mapping[str, Array], minus: Mapping[str, Array]
) -> Array:
    return np.concatenate([difference(specs[n], plus[n], minus[n]).ravel() for n in names])

"""What a module has learned of its targets: the probes of its next pass, and what that pass adds.

One memory per boundary with a learned subspace. Knows networks and resolved plans, sends nothing, and is told of a
pass once all of it is there, so that a lost one leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.network import Network
from hzo_hil.plan import Cut
from hzo_hil.probes.memory import Memory
from hzo_hil.probes.subspace import Subspace
from hzo_hil.resolve import CutPlan, Resolved

Array = NDArray[Any]


class Subspaces:
    """Memories by boundary. Part of the module's state: a copy has its own."""

    def __init__(self, memories: Mapping[int, Memory] | None = None) -> None:
        self.memories: dict[int, Memory] = dict(memories or {})

    def planned(self, resolved: Resolved) -> Resolved:
        """The plan with the probe sets of the next pass: what it will cost, and what is asked."""
        if not any(isinstance(p.set, Subspace) for p in resolved.at):
            return resolved
        return replace(resolved, at=tuple(self._of(p) for p in resolved.at))

    def _of(self, planned: CutPlan) -> CutPlan:
        if not isinstance(planned.set, Subspace):
            return planned
        return replace(planned, set=planned.set.for_step(self.memories.get(planned.cut.at)))

    def observe(
        self,
        network: Network,
        resolved: Resolved,
        asked: Resolved,
        cuts: Iterable[Cut],
        targets: Mapping[int, Array],
        keys: Mapping[int, int],
    ) -> None:
        """Learn from the targets of a pass. `asked`: its plan; `keys`: of its probes, by boundary."""
        for cut in cuts:
            learner = resolved.at[cut.at].set
            if not isinstance(learner, Subspace) or network.structure(cut.at, cut.source) != "dense":
                continue
            memory = self.memories.setdefault(cut.at, Memory())
            noise = derivative_noise(network, resolved.at[cut.at], targets[cut.source])
            learner.observe(memory, asked.at[cut.at].set, targets[cut.at], keys[cut.at], noise)

    def state(self) -> dict[int, dict[str, Any]]:
        return {at: memory.state() for at, memory in sorted(self.memories.items())}

    @classmethod
    def restored(cls, state: Mapping[int, Mapping[str, Any]]) -> Subspaces:
        return cls({int(at): Memory.restored(m) for at, m in state.items()})


def derivative_noise(network: Network, planned: CutPlan, source: Array) -> float | None:
    """Variance that read noise gives one directional derivative of a cut, on average over samples; None: not declared.

    s^2 ||T_j||^2 / (2 eps^2) for central differences: two answers, each read with noise s and weighed by the target.
    """
    noise = network.read_noise(planned.cut.source)
    if noise is None or not len(source):
        return None
    energy = float(np.mean(np.sum(source.astype(np.float64) ** 2, axis=1)))
    return planned.scheme.noise * (noise / planned.eps) ** 2 * energy / planned.repeats

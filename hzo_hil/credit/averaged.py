"""A shared Jacobian carried from step to step: a part of it is measured, the rest follows from what was written.

Where the parameter of a stage is its matrix, a write changes the Jacobian by what was commanded. So what earlier steps
measured stays of use: every pass asks a few of the probes, in turn, and averages their answers with what was predicted.
The same answers are the canary: together they may differ from the prediction by no more than their noise and rounding
allow, else the caller measures the whole anew. Sends nothing; what a stage holds it is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from hzo_hil.credit.shared import Carried, Jacobian, Shared
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Network, Part
from hzo_hil.plan import Plan, portion
from hzo_hil.resolve import CutPlan, Resolved
from hzo_hil.updates import LeafRule
from hzo_hil.updates.delta import DeltaRule

Array = NDArray[Any]

FALSE_ALARMS = 1e-4
"""A sound prediction fails with this probability a pass and cut, at most: normal noise of the declared size."""


@dataclass
class Averaged(Shared):
    """As `Shared`, of one stage whose Jacobian is the `weight` it holds.

    `before`: of an earlier step; None: every probe is asked. `average`: the part of the probes asked else,
    and the least weight of a new answer against the prediction. `noise`: standard deviation of one answer; `grain`:
    step of the read-out's converter. All in activation units. After `measured`, `known` is set, or left out where the
    answers contradict the prediction: then `renew` and ask again.
    """

    weight: Array = field(kw_only=True)
    before: Carried | None = field(default=None, kw_only=True)
    average: float = field(default=1.0, kw_only=True)
    noise: float = field(default=0.0, kw_only=True)
    grain: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._largest = 0.0

    def renew(self, key: int) -> None:
        """Ask every probe next, with shots of their own."""
        self.before, self.key, self._largest = None, key, 0.0
        for name in ("_chosen", "_common"):
            self.__dict__.pop(name, None)

    @property
    def probes(self) -> int:
        return len(self._chosen)

    @cached_property
    def _chosen(self) -> Array:
        count = self.set.count(self.width)
        if self.before is None:
            return np.arange(count)
        return (self.before.turn + np.arange(portion(self.average, count))) % count

    @cached_property
    def _directions(self) -> Array:
        return self.set.directions(self.width, self.key, 0, 1)[0]

    @cached_property
    def _common(self) -> Array | None:
        return self._lay_out(self._directions[None, self._chosen])

    def collect(self, outputs: Array, first: int, part: Part, into: Array) -> None:
        super().collect(outputs, first, part, into)
        self._largest = max(self._largest, float(np.abs(outputs).max(initial=0.0)))

    def measured(self, parts: Sequence[Part], collected: Sequence[Array]) -> None:
        if self.known is not None:
            return
        found = self._slopes(collected[0]).astype(np.float64)
        if self.before is None:
            self._take(found, np.ones(len(found)), 0)
            return
        # In float64: what rounding adds at every step stays small.
        change = self.weight.astype(np.float64) - self.before.weight
        along, spread = self.before.along + self._directions @ change.T, self.before.spread.copy()
        chosen = self._chosen
        surprise, own = found - along[chosen], spread[chosen]
        if self._contradicted(surprise, own, along):
            return
        # The mean of all answers so far, until a new one would count for less than `average`.
        gain = np.maximum(self.average, own / (1 + own))
        along[chosen] += gain[:, None] * surprise
        spread[chosen] = (1 - gain) ** 2 * own + gain**2
        self._take(along, spread, int(chosen[-1] + 1) % len(along))

    def _take(self, along: Array, spread: Array, turn: int) -> None:
        slopes = self._decoded(along).astype(np.result_type(self.base.dtype, np.float32), copy=False)
        self.known = Jacobian(self.colouring, slopes, Carried(along, spread, self.weight.copy(), turn))

    def _decoded(self, along: Array) -> Array:
        """[probes, outputs] to [width, outputs]."""
        return self.set.decode(along.T, self.width, self.key, 0).T

    def _contradicted(self, surprise: Array, spread: Array, along: Array) -> bool:
        """Whether answers lie further from their prediction than noise takes them: chi squared over all of them, after
        taking off what rounding may do.
        """
        beyond = np.maximum(np.abs(surprise) - self._rounding(along), 0)
        deviation = self.noise * np.sqrt(self.scheme.noise / self.repeats) / self.eps * np.sqrt(1 + spread)
        if not self.noise:
            return bool(beyond.any())
        statistic = float(((beyond / deviation[:, None]) ** 2).sum())
        return statistic > float(chi2.isf(FALSE_ALARMS, beyond.size))

    def _rounding(self, along: Array) -> Array:
        """[outputs] what rounding may add to the difference between a derivative and its prediction, at most.

        An answer is off by half a converter step and by the dtype's rounding, once for each term of its sum. The
        prediction is a mean of such derivatives.
        """
        driven = np.abs(self.base[0].astype(np.float64)) + self.eps
        terms = (self.width + 2) * (driven @ np.abs(self._decoded(along))) + 2 * self._largest
        answer = self.grain / 2 + float(np.finfo(self.base.dtype).eps) * terms
        derivative: Array = sum(abs(w) / m for m, w in self.scheme.levels) / self.eps * answer
        return 2 * derivative


def check(network: Network, plan: Plan, resolved: Resolved, rules: Sequence[LeafRule | None]) -> None:
    """BadInput where averaging is asked of a cut that it does not hold for. Sends nothing."""
    given = plan.average
    named = {k for k, a in given.items() if a < 1} if isinstance(given, Mapping) else set()
    if not named and (isinstance(given, Mapping) or given == 1):
        return
    averaged = [p for p in resolved.at if p.average < 1]
    apart = named - {p.cut.at for p in averaged}
    if apart or not averaged:
        where = f"boundaries {sorted(apart)}" if apart else "any boundary"
        raise BadInput(
            f"average asks to average Jacobians over steps, but none is measured once for the batch at {where}: that"
            " needs linear stages, probes='coordinate' or 'hadamard' and shared=True. Leave average out"
        )
    for planned in averaged:
        if (why := _obstacle(network, planned, rules)) is not None:
            cut = planned.cut
            raise BadInput(
                f"average asks to carry the Jacobian of stages {cut.at + 1}..{cut.source}"
                f" ({', '.join(s.label for s in network.stages[cut.at : cut.source])}) from step to step by the change"
                f" that was commanded, but {why}. Leave average out, or give it for other boundaries only:"
                " average={boundary: fraction}"
            )


def _obstacle(network: Network, planned: CutPlan, rules: Sequence[LeafRule | None]) -> str | None:
    cut, stage = planned.cut, network.stages[planned.cut.at]
    if len(cut) > 1:
        return "several stages in one go have no matrix of their own: cut one at a time (tree='chain')"
    rule = rules[cut.at]
    if not (isinstance(rule, DeltaRule) and rule.derivative == "identity"):
        return "only the delta rule says that the stage's parameter is its matrix (leaf='delta')"
    if (
        stage.tiles
        or not DeltaRule.fits(stage)
        or not stage.codec_out.identity
        or stage.parameters["weight"][1].edge == "wrap"
    ):
        return (
            "that holds only where a parameter 'weight' [out, in], which does not wrap, is the matrix itself: a linear"
            " stage of one core, without tiles or codecs, with at most a 'bias' besides"
        )
    if stage.structure != "dense":
        return "a diagonal or local stage is measured by few probes in any case"
    if not planned.scheme.paired:
        return "forward differences share one reference, whose error is common to all probes: use differences='central'"
    if network.read_noise(cut.source) is None:
        return "the device does not declare its read_noise, so that drift cannot be told from noise: declare it"
    return None

"""The learned twin: autograd on a twin whose imperfections are fitted to what the stage answers, while it is good.

Every query of one stage is a measurement of it, whatever it was asked for: the forward pass, probes, leaf queries. They
are kept (`replay`) and the twin follows them (`fitting`) at no query of its own. Output error says little about
gradients, so the twin is judged by those: every `check_every` steps the derivatives by `check_phases` of its values are
measured by parameter shift (purpose `calibration`) and must point as the twin's do, with a cosine of `trust` or more.
While they do not, the stage's gradient is measured whole by parameter shift, which tells at every step, free, how good
the twin has become.

Where biases are large no twin gets there from answers alone: `nodewise` first measures the stage node by node (see
`hzo_hil.learning`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hzo_hil.devices.api import ParameterSpec
from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Stage
from hzo_hil.updates import Leaf
from hzo_hil.updates.autograd import LocalAutograd
from hzo_hil.updates.fitting import Follow
from hzo_hil.updates.replay import Order, Replay, vector
from hzo_hil.updates.shift import ParameterShift

Array = NDArray[Any]


class LearnedTwin:
    """One stage's rule; it has a state, so give every stage its own.

    `nodewise`: measure the stage node by node before training, with `settings` random settings more to fit to.
    `check_every` steps, `check_phases` values and `trust`: see the module. `memory` settings are kept, and `fit_steps`
    of Adam taken a step, at a `rate` in units of what an error is expected to be.
    """

    queries = True

    def __init__(
        self,
        *,
        nodewise: bool = True,
        settings: int = 24,
        check_every: int = 50,
        check_phases: int = 16,
        trust: float = 0.9,
        memory: int = 16,
        fit_steps: int = 1,
        rate: float = 0.001,
    ) -> None:
        if min(settings, check_every, memory) < 1 or check_phases < 2 or fit_steps < 0:
            raise BadInput(
                "a learned twin needs settings, check_every and memory of at least 1, check_phases of at least 2 and"
                f" fit_steps of at least 0, not {settings}, {check_every}, {memory}, {check_phases}, {fit_steps}"
            )
        if not 0 < trust < 1 or not rate > 0:
            raise BadInput(f"a learned twin needs a trust between 0 and 1 and a rate above 0, not {trust} and {rate}")
        self.nodewise = nodewise
        self.settings = settings
        self.check_every = check_every
        self.check_phases = check_phases
        self.trust = trust
        self.memory = memory
        self.fit_steps = fit_steps
        self.rate = rate
        self.fallback = ParameterShift()
        self.autograd = LocalAutograd()
        self.twin: Any = None
        self.steps = 0
        self.measured_nodewise = False
        self.trusted: bool | None = None
        """Whether the twin is in use; None: not judged yet."""
        self.cosine: float | None = None
        """How well the twin's gradient pointed as the measured one when last compared."""
        self._said = False

    def check(self, stage: Stage) -> None:
        if not hasattr(stage.twin, "expected"):
            raise BadInput(
                f"stage {stage.label} asks for a learned twin, but has no twin with unknown errors to learn. Give"
                " Stage(twin=FittedMesh(model)) of a mesh, or use leaf='shift'"
            )
        if stage.tiles or len(stage.specs) > 1 or not (stage.codec_in.identity and stage.codec_out.identity):
            raise BadInput(
                f"stage {stage.label}: a learned twin is for one physical stage as it is, without tiles or codecs. Use"
                " leaf='shift'"
            )
        if self.twin is not None and self.twin is not stage.twin:
            raise BadInput(f"stage {stage.label} shares its learned twin's rule with another: give each its own")
        self.fallback.check(stage)
        if self.twin is None:
            self.twin = stage.twin
            self.replay = Replay(self.memory, stage.in_width)
            self.following = Follow(self.twin, self.rate)

    def cost(self, specs: Mapping[str, ParameterSpec]) -> tuple[int, int]:
        """Nothing while the twin is in use; checks are `calibration`."""
        return self.fallback.cost(specs) if self.trusted is False else (0, 0)

    def check_cost(self, specs: Mapping[str, ParameterSpec]) -> tuple[int, int]:
        """(writes, queries per sample) of one check, at most."""
        rows = (
            min(self.check_phases, sum(s.size for s in specs.values())) * 2 * max(s.harmonics for s in specs.values())
        )
        return rows, rows

    # --- what is heard -----------------------------------------------------------------------------------------

    def observe(self, order: Order, values: Mapping[str, Array], inputs: Array, outputs: Array) -> None:
        self.replay.hear(order, vector(self.twin, values), inputs, outputs)

    def forget(self) -> None:
        """A new pass begins: what a lost one left is not of it."""
        self.replay.forget()

    # --- the rule ----------------------------------------------------------------------------------------------

    def gradients(self, leaf: Leaf) -> dict[str, Tensor]:
        held = {n: v.detach().cpu().double().numpy() for n, v in leaf.parameters.items()}
        rng = np.random.Generator(np.random.Philox(key=[leaf.key, 0]))
        self.observe(("forward", 0, 0), held, leaf.inputs.cpu().numpy(), leaf.outputs.cpu().numpy())
        self.replay.keep(self.memory, rng)
        noise = leaf.stage.device.capabilities.read_noise or 0.0
        for _ in range(self.fit_steps):
            self.following.step(*self.replay.tensors(), noise)
        own = self.autograd.gradients(leaf)
        due = self.steps % self.check_every == 0
        self.steps += 1
        if self.trusted is None or (self.trusted and due):
            self._judge(leaf, _cosine(*self._compared(leaf, held, own, rng)))
            self.replay.keep(self.memory // 4, rng)
        if self.trusted:
            return own
        measured = self.fallback.gradients(leaf)
        self.replay.keep(max(1, self.memory // 2), rng)
        self._judge(leaf, _cosine(_flat(own), _flat(measured)))
        return measured

    def _compared(
        self, leaf: Leaf, held: Mapping[str, Array], own: Mapping[str, Tensor], rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """The twin's and the measured derivatives by a few values."""
        places = [(n, i) for n, s in leaf.specs.items() if s.harmonics for i in range(s.size)]
        chosen = [places[i] for i in rng.permutation(len(places))[: self.check_phases]]
        measured = [self.fallback.slope(leaf, held, n, i, purpose="calibration") for n, i in chosen]
        return np.array([float(own[n].flatten()[i]) for n, i in chosen]), np.array(measured)

    def _judge(self, leaf: Leaf, cosine: float) -> None:
        before, self.trusted, self.cosine = self.trusted, cosine >= self.trust, cosine
        if self.trusted == before:
            return
        leaf.count("twin_trusted" if self.trusted else "twin_refused")
        if not self.trusted and not self._said:
            self._said = True
            warnings.warn(
                f"the learned twin of stage {leaf.stage.label} is not good enough: its gradient has a cosine of"
                f" {cosine:.2f} with the measured one, below {self.trust:g}. Until it is, the stage's gradient is"
                " measured by parameter shift, two writes a phase and step",
                stacklevel=2,
            )

    # --- resuming ----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "unknowns": {n: getattr(self.twin, n).clone() for n in self.twin.expected},
            "following": self.following.state(),
            "replay": self.replay.state(),
            "steps": self.steps,
            "measured_nodewise": self.measured_nodewise,
            "trusted": self.trusted,
            "cosine": self.cosine,
            "said": self._said,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        for name, value in state["unknowns"].items():
            getattr(self.twin, name).copy_(value)
        self.following.load(state["following"])
        self.replay.load(state["replay"])
        self.steps, self.measured_nodewise = state["steps"], state["measured_nodewise"]
        self.trusted, self.cosine, self._said = state["trusted"], state["cosine"], state["said"]


def _flat(gradients: Mapping[str, Tensor]) -> Array:
    return np.concatenate([gradients[n].detach().cpu().double().numpy().ravel() for n in sorted(gradients)])


def _cosine(a: Array, b: Array) -> float:
    """0 where one of them is 0: nothing can be said of it."""
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / size if size > 0 else 0.0

"""`Opaque`: a torch module whose forward asks a device and whose backward plans, probes and returns gradients.

Nothing differentiates through a device. Trainable parameters are arguments of the autograd function, so hooks,
accumulation, `autograd.grad` and data-parallel wrappers see what they see of any module. What it may be made and called
with, how a step is guarded and how it is saved are in `options`, `entrance`, `steps` and `saving`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hzo_hil import calibrating, entrance, lossonly, options, resident, saving, steps
from hzo_hil.autoplan import Auto, Outcome
from hzo_hil.backward import Backward
from hzo_hil.balance import Gain, draw_orthogonal, scaled
from hzo_hil.calibrate import fingerprint
from hzo_hil.calibration import Calibration
from hzo_hil.credit import averaged
from hzo_hil.credit.choose import target_rule
from hzo_hil.credit.hzo import decoded
from hzo_hil.credit.rule import Question, TargetRule
from hzo_hil.credit.shared import Jacobians
from hzo_hil.devices.api import Device
from hzo_hil.devices.errors import BadInput
from hzo_hil.dispatch import Answer, Dispatch
from hzo_hil.gains import Gains
from hzo_hil.health import watch_of
from hzo_hil.ledger import Ledger
from hzo_hil.masters import StageMasters, Written
from hzo_hil.network import Hop, Network, Part, Stage, stages_of
from hzo_hil.plan import Cut, Plan, Tree
from hzo_hil.programming import Image, Policy
from hzo_hil.reference import forward_pass
from hzo_hil.resolve import Resolved, resolve
from hzo_hil.streams import stream_key
from hzo_hil.subspaces import Subspaces
from hzo_hil.updates import rules_for
from hzo_hil.updates.learned import LearnedTwin

Array = NDArray[Any]


class Opaque(nn.Module):
    """A run of stages on one or several devices, trained by queries.

    `stages`: a device (all its stages, in order), or a list of `Stage`s. `tree`: `bisect`, `chain`, `direct`, a list of
    inner boundaries in the order they are cut, or None for `bisect` where the devices allow it and `chain` where not.
    `probes`, `eps`, `differences`, `repeats`: see `Plan`; or give a whole `plan=Plan(...)` instead. `plan="auto"` with
    one of `tolerance` (root mean square of the relative error of a minibatch's gradient), `queries_per_step` and
    `seconds_per_step` (of all that a training step asks) leaves all of them to the planner: call `calibrate` before
    training; `shared=False` (see `Plan`) is heeded by it. `credit`: where targets come from, `hzo` by the
    plan's probes, another of `credit.needs.CREDITS`, a target rule of your own, or `loss` for none: then in
    training mode it answers under `torch.no_grad()` only, paid for as probes. `name` and `seed` key every draw; give
    modules of one model different names. `max_bad_steps` in a row, or more than the fraction `max_saturated` of a
    boundary's answers at the end of the read-out's range in one pass, stop the run. Raw answers that overtake their
    parent wait in at most `buffer_bytes`. `memory`: `store` the activations of a forward, or `recompute` them in its
    backward by further queries, keeping O(log L) boundaries with the bisecting tree. `gain`: bring gains near 1
    before training (see `Gain`), by a call of `hzo_hil.balance_model`.

    Input `[..., width(0)]`, output `[..., width(depth)]`, float32 or float64.
    """

    def __init__(
        self,
        stages: Device | Sequence[Stage],
        tree: Tree | str | Sequence[int] | None = None,
        probes: str | None = None,
        eps: float | dict[int, float] | None = None,
        differences: str | None = None,
        *,
        repeats: int | None = None,
        plan: Plan | str | None = None,
        tolerance: float | None = None,
        queries_per_step: float | None = None,
        seconds_per_step: float | None = None,
        shared: bool | None = None,
        credit: str | TargetRule = "hzo",
        memory: str = "store",
        seed: int = 0,
        name: str = "opaque",
        max_bad_steps: int = 10,
        max_saturated: float = 0.5,
        buffer_bytes: int = 256 * 2**20,
        policy: Policy | None = None,
        gain: Gain | None = None,
    ) -> None:
        super().__init__()
        order = tree if isinstance(tree, (Tree, str, type(None))) else tuple(tree)
        single = {
            "tree": order, "probes": probes, "eps": eps, "differences": differences, "repeats": repeats,
            "shared": shared,
        }  # fmt: skip
        given: dict[str, Any] = {k: v for k, v in single.items() if v is not None}
        if isinstance(plan, Plan) and given:
            raise BadInput(f"plan= already says {', '.join(given)}: give the one or the others")
        self.auto = Auto.of(plan, given, tolerance, queries_per_step, seconds_per_step)
        listed = list(stages) if isinstance(stages, Sequence) else stages_of(stages)
        self.network = Network(listed)
        self.plan = plan if isinstance(plan, Plan) else Plan(**given)
        self.calibration: Calibration | None = None
        self.outcome: Outcome | None = None
        self.planned_for = (0, False)
        self.upstream = False
        self.calibrated = 0
        self._watched: calibrating.Watched | None = None
        self.resolved = resolve(self.network, self.plan)
        self.credit = credit if isinstance(credit, str) else credit.credit
        self.rules = rules_for(self.network.stages, self.credit)
        averaged.check(self.network, self.plan, self.resolved, self.rules)
        self.target_rule = target_rule(credit, self.resolved, seed, name) if isinstance(credit, str) else credit
        self.memory = memory
        self.seed = seed
        self.name = name
        self.max_bad_steps = max_bad_steps
        self.max_saturated = max_saturated
        self.buffer_bytes = buffer_bytes
        options.check(self)
        self.policy = policy or Policy()
        self.ledger = Ledger()
        self.bad_steps = 0
        self.bad_in_a_row = 0
        self.forwards = 0
        self.evaluated = 0
        self.subspaces = Subspaces()
        self.gains = Gains(self.network.depth)
        self.stages = nn.ModuleList(StageMasters(s, seed, name, k) for k, s in enumerate(self.network.stages))
        self.gain = gain
        self.balanced = False
        self.factors = [1.0] * self.network.depth
        """Of the host, on what it reads from each stage (`rescale`)."""
        if gain is not None and gain.start == "orthogonal":
            draw_orthogonal(self)
        self._connect()
        self.written.update(self.stages, lambda *_: None)
        self.pending: dict[str, list[Any]] | None = None
        """Of a state that is being loaded, what must wait for the masters."""
        self.register_load_state_dict_post_hook(saving.finish)

    def _connect(self) -> None:
        """State that belongs to this object alone: its name as a tenant, what it wrote, its way to the devices."""
        self.owner = object()
        self.written = Written(self.network)
        self.jacobians = Jacobians(self._age)
        self._override: dict[int, Image] | None = None
        self._stay: tuple[Resolved, bool] | None = None
        """A plan and whether its passes can stay where the device computes."""
        self.dispatch = Dispatch(self.network, self._images, self.ledger, self.policy)
        if self.learned:
            self.dispatch.observer = self._observed

    def _age(self, cut: Cut) -> tuple[Any, Any]:
        """What a Jacobian measured through a cut depends on: how the device is aligned, and what its stages hold.

        A write after a reboot comes out as the first did where it is keyed; elsewhere writes scatter.
        """
        moved = self.ledger.events["maintenances"]
        devices = {id(s.device): s.device for s in self.network.stages[cut.at : cut.source]}.values()
        anew = tuple(self.dispatch.link(d).forgotten for d in devices if not d.capabilities.keyed)
        return (self.written.history, moved, anew), tuple(self.written.epochs[cut.at : cut.source])

    @property
    def next_pass(self) -> Resolved:
        """The plan as the next backward pass follows it: learned subspaces are of their present size."""
        return self.subspaces.planned(self.resolved)

    def target_questions(self, wanted: Sequence[bool], needs_input: bool) -> list[Question]:
        """What a backward pass by another credit than hzo will ask, in order."""
        return [] if self.target_rule is None else self.target_rule.questions(self.network, wanted, needs_input)

    # --- forward -----------------------------------------------------------------------------------------------

    def forward(self, inputs: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # What asks a device cannot be part of a graph. Lazily, because importing the compiler takes seconds.
            return torch.compiler.disable(self._forward)(inputs)
        return self._forward(inputs)

    def _forward(self, inputs: Tensor) -> Tensor:
        entrance.refuse_transforms(self)
        flat = entrance.checked(self, inputs)
        masters = list(self.stages.parameters())
        if self._watched is not None and len(flat):
            return calibrating.watch(self, flat, self._watched).reshape(
                *inputs.shape[:-1], self.network.width(self.network.depth)
            )
        if not len(flat):
            # Nothing to ask; gradients are zeros.
            return self._empty(flat, masters).reshape(*inputs.shape[:-1], self.network.width(self.network.depth))
        if self.credit == "loss" and self.training:
            outputs: Tensor = lossonly.answered(self, flat)
        elif torch.is_grad_enabled() and (inputs.requires_grad or any(p.requires_grad for p in masters)):
            outputs = _Query.apply(self, flat, *masters)
        else:
            outputs = self._evaluate(flat)
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])

    def _empty(self, flat: Tensor, masters: Sequence[Tensor]) -> Tensor:
        nothing = flat.new_zeros(0, self.network.width(self.network.depth))
        return nothing * sum((m.sum() for m in masters), flat.sum())

    def _evaluate(self, flat: Tensor) -> Tensor:
        self.written.update(self.stages, self.dispatch.count)
        first = self.evaluated
        self.evaluated += len(flat)
        key = stream_key(self.seed, "evaluation", self.name)
        with self.one_step(completes=True):
            found = forward_pass(self.dispatch, _numpy(flat), purpose="evaluation", key=key, first=first, inner=False)
        return torch.as_tensor(found[self.network.depth]).to(flat)

    def reference(self, flat: Tensor) -> tuple[int, dict[int, Any]]:
        """A training forward: its number and the activations at every boundary, arrays or, where they can stay where
        the device computes, tensors.
        """
        if self.auto is not None and self.calibration is None and self.credit == "hzo":
            raise BadInput(
                f"{self.name} has plan='auto' and was not calibrated, so nothing is planned yet. Before training call"
                f" {self.name}.calibrate(x, lambda outputs: loss) with a batch of the training data, or"
                " hzo_hil.calibrate_model(model, x, loss) where other layers follow; neither changes a parameter"
            )
        if self.gain is not None and not self.balanced:
            raise BadInput(
                f"{self.name} has gain= and was not balanced, so its gains are not near 1 yet. Before training call"
                " hzo_hil.balance_model(model, x) with a batch of the training data"
            )
        self.written.update(self.stages, self.dispatch.count)
        step = self.forwards
        self.forwards += 1
        key = stream_key(self.seed, "forward", self.name, step)
        with self.one_step():
            if self._stays():
                return step, resident.forward(self.dispatch, flat, key)
            keep, array = self.memory == "store", _numpy(flat)
            found = forward_pass(self.dispatch, array, purpose="forward", key=key, inner=True, keep=keep)
        return step, {0: array} | found

    def _stays(self) -> bool:
        if self.credit != "hzo" or self.memory != "store" or self.learned:
            return False
        if self._stay is None or self._stay[0] is not self.resolved:
            self._stay = self.resolved, resident.fits(self.network, self.resolved, self.rules)
        return self._stay[1] and not any(watch_of(d) for d in self.network.devices)

    # --- calibration -------------------------------------------------------------------------------------------

    def calibrate(self, inputs: Tensor, loss: Callable[[Tensor], Tensor], batch: int | None = None) -> Calibration:
        """Measure the devices around a batch of inputs [n, ..., width(0)], and plan where `plan="auto"`.

        `loss` takes outputs to the scalar that training lowers. `batch`: rows of a training step (default: those of
        `inputs`). A few hundred queries, purpose `calibration`. Raises BadInput where no plan reaches the tolerance or
        fits the budget, DeviceError where a device does not answer to its inputs.
        """
        return calibrating.calibrate(self, entrance.checked(self, inputs), loss, batch)

    @contextmanager
    def watched(self) -> Iterator[calibrating.Watched]:
        """Forwards inside are paid for as calibration; each leaves its activations and its outputs, cut off from what
        came before.
        """
        self._watched = []
        try:
            yield self._watched
        finally:
            self._watched = None

    def spread_of_gradient(self, loss: Callable[[], Tensor]) -> float:
        """Relative error that noise leaves in a minibatch's gradient, from two independent estimates of it.

        `loss()` runs the model on the minibatch. ||g1 - g2|| / sqrt(2) over the norm of the gradient, the latter with
        the noise taken off. Truncation is the same in both and not seen. Two whole steps, entered as calibration;
        training's streams do not move.
        """
        return calibrating.spread(self, loss)

    def adopt(self, found: Calibration, batch: int, needs_input: bool = False) -> None:
        """Plan for batches of `batch` rows by what an earlier calibration of these devices found.

        `needs_input`: what comes before this layer is trained, too.
        """
        if found.fingerprint != fingerprint(self.network):
            raise BadInput(
                f"this calibration is of {', '.join(found.devices)} and does not fit {self.name}, whose devices or"
                " stages are others. Calibrate anew"
            )
        if self.auto is not None:
            self.outcome = self.auto.plan(self.network, self.rules, found, batch, needs_input)
            self.plan = self.outcome.plan
            self.resolved = resolve(self.network, self.plan)
        self.calibration, self.planned_for = found, (batch, needs_input)

    def one_step(self, completes: bool = False) -> AbstractContextManager[None]:
        """What asks the devices runs inside; see `steps`."""
        return steps.one_step(self, completes)

    def rescale(self, factors: Sequence[float]) -> None:
        """What the host reads from each stage is multiplied by these from now on, beside what it was before.

        Devices are written anew, as by another owner. Of stages between which the host does not come, the factor must
        be 1: they could no longer be asked in one go.
        """
        if all(f == 1 for f in factors):
            return
        self.factors = [a * b for a, b in zip(self.factors, factors, strict=True)]
        self.network = Network([scaled(s, f) for s, f in zip(self.network.stages, factors, strict=True)])
        self.resolved = resolve(self.network, self.plan)
        self.rules = rules_for(self.network.stages, self.credit)
        averaged.check(self.network, self.plan, self.resolved, self.rules)
        self._connect()
        self.written.update(self.stages, self.dispatch.count)

    # --- what devices must hold --------------------------------------------------------------------------------

    def _images(self, hop: Hop, part: Part) -> Mapping[int, Image]:
        if self._override is not None:
            return self._override
        found: dict[int, Image] = {}
        for k in range(hop.lo, hop.hi):
            epoch = self.written.epochs[k]
            key = stream_key(self.seed, "programming", self.name, k, str(part.tile), epoch)
            for physical, values in self.written.images(k, part.tile).items():
                found[physical] = ((self.owner, k, part.tile, self.written.history, epoch), values, key)
        return found

    @contextmanager
    def holding(self, images: dict[int, Image]) -> Iterator[None]:
        """Queries inside find these values on the physical stages (parameter probing)."""
        self._override = images
        try:
            yield
        finally:
            self._override = None

    @property
    def learned(self) -> dict[int, LearnedTwin]:
        """By stage (0-based), the rules that learn from its answers."""
        return {k: r for k, r in enumerate(self.rules) if isinstance(r, LearnedTwin)}

    def _observed(self, answer: Answer) -> None:
        """An answer of a single stage, told to the rule that learns from it; the forward pass comes with the leaf."""
        call = answer.call
        rule = self.learned.get(call.hop.lo)
        if rule is None or call.purpose not in ("probes", "leaf", "calibration"):
            return
        values: Mapping[str, Array] = self.written.values[call.hop.lo]
        number = 0
        if self._override is not None:
            ((tenant, values, _),) = self._override.values()
            number = tenant[-1]
        rule.observe((call.purpose, number, call.first), values, call.rows, decoded(answer))

    # --- torch's own business ----------------------------------------------------------------------------------

    def _apply(self, fn: Any, recurse: bool = True) -> Opaque:
        entrance.refuse_narrow(self, fn(torch.zeros(1)).dtype)
        return super()._apply(fn, recurse)

    def get_extra_state(self) -> dict[str, Any]:
        return saving.state_of(self)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        saving.load(self, state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Opaque:
        return saving.copied(self, memo)

    def __getstate__(self) -> dict[str, Any]:
        return saving.pickled(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        saving.unpickle(self, state)

    def extra_repr(self) -> str:
        widths = [self.network.width(k) for k in range(self.network.depth + 1)]
        probes = self.plan.probes if isinstance(self.plan.probes, str) else "by cut"
        return f"{self.name}: widths={widths}, tree={self.resolved.tree.name}, probes={probes}"

    def close(self) -> None:
        """Park and close the devices. Another module that uses them opens them again."""
        for device in self.network.devices:
            self.dispatch.link(device).close()


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


class _Query(torch.autograd.Function):
    """Forward asks the device; backward returns gradients for the inputs and every master."""

    @staticmethod
    def forward(ctx: Any, module: Opaque, flat: Tensor, *masters: Tensor) -> Tensor:
        step, activations = module.reference(flat)
        ctx.pass_ = Backward(module, step, activations, list(module.written.epochs))
        return torch.as_tensor(activations[module.network.depth]).to(flat)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs_input, *needs_masters = ctx.needs_input_grad[1:]
        target = ctx.pass_.run(gradient, needs_input, needs_masters)
        return (None, *target)

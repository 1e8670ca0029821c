"""One backward pass of an `Opaque`: which targets are needed, who computes them, and the leaf rules.

Knows the order of things, not the arithmetic: cuts belong to `credit`, gradients to `updates`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hzo_hil.credit.averaged import Averaged
from hzo_hil.credit.cut import Probing
from hzo_hil.credit.hzo import estimate_targets, measure
from hzo_hil.credit.rule import OnTarget, Pass, Question, TargetRule
from hzo_hil.credit.shared import Shared
from hzo_hil.devices.errors import BadInput
from hzo_hil.offload import offloaded
from hzo_hil.plan import Cut, Tree
from hzo_hil.recompute import Ask, Release, moves
from hzo_hil.reference import forward_pass
from hzo_hil.resident import refuse_not_finite, targets
from hzo_hil.resolve import Resolved
from hzo_hil.single import ask_alone
from hzo_hil.streams import stream_key
from hzo_hil.updates import Leaf
from hzo_hil.values import endless, energy, not_finite, within

if TYPE_CHECKING:
    from hzo_hil.module import Opaque

Array = NDArray[Any]


def needed_tree(tree: Tree, wanted_stages: Sequence[bool], needs_input: bool) -> Tree:
    """The cuts that the targets of trained stages (and of the input) depend on."""
    full = tree.with_input() if needs_input else tree
    needed = {k + 1 for k, wanted in enumerate(wanted_stages) if wanted} | ({0} if needs_input else set())
    return full.pruned(needed)


class Backward:
    """What a forward leaves behind for its backward passes."""

    def __init__(self, module: Opaque, step: int, activations: dict[int, Any], epochs: list[int]) -> None:
        self.module = module
        self.step = step
        self.activations = activations
        self.epochs = epochs
        self.passes = 0
        self._asked = 0

    def run(self, gradient: Tensor, needs_input: bool, needs_masters: Sequence[bool]) -> list[Tensor | None]:
        """Gradients of the inputs and of every master, in the order of the module's parameters."""
        module = self.module
        self._check_order()
        bad = not_finite(gradient)
        if bad:
            raise BadInput(
                f"{bad} of {gradient.numel()} values of the gradient that reached {module.name} are NaN or infinite;"
                " nothing was"
                " sent to a device. Look at the loss and the layers after it"
            )
        with module.one_step(completes=True):
            return self._run(gradient, needs_input, list(needs_masters))

    def _run(self, gradient: Tensor, needs_input: bool, needs: list[bool]) -> list[Tensor | None]:
        module = self.module
        wanted = self._wanted_stages(needs)
        resident = isinstance(self.activations[0], Tensor)
        top: Any = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
        top = top if resident else top.cpu().numpy()
        found: dict[int, dict[str, Tensor]] = {}
        targets: dict[int, Array] = {}
        energies: dict[int, Any] = {}
        for learned in module.learned.values():
            learned.forget()
        with torch.no_grad():

            def on_target(boundary: int, target: Array) -> None:
                targets[boundary] = target
                energies[boundary] = energy(target)
                at_once = boundary and wanted[boundary - 1] and module.memory == "store"
                if at_once and not module.rules[boundary - 1].queries:  # type: ignore[union-attr]
                    found[boundary - 1] = self._leaf(boundary - 1, target)

            on_target(module.network.depth, top)
            learn: Callable[[], None] | None = None
            if resident:
                self._stay(top, wanted, needs_input, on_target)
            elif module.target_rule is not None:
                self._by_rule(module.target_rule, self._given(top, wanted, needs_input), on_target)
            elif module.memory == "recompute":
                learn = self._depth_first(wanted, needs_input, on_target, targets, found)
            else:
                learn = self._probe(top, wanted, needs_input, on_target, targets)
            # Rules that re-program a stage wait until no probe needs it.
            for k, rule in enumerate(module.rules):
                if wanted[k] and rule is not None and rule.queries:
                    found[k] = self._leaf(k, targets[k + 1])
            if learn is not None:
                learn()
        self.passes += 1
        energies = {k: float(e) for k, e in energies.items()}
        if resident:
            refuse_not_finite(module, energies)
        if module.credit in ("hzo", "twin"):  # elsewhere targets do not go down through Jacobians
            module.gains.add(energies)
        return self._collect(found, targets, gradient, needs_input, needs)

    def _stay(self, top: Tensor, wanted: list[bool], needs_input: bool, on_target: Any) -> None:
        """Targets without a copy to the host (`resident`)."""
        module = self.module
        cuts = needed_tree(module.resolved.tree, wanted, needs_input).cuts
        targets(module, cuts, self.activations, top, self._probe_key, on_target)

    def _probe_key(self, boundary: int) -> int:
        module = self.module
        return stream_key(module.seed, "probes", module.name, self.step, self.passes, boundary)

    def _by_rule(self, rule: TargetRule, given: Pass, on_target: OnTarget) -> None:
        """What a rule learns in a pass that does not come to its end is forgotten: the pass will be done again."""
        before = copy.deepcopy(rule.state()) if rule.learns else {}
        try:
            rule.targets(given, on_target)
        except BaseException:
            if rule.learns:
                rule.load(before)
            raise

    def _given(self, top: Array, wanted: list[bool], needs_input: bool) -> Pass:
        module = self.module
        return Pass(
            module.network, self.activations, top, module.written.values, module.rules, wanted, needs_input,
            module.resolved.eps, self._ask,
            partial(stream_key, module.seed, "targets", module.name, self.step, self.passes),
            next(module.stages.parameters()),
        )  # fmt: skip

    def _ask(self, question: Question, rows: Array) -> Array:
        """Answers to what a target rule asks: rows of a sample follow one another."""
        module, (lo, hi, each, repeats) = self.module, question
        self._asked += 1
        key = stream_key(module.seed, "target queries", module.name, self.step, self.passes, self._asked)
        dtype = module.network.stages[lo].device.capabilities.dtype
        return forward_pass(
            module.dispatch, rows.astype(dtype, copy=False), purpose="probes", key=key, repeats=repeats, inner=False,
            lo=lo, hi=hi, keep=False, per_sample=each,
        )[hi]  # fmt: skip

    def _probe(
        self, top: Array, wanted: list[bool], needs_input: bool, on_target: Any, targets: Mapping[int, Array]
    ) -> Callable[[], None]:
        """Estimate targets; returns what a complete pass teaches the learned subspaces."""
        module, network = self.module, self.module.network
        probings: list[Probing] = []
        asked = module.next_pass
        for cut in needed_tree(module.resolved.tree, wanted, needs_input).cuts:
            probings.append(self._probing(cut, asked, self.activations[cut.at]))
        self._measure_averaged(probings)
        estimate_targets(module.dispatch, probings, top, buffer_bytes=module.buffer_bytes, on_target=on_target)
        self._keep_measured(probings)
        keys = {p.cut.at: p.key for p in probings}
        cuts = [p.cut for p in probings]
        return partial(module.subspaces.observe, network, module.resolved, asked, cuts, targets, keys)

    def _probing(self, cut: Cut, asked: Resolved, base: Array) -> Probing:
        module, network = self.module, self.module.network
        plan = asked.at[cut.at]
        low, high = network.limits(cut.at)
        dtype = network.stages[cut.at].device.capabilities.dtype
        key = self._probe_key(cut.at)
        what = (
            cut, plan.set, plan.scheme, plan.eps, base.astype(dtype, copy=False), low, high,
            network.colouring(cut.at, cut.source, plan.shared), key, network.converter_step(cut.at), plan.repeats,
        )  # fmt: skip
        if not plan.shared:
            alone = module.dispatch.observer is None and offloaded(network, plan)
            known = self.activations[cut.source] if plan.answered else None
            return Probing(*what, reference=known, offloaded=alone)
        measured = module.jacobians.known(cut)
        if plan.average == 1:
            return Shared(*what, known=measured)
        noise = network.read_noise(cut.source)
        assert noise is not None  # checked when the module was made
        return Averaged(
            *what, known=measured, weight=module.written.values[cut.at]["weight"], before=module.jacobians.carried(cut),
            average=plan.average, noise=noise, grain=network.stages[cut.at].read.out_step,
        )  # fmt: skip

    def _measure_averaged(self, probings: Sequence[Probing]) -> None:
        """Ahead of the other cuts: only their answers say whether those carried on must be asked whole."""
        module = self.module
        averaged = [p for p in probings if isinstance(p, Averaged) and p.known is None]
        measure(module.dispatch, averaged)
        contradicted = [p for p in averaged if p.known is None]
        for probing in contradicted:
            module.dispatch.count("jacobian_renewed")
            at = probing.cut.at
            probing.renew(stream_key(module.seed, "renewed", module.name, self.step, self.passes, at))
        measure(module.dispatch, contradicted)

    def _keep_measured(self, probings: Sequence[Probing]) -> None:
        for probing in probings:
            if isinstance(probing, Shared) and probing.known is not None:
                self.module.jacobians.keep(probing.cut, probing.known)

    def _depth_first(
        self,
        wanted: list[bool],
        needs_input: bool,
        on_target: Any,
        targets: dict[int, Array],
        found: dict[int, dict[str, Tensor]],
    ) -> Callable[[], None]:
        """As `_probe`, cut by cut, with leaves in between; activations are asked for again and let go."""
        module, network = self.module, self.module.network
        asked, learnt = module.next_pass, copy.deepcopy(module.subspaces)
        kept = dict(self.activations)
        try:
            for move in moves(needed_tree(module.resolved.tree, wanted, needs_input), wanted):
                if isinstance(move, Ask):
                    key = stream_key(module.seed, "again", module.name, self.step, self.passes, move.hi)
                    self.activations |= forward_pass(
                        module.dispatch, self.activations[move.lo], purpose="forward", key=key, inner=True,
                        lo=move.lo, hi=move.hi, keep=False,
                    )  # fmt: skip
                elif isinstance(move, Cut):
                    probing = self._probing(move, asked, self.activations[move.at])
                    self._measure_averaged([probing])
                    estimate_targets(
                        module.dispatch, [probing], targets[move.source], buffer_bytes=module.buffer_bytes,
                        source=move.source, on_target=on_target,
                    )  # fmt: skip
                    self._keep_measured([probing])
                    learnt.observe(network, module.resolved, asked, [move], targets, {move.at: probing.key})
                elif isinstance(move, Release):
                    self.activations.pop(move.boundary, None)
                    targets.pop(move.boundary, None)
                else:
                    found[move.stage] = self._leaf(move.stage, targets[move.stage + 1])
        finally:
            self.activations = kept

        def learn() -> None:
            module.subspaces = learnt

        return learn

    # --- leaves ------------------------------------------------------------------------------------------------

    def _leaf(self, k: int, target: Array) -> dict[str, Tensor]:
        """Gradients of logical stage k (0-based), block by block."""
        module = self.module
        stage, rule = module.network.stages[k], module.rules[k]
        assert rule is not None
        like = next(module.stages[k].parameters())
        limits = module.network.limits(k)
        inputs = torch.as_tensor(within(self.activations[k], *limits)).to(like)
        outputs = torch.as_tensor(self.activations[k + 1]).to(like)
        weights = torch.as_tensor(target).to(like)
        total: dict[str, Tensor] = {}
        seen: set[Any] = set()
        for part in stage.parts:
            if part.tile in seen:
                continue
            seen.add(part.tile)
            leaf = Leaf(
                stage,
                stage.block_specs,
                module.written.tensors(k, part.tile, like),
                _fill(inputs[:, part.inputs], stage.core[1]),
                _fill(outputs[:, part.outputs], stage.core[0]),
                _fill(weights[:, part.outputs], stage.core[0]),
                partial(self._query, k, part.tile),
                stream_key(module.seed, "leaf", module.name, self.step, self.passes, k, str(part.tile)),
                lambda event: module.dispatch.count(f"{event}:{k + 1}"),
            )
            gradients = rule.gradients(leaf)
            if part.tile is None:
                return gradients
            for name, value in gradients.items():
                if name not in total:
                    total[name] = value.new_zeros(getattr(module.stages[k], name).shape)
                total[name][part.tile] = value
        return total

    def _query(self, k: int, tile: Any, values: Mapping[str, Array], purpose: str = "leaf") -> Array:
        """Answers [samples, out] of one block of stage k with perturbed parameters, at this pass's inputs."""
        module = self.module
        self._asked += 1
        key = stream_key(module.seed, "leaf queries", module.name, self.step, self.passes, k, self._asked)
        tenant = ("probe", self.step, self.passes, self._asked)
        return ask_alone(module, k, values, self.activations[k], tile=tile, key=key, tenant=tenant, purpose=purpose)

    # --- bookkeeping -------------------------------------------------------------------------------------------

    def _check_order(self) -> None:
        module = self.module
        if module.written.epochs != self.epochs or module.written.changed(module.stages):
            raise BadInput(
                f"the parameters of {module.name} changed between this forward and its backward, so the device no"
                " longer is what"
                " the activations came from. Keep the order forward, backward, optimizer.step()"
            )

    def _wanted_stages(self, needs: list[bool]) -> list[bool]:
        at = 0
        wanted = []
        for stage in self.module.stages:
            count = len(list(stage.parameters()))
            wanted.append(any(needs[at : at + count]))
            at += count
        return wanted

    def _collect(
        self,
        found: Mapping[int, Mapping[str, Tensor]],
        targets: Mapping[int, Array],
        gradient: Tensor,
        needs_input: bool,
        needs: list[bool],
    ) -> list[Tensor | None]:
        module = self.module
        result: list[Tensor | None] = [None]
        if needs_input:
            low, high = module.network.limits(0)
            found_input = targets[0]
            if not endless(low, high):
                # Beyond the range the input is clipped, and the output does not depend on it.
                inside = (self.activations[0] >= low) & (self.activations[0] <= high)
                found_input = np.where(inside, found_input, 0)
            result[0] = torch.as_tensor(found_input).to(gradient)
        at = 0
        for k, stage in enumerate(module.stages):
            for name, master in stage.named_parameters():
                result.append(found[k][name].reshape(master.shape).to(master) if needs[at] else None)
                at += 1
        return result


def _fill(values: Tensor, width: int) -> Tensor:
    """Zeros for the columns that an edge block lacks."""
    return values if values.shape[1] == width else torch.nn.functional.pad(values, (0, width - values.shape[1]))

"""Targets by divide and conquer over depth: HZO (Cao, Ma, Tian 2026), algorithm 1, over any tree.

Every cut's queries may be in flight at once, because what is sent does not depend on the target, only how answers are
weighed does. An answer that overtakes its parent's target waits, raw, in a buffer of bounded size. Each answer is
reduced to a number per pair at its own place, and decoded once per cut, so the order of answers cannot change a sum.
Answers to a shared measurement are kept as they are, need no target and wait for none. A device that weighs
answers by itself is asked once the target is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.credit.cut import Probing
from hzo_hil.credit.shared import Shared
from hzo_hil.dispatch import Answer, Call, Dispatch
from hzo_hil.network import Hop
from hzo_hil.offload import questions
from hzo_hil.scheduler import pack, rows_per_call
from hzo_hil.streams import row_keys

Array = NDArray[Any]


@dataclass
class _Open:
    """A cut under way: where its answers go and how many calls are still to be weighed."""

    probing: Probing
    hops: tuple[Hop, ...]
    contracted: Sequence[Array]
    missing: int
    waiting: list[tuple[Answer, int]] = field(default_factory=list)

    @property
    def waits_for_target(self) -> bool:
        """Whether nothing but the target at its source is missing: it was measured, or is asked with the target."""
        return not self.missing and (isinstance(self.probing, Shared) or self.probing.offloaded)


@dataclass(frozen=True)
class _Tag:
    cut: _Open
    first: int
    part: int
    hop: int


def estimate_targets(
    dispatch: Dispatch,
    probings: Sequence[Probing],
    top: Array,
    *,
    buffer_bytes: int,
    source: int | None = None,
    on_target: Callable[[int, Array], None],
) -> None:
    """Estimate the target at every cut, parents first, and hand each to `on_target(boundary, [samples, width])`.

    `top` is the target at `source`, the last boundary where that is None. Raises what `Dispatch.stream` raises; nothing
    is left in flight.
    """
    if not len(top):
        for probing in probings:
            on_target(probing.cut.at, np.zeros((0, probing.width), dtype=top.dtype))
        return
    descent = _Descent(dispatch, probings, top, dispatch.network.depth if source is None else source, on_target)
    descent.finish_known()
    hold = partial(descent.hold, buffer_bytes)
    for answer in dispatch.stream(descent.begun(), hold=hold, urgent=descent.urgent):
        descent.take(answer)


class _Descent:
    """Targets known so far, and the cuts that wait for one or for their answers.

    A class, not functions inside another: those that know each other keep what they hold, activations too, until the
    garbage collector comes.
    """

    def __init__(
        self, dispatch: Dispatch, probings: Sequence[Probing], top: Array, last: int,
        on_target: Callable[[int, Array], None],
    ) -> None:  # fmt: skip
        self.dispatch, self.network, self.on_target = dispatch, dispatch.network, on_target
        self.last, self.dtype = last, top.dtype
        self.targets: dict[int, Array] = {last: np.ascontiguousarray(top)}
        self.cuts = [self._opened(probing) for probing in probings]
        self.children: dict[int, list[_Open]] = {}
        for cut in self.cuts:
            self.children.setdefault(cut.probing.cut.source, []).append(cut)
        self.buffered = 0
        """Bytes of answers that wait for their target."""
        self.halfway = 0
        """Calls that are to go through another hop."""
        self.urgent: deque[Call] = deque()

    def _opened(self, probing: Probing) -> _Open:
        hops = self.network.route(probing.cut.at, probing.cut.source)
        if probing.offloaded:
            return _Open(probing, hops, (), 0)
        parts = len(hops[0].parts)
        calls_each = sum(1 for _ in _ranges(self.dispatch, probing, hops))
        if isinstance(probing, Shared):
            contracted = [np.empty(probing.collected(p), dtype=probing.base.dtype) for p in hops[0].parts]
        else:
            contracted = list(np.empty((parts, *probing.kept), dtype=np.float64))
        return _Open(probing, hops, contracted, parts * calls_each)

    def finish_known(self) -> None:
        """What was measured before, or is asked with its target, waits for nothing else."""
        for cut in self.children.get(self.last, []):
            if cut.waits_for_target:
                self._finish(cut)

    def begun(self) -> Iterator[Call]:
        for cut in (c for c in self.cuts if not c.probing.offloaded):
            for call in _calls_of(self.dispatch, cut):
                yield call
                self.halfway += len(cut.hops) > 1  # resumed once the call is sent

    def hold(self, buffer_bytes: int) -> bool:
        # Where layers take turns on a device, a call still on its way there must not be overtaken: writes would
        # depend on timing.
        return self.buffered >= buffer_bytes or (self.network.shared and self.halfway > 0)

    def take(self, answer: Answer) -> None:
        """Send an answer on to its next hop, weigh it, or keep it until its target is known."""
        tag: _Tag = answer.call.tag
        outputs = decoded(answer)
        if tag.hop + 1 < len(tag.cut.hops):
            self.halfway -= tag.hop + 2 == len(tag.cut.hops)
            limits = self.network.limits(tag.cut.hops[tag.hop].hi)
            self.urgent.append(_onward(tag, np.clip(outputs, *limits), answer.call))
            return
        answer.outputs = outputs
        answer.call.rows = np.empty(0)
        if tag.cut.probing.cut.source in self.targets or isinstance(tag.cut.probing, Shared):
            self._weigh(tag.cut, answer, tag.first)
        else:
            self.buffered += outputs.nbytes
            tag.cut.waiting.append((answer, tag.first))

    def _weigh(self, cut: _Open, answer: Answer, first: int) -> None:
        part, into = answer.call.part, cut.contracted[answer.call.tag.part]
        if isinstance(cut.probing, Shared):
            cut.probing.collect(answer.outputs, first, part, into)
        else:
            cut.probing.contract(answer.outputs, self.targets[cut.probing.cut.source], first, part, into)
        cut.missing -= 1
        if not cut.missing and cut.probing.cut.source in self.targets:
            self._finish(cut)

    def _finish(self, cut: _Open) -> None:
        # Parts are added in their own order, not in that of arrival.
        one_sided = 0
        if isinstance(cut.probing, Shared):
            cut.probing.measured(cut.hops[0].parts, cut.contracted)
            target = cut.probing.through(self.targets[cut.probing.cut.source])
        elif cut.probing.offloaded:
            target = self._asked(cut)
        else:
            target, one_sided = cut.probing.decode(np.sum(cut.contracted, axis=0))
        self.dispatch.count("one_sided", one_sided)
        self.dispatch.count("shifted", cut.probing.shifted)
        cut.contracted = ()
        at = cut.probing.cut.at
        self.targets[at] = np.ascontiguousarray(target, dtype=self.dtype)
        self.on_target(at, self.targets[at])
        for child in self.children.get(at, []):
            waiting, child.waiting = child.waiting, []
            for answer, first in waiting:
                self.buffered -= answer.outputs.nbytes
                self._weigh(child, answer, first)
            if child.waits_for_target:
                self._finish(child)

    def _asked(self, cut: _Open) -> Array:
        """The target of a cut whose device probes by itself."""
        probing, hop = cut.probing, cut.hops[0]
        asked = questions(
            hop.segment, probing.base, probing.colouring, probing.eps, probing.scheme.paired,
            self.targets[probing.cut.source], probing.key, probing.reference,
        )  # fmt: skip
        found = [self.dispatch.probe(hop, one, "probes") for one in asked]
        return found[0] if len(found) == 1 else np.concatenate(found)


def measure(dispatch: Dispatch, probings: Sequence[Shared]) -> None:
    """Measure Jacobians of single stages ahead of every target. Raises what `Dispatch.stream` raises."""
    cuts: list[_Open] = []
    for probing in probings:
        hops = dispatch.network.route(probing.cut.at, probing.cut.source)
        collected = [np.empty(probing.collected(p), dtype=probing.base.dtype) for p in hops[0].parts]
        cuts.append(_Open(probing, hops, collected, 0))
    for answer in dispatch.stream(call for cut in cuts for call in _calls_of(dispatch, cut)):
        tag: _Tag = answer.call.tag
        assert isinstance(tag.cut.probing, Shared)
        tag.cut.probing.collect(decoded(answer), tag.first, answer.call.part, tag.cut.contracted[tag.part])
    for probing, cut in zip(probings, cuts, strict=True):
        probing.measured(cut.hops[0].parts, cut.contracted)


def decoded(answer: Answer) -> Array:
    """Outputs of a call in activation units. Answers that are subtracted from one another leave the offset out."""
    call = answer.call
    values = call.hop.codec_out.decode(answer.outputs, constant=len(call.hop.codec_in.passes) == 1)
    wanted = call.part.outputs.stop - call.part.outputs.start
    return values if values.shape[1] == wanted else values[:, :wanted]


def _ranges(dispatch: Dispatch, probing: Probing, hops: Sequence[Hop]) -> Iterator[tuple[int, int]]:
    rows = min(
        rows_per_call(dispatch.link(h.device).capabilities, h.in_ports, probing.repeats, probing.group) for h in hops
    )
    return pack(probing.asked, rows // probing.group * probing.group)


def _calls_of(dispatch: Dispatch, cut: _Open) -> Iterator[Call]:
    """Calls of the cut's first hop, block by block, so that a re-programmed core is written once per block."""
    hop, repeats = cut.hops[0], cut.probing.repeats
    for number, part in enumerate(hop.parts):
        for first, last in _ranges(dispatch, cut.probing, cut.hops):
            rows = padded(cut.probing.build(first, last, part.inputs), hop)
            # Row numbers of a block start where those of the block before ended: every shot has its own key.
            offset = number * cut.probing.asked
            keys = row_keys(cut.probing.key, (offset + first) * repeats, (last - first) * repeats)[::repeats]
            tag = _Tag(cut, first, number, 0)
            yield Call(hop, part, rows, "probes", keys, repeats, tag=tag, first=first, per_sample=cut.probing.rows)


def padded(rows: Array, hop: Hop) -> Array:
    """Rows with zeros for the columns that an edge block lacks."""
    missing = hop.in_ports // hop.codec_in.ports - rows.shape[1]
    return np.pad(rows, ((0, 0), (0, missing))) if missing else rows


def _onward(tag: _Tag, outputs: Array, call: Call) -> Call:
    hop = tag.cut.hops[tag.hop + 1]
    keys = None if call.keys is None else call.keys + np.uint64(1 << 40)
    following = _Tag(tag.cut, tag.first, 0, tag.hop + 1)
    rows = padded(outputs, hop)
    return replace(call, hop=hop, part=hop.parts[0], rows=rows, keys=keys, tag=following, tries=0)

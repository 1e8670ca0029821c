"""Trees (the order of cuts) and plans (tree, probes, step size, repeats). Pure: no tensors, no devices.

A cut estimates the target at boundary `at` from the one at `source` through segment (at, source]. Source of the
recursion: HZO (Cao, Ma, Tian 2026), algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hzo_hil.devices.errors import BadInput

NAMED_TREES = ("bisect", "chain", "direct")
PER_CUT = ("probes", "eps", "differences", "repeats", "average")


@dataclass(frozen=True)
class Cut:
    at: int
    source: int

    def __len__(self) -> int:
        return self.source - self.at


@dataclass(frozen=True)
class Tree:
    """Cuts over stages 1..depth, parents first: every cut's source is the loss (depth) or an earlier cut."""

    depth: int
    cuts: tuple[Cut, ...]
    name: str = "custom"

    def __post_init__(self) -> None:
        known = {self.depth}
        for cut in self.cuts:
            if cut.source not in known:
                raise BadInput(
                    f"tree {self.name!r} does not cover the network: the cut at {cut.at} starts from boundary"
                    f" {cut.source}, whose target is not known by then"
                )
            if not 0 <= cut.at < cut.source:
                raise BadInput(f"tree {self.name!r}: cut at {cut.at} must lie below its source {cut.source}")
            known.add(cut.at)

    @classmethod
    def named(cls, name: str, depth: int) -> Tree:
        """`bisect` (HZO), `chain` (one stage at a time) or `direct` (every target straight from the loss)."""
        if name == "chain":
            order = list(range(depth - 1, 0, -1))
        elif name == "direct":
            order = list(range(1, depth))
        elif name == "bisect":
            order = list(_halves(1, depth))
        else:
            raise BadInput(f"unknown tree {name!r}: choose {', '.join(NAMED_TREES)} or give a list of cuts")
        return cls(depth, tuple(_cuts(order, depth)), name)

    @classmethod
    def from_order(cls, order: Sequence[int], depth: int) -> Tree:
        """From inner boundaries in the order they are cut; each is cut from the nearest known boundary above it."""
        inner = list(range(1, depth))
        if sorted(order) != inner:
            missing = sorted(set(inner) - set(order))
            extra = sorted(set(order) - set(inner))
            repeated = sorted({k for k in order if list(order).count(k) > 1})
            raise BadInput(
                f"the tree {list(order)} does not cover the network: {depth} stages have inner boundaries"
                f" 1..{depth - 1}"
                + (f"; missing {missing}" if missing else "")
                + (f"; not inner boundaries {extra}" if extra else "")
                + (f"; repeated {repeated}" if repeated else "")
            )
        return cls(depth, tuple(_cuts(order, depth)))

    @classmethod
    def of(cls, tree: Tree | str | Sequence[int], depth: int) -> Tree:
        if isinstance(tree, Tree):
            if tree.depth != depth:
                raise BadInput(
                    f"the tree is for {tree.depth} stages and does not cover the network, which has {depth} stages"
                )
            cls.from_order([at for at in tree.order if at], depth)
            return tree
        return cls.named(tree, depth) if isinstance(tree, str) else cls.from_order(list(tree), depth)

    @property
    def order(self) -> list[int]:
        return [cut.at for cut in self.cuts]

    def with_input(self) -> Tree:
        """The same tree with the target at boundary 0 estimated too, from boundary 1."""
        return Tree(self.depth, (*self.cuts, Cut(0, 1)), self.name)

    def pruned(self, needed: Collection[int]) -> Tree:
        """Only the cuts that lead to targets at `needed` boundaries."""
        wanted = set(needed)
        kept: list[Cut] = []
        for cut in reversed(self.cuts):
            if cut.at in wanted:
                kept.append(cut)
                wanted.add(cut.source)
        return Tree(self.depth, tuple(reversed(kept)), self.name)


def _halves(first: int, last: int) -> Iterable[int]:
    if first >= last:
        return
    middle = (first + last) // 2
    yield middle
    yield from _halves(middle + 1, last)
    yield from _halves(first, middle)


def _cuts(order: Iterable[int], depth: int) -> Iterable[Cut]:
    known = [depth]
    for at in order:
        yield Cut(at, min(k for k in known if k > at))
        known.append(at)


@dataclass(frozen=True)
class Plan:
    """Everything that decides how targets are estimated.

    `probes`: `coordinate`, `hadamard`, or `rademacher:q`, `gaussian:q`, `sphere:q`, or a learned subspace, `subspace`,
    `subspace:r`, `subspace:r+s`. `eps`: perturbation per element in activation units, or None for the default rule of
    `differences.default_step`. `repeats`: shots averaged per query. Each of the three, `differences` and `average` is
    one value for all cuts or a mapping from the boundary cut at, whose other boundaries take the default. `shared`:
    measure the Jacobian of a segment declared linear once for the whole batch and keep it until a stage of it is
    written; False: probe it sample by sample like any other, which is for a device that drifts within a pass or is not
    as linear as it says. `average`: the part of its probes that such a Jacobian is asked anew after a write, where the
    stage's parameter is its matrix; the rest follows from the change that was commanded, and answers are averaged over
    steps. 1: all anew. As one value it is for every Jacobian measured once for the batch. `leaf_repeats` are those of a
    leaf rule that asks; None: `repeats` where that is one number, else 1.
    """

    tree: Tree | str | tuple[int, ...] | None = None
    probes: str | Mapping[int, str] = "coordinate"
    eps: float | Mapping[int, float] | None = None
    differences: str | Mapping[int, str] = "central"
    repeats: int | Mapping[int, int] = 1
    leaf_repeats: int | None = None
    shared: bool = True
    average: float | Mapping[int, float] = 1.0

    def __post_init__(self) -> None:
        asked = self.repeats.values() if isinstance(self.repeats, Mapping) else (self.repeats,)
        for repeats in (*asked, 1 if self.leaf_repeats is None else self.leaf_repeats):
            if repeats < 1:
                raise BadInput(f"repeats is {repeats}: a query is asked at least once")
        for average in self.average.values() if isinstance(self.average, Mapping) else (self.average,):
            if not 0 < average <= 1:
                raise BadInput(
                    f"average is {average}: it is the part of a Jacobian's probes that is asked anew, above 0 and at"
                    " most 1"
                )

    def at(self, boundary: int) -> Step:
        """What is asked of the cut at one boundary."""
        chosen = {n: _of(getattr(self, n), boundary) for n in PER_CUT}
        return Step(**{n: v for n, v in chosen.items() if v is not None})

    @property
    def boundaries(self) -> dict[str, set[int]]:
        """Boundaries named, by field that is a mapping."""
        return {n: set(v) for n in PER_CUT if isinstance(v := getattr(self, n), Mapping)}


@dataclass(frozen=True)
class Step:
    """The choices of a plan for one cut."""

    probes: str = "coordinate"
    eps: float | None = None
    differences: str = "central"
    repeats: int = 1
    average: float = 1.0


def portion(average: float, probes: int) -> int:
    """How many of a Jacobian's probes an ordinary pass asks anew: that part of them, at least one."""
    return max(1, math.ceil(average * probes * (1 - 1e-9)))


def _of(value: Any, boundary: int) -> Any:
    return value.get(boundary) if isinstance(value, Mapping) else value

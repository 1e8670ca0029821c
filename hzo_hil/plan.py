"""Trees (the order of cuts) and plans (tree, probes, step size, repeats). Pure: no tensors, no devices.

A cut estimates the target at boundary `at` from the one at `source` through segment (at, source]. Source of the
recursion: HZO (Cao, Ma, Tian 2026), algorithm 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from hzo_hil.devices.errors import BadInput

NAMED_TREES = ("bisect", "chain", "direct")


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

    `probes`: `coordinate`, `hadamard`, or `rademacher:q`, `gaussian:q`, `sphere:q`. `eps`: perturbation per element
    in activation units, one number for all boundaries, a mapping boundary -> number, or None for the default
    rule of `differences.default_step`. `repeats`: shots averaged per query.
    """

    tree: Tree | str | tuple[int, ...] | None = None
    probes: str = "coordinate"
    eps: float | dict[int, float] | None = None
    differences: str = "central"
    repeats: int = 1

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise BadInput(f"repeats is {self.repeats}: a query is asked at least once")

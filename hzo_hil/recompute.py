"""In which order targets and activations come and go where activations are not kept. Pure: no tensors, no devices.

Depth first: of a segment (lo, hi] whose input and upper target are known, the activation at its cut is asked for, the
target there estimated, the upper part finished, and what belongs to hi alone let go before the lower part. With the
bisecting tree at most log2 L boundaries are alive at a time, and every activation is asked for once more, in segments
that halve: about L log2 L / 2 more stage evaluations a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hzo_hil.plan import Cut, Tree


@dataclass(frozen=True)
class Ask:
    """The activation at `hi`, from that at `lo`."""

    lo: int
    hi: int


@dataclass(frozen=True)
class Leaf:
    """The gradient of stage `stage` (from 0): both its activations and the target at its output are there."""

    stage: int


@dataclass(frozen=True)
class Release:
    """Nothing needs this boundary any more."""

    boundary: int


Move = Ask | Cut | Leaf | Release


def moves(tree: Tree, wanted: Sequence[bool]) -> Iterator[Move]:
    """What a backward pass does over a pruned tree; `wanted`: which stages (from 0) are trained."""
    cuts = {cut.at: cut for cut in tree.cuts}
    order = [at for at in tree.order if at]
    stack = [(0, tree.depth)]
    while stack:
        lo, hi = stack.pop()
        at = next((k for k in order if lo < k < hi), None)
        if at is not None:
            yield Ask(lo, at)
            yield cuts[at]
            stack += [(lo, at), (at, hi)]
            continue
        if wanted[hi - 1]:
            if lo < hi - 1:
                yield Ask(lo, hi - 1)
            yield Leaf(hi - 1)
            if lo < hi - 1:
                yield Release(hi - 1)
        if lo == 0 and 0 in cuts:
            yield cuts[0]
        yield Release(hi)

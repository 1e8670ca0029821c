"""The tree that makes noise least, for stages that keep norms: by dynamic programming over segments.

A cut at k from j costs j - k + overhead a query and spoils the k - i + 1 stages below it that its half covers. With
repeats chosen best, error x cost = (sum over cuts of sqrt(spoilt x cost))^2, a sum over the tree, so the best tree is
that of its best halves. Pure: no device.
"""

from __future__ import annotations

import math
from functools import cache

from hzo_hil.plan import Tree


def least(depth: int, overhead: float) -> tuple[float, list[int]]:
    """Error x cost of the best tree, and its cuts in order, parents first."""

    @cache
    def best(i: int, j: int) -> tuple[float, tuple[int, ...]]:
        if i == j:
            return 0.0, ()
        found = []
        for k in range(i, j):
            (left, below), (right, above) = best(i, k), best(k + 1, j)
            found.append((_weight(i, k, j, overhead) + left + right, (k, *above, *below)))
        return min(found)

    value, order = best(1, depth)
    return value**2, list(order)


def of_tree(name: str, depth: int, overhead: float) -> float:
    """Error x cost of a named tree with its own best repeats."""
    cuts = Tree.named(name, depth).cuts
    total = 0.0
    for cut in cuts:
        # Stages whose target comes through this cut: down to the nearest boundary below that others were cut from.
        fed = {cut.at}
        for other in cuts:
            if other.source in fed:
                fed.add(other.at)
        total += math.sqrt(len(fed) * (cut.source - cut.at + overhead))
    return total**2


def _weight(i: int, k: int, j: int, overhead: float) -> float:
    return math.sqrt((k - i + 1) * (j - k + overhead))

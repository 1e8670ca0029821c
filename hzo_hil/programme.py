"""The dynamic programme over trees, for one assumed path length: which cuts, ways, steps and repeats cost least. Pure.

With a multiplier lam, a cut contributes the minimum over its way, step and repeats of (cost + lam * error energy that
its noise and truncation cause in the gradients of the stages below it), and sums over a tree, so that

    V(i, j) = min over k of  contribution(i, k, j) + V(i, k) + V(k + 1, j)

finds the best tree exactly. Optimal bracketing of Jacobian products without noise: Griewank and Naumann 2003.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.cutmodel import SETS, SMALLEST, Chosen, Problem, snapped
from hzo_hil.plan import Cut

Array = NDArray[Any]


class Programme:
    """The programme for one assumed path length and known excess errors of targets, over all triples (i, k, j)."""

    def __init__(self, problem: Problem, path: float, excess: Array, allowed: Array | None = None) -> None:
        self.problem = problem
        self.path = path
        p, depth = problem, problem.depth
        self.scale = max(float(p.whole[1:].sum()), 1e-300)
        grown = 1 + excess[None, :]
        target = p.target[None, :]
        self.noise = (p.read[None, :] * target + p.inject) * grown
        self.fixed = np.broadcast_to(p.rounding[None, :] * target * grown, p.inject.shape)
        bias = np.where(np.isfinite(p.bend), p.bend, 0) * p.curvature
        # What lies along the target adds up along a path as an amplitude, the rest as an energy.
        self.bent = bias**2 * (path * p.alignment**2 + 1 - p.alignment**2)
        permitted = np.isfinite(p.rows) & (True if allowed is None else allowed)
        call = p.call_cost / p.call_rows
        rows = np.where(permitted, p.rows, 0) * p.batch
        shot = np.where(permitted, p.row_cost, 0.0) + np.where(p.averages, 0.0, call)
        # What the rows cost once, and for every shot.
        self.once = np.where(permitted, rows * np.where(p.averages, call, 0.0), np.inf)
        self.each = np.where(permitted, rows * shot, np.inf)
        cheapest = (self.once + self.each).min(axis=0)
        ends = [cheapest[k, k + 1 :].min() for k in range(1, depth)]
        self.unit = max(float(np.sum([c for c in ends if np.isfinite(c)])), 1e-300)
        # Sums over the stages i..k that a target at k reaches: what error there does to their gradients.
        share = np.divide(p.own, p.target, out=np.zeros(depth + 1), where=p.target > 0) * p.batch / self.scale
        whole = p.whole / self.scale
        # An error that all samples have in common does not average: it is weighed like the gradient itself.
        alike = np.divide(whole, p.target, out=np.zeros(depth + 1), where=p.target > 0)
        self._reached, self._together, self.truncated = (np.zeros((depth + 1, depth + 1)) for _ in range(3))
        for k in range(1, depth + 1):
            gain, first, second, third = 1.0, 0.0, 0.0, 0.0
            for i in range(k, 0, -1):
                first += share[i] * gain
                second += alike[i] * gain
                third += whole[i]
                gain *= p.gain[i]
                self._reached[i, k], self._together[i, k], self.truncated[i, k] = first, second, third

    def reached(self, i: Array | int, k: Array | int, j: Array | int) -> Array:
        """What error energy from a cut at k from j does to the gradients of stages i..k."""
        found: Array = np.where(self.problem.common[k, j], self._together[i, k], self._reached[i, k])
        return found

    @cached_property
    def _triples(self) -> tuple[Array, Array, Array]:
        depth = self.problem.depth
        # Only cuts that are allowed: a named tree has few.
        allowed: Array = np.isfinite(self.each.min(axis=0))
        k, j = np.nonzero(allowed[1 : depth + 1, : depth + 1])
        k = k + 1
        i = np.concatenate([np.arange(1, at + 1) for at in k]) if len(k) else k
        return i, np.repeat(k, k), np.repeat(j, k)

    def best(self, multiplier: float) -> tuple[Chosen, ...] | None:
        """The plan with the least cost + multiplier * error energy, both relative; None where no tree is allowed."""
        depth = self.problem.depth
        i, k, j = self._triples
        value = np.full((depth + 2, depth + 1, depth + 1), np.inf)
        way = np.zeros(value.shape, dtype=np.int64)
        repeats, step = np.ones(value.shape), np.zeros(value.shape)
        for w in range(len(SETS)):
            found, n, eps = self._contribution(w, i, k, j, multiplier)
            better = found < value[i, k, j]
            a, b, c = i[better], k[better], j[better]
            value[a, b, c], way[a, b, c], repeats[a, b, c], step[a, b, c] = found[better], w, n[better], eps[better]
        total = np.zeros((depth + 2, depth + 2))
        cut = np.zeros((depth + 2, depth + 2), dtype=np.int64)
        for span in range(1, depth):
            first = np.arange(1, depth - span + 1)
            inner = first[:, None] + np.arange(span)[None, :]
            last = first + span
            sums = (
                value[first[:, None], inner, last[:, None]]
                + total[first[:, None], inner]
                + total[inner + 1, last[:, None]]
            )
            chosen = sums.argmin(axis=1)
            total[first, last] = sums[np.arange(len(first)), chosen]
            cut[first, last] = first + chosen
        if not np.isfinite(total[1, depth]):
            return None
        return tuple(self._traced(cut, way, step, repeats))

    def _traced(self, cut: Array, way: Array, step: Array, repeats: Array) -> Iterator[Chosen]:
        """The cuts that the programme found, parents first."""
        open_ = [(1, self.problem.depth)]
        while open_:
            first, last = open_.pop()
            if first >= last:
                continue
            at = int(cut[first, last])
            w, here = int(way[first, at, last]), Cut(at, last)
            eps = snapped(self.problem, w, here, float(step[first, at, last]))
            yield Chosen(here, w, eps, int(repeats[first, at, last]))
            open_ += [(first, at), (at + 1, last)]

    def _contribution(self, w: int, i: Array, k: Array, j: Array, multiplier: float) -> tuple[Array, Array, Array]:
        """(cost + multiplier * error, repeats, step) of cutting at k from j where stages i..k hang on it."""
        p = self.problem
        rows, once = self.each[w, k, j] / self.unit, self.once[w, k, j] / self.unit
        # A shot that costs nothing is still not taken for nothing.
        rows = np.maximum(rows, 1e-9 * once)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            strength = np.where(np.isfinite(rows), self.reached(i, k, j) * p.decoder[w, k, j] / 2, np.inf)
            noise, fixed = strength * self.noise[k, j], strength * self.fixed[k, j]
            bent = self.truncated[i, k] * np.where(np.isfinite(rows), self.bent[w, k, j], 0)
            largest = p.largest[w, k, j]
            smallest = np.maximum(p.step[k], SMALLEST * largest)

            def step_of(n: Array) -> Array:
                eps = ((noise / n + fixed) / np.maximum(2 * bent, 1e-300)) ** (1 / 6)
                return np.clip(eps, smallest, largest)

            def error_of(n: Array, eps: Array) -> Array:
                return (noise / n + fixed) / eps**2 + bent * eps**4

            # The step free: (noise / n)^(2/3) against n; the loop brings in its limits.
            free = 1.5 * (2 * bent) ** (1 / 3) * noise ** (2 / 3)
            n = np.clip((2 / 3 * multiplier * free / rows) ** 0.6, 1, p.most)
            for _ in range(4):
                n = np.clip(np.sqrt(multiplier * noise / step_of(n) ** 2 / rows), 1, p.most)
            n = np.where(np.isfinite(n), n, 1)
            down, up = np.floor(n), np.ceil(n)
            values = [rows * m + multiplier * error_of(m, step_of(m)) for m in (down, up)]
            n = np.where(values[0] <= values[1], down, up)
            eps = step_of(n)
            turned = self._reached[i, k] * p.turned[k, j]
            value = np.where(np.isfinite(rows), once + rows * n + multiplier * (error_of(n, eps) + turned), np.inf)
        return value, n, np.where(np.isfinite(eps), eps, largest)

    # --- single cuts -------------------------------------------------------------------------------------------

    def step(self, way: int, cut: Cut, repeats: int) -> float:
        """The step that balances noise and truncation of one cut on its own, for all stages below it alike."""
        k, j = cut.at, cut.source
        reached = float(self.reached(1, k, j))
        a = reached * self.problem.decoder[way, k, j] / 2 * (self.noise[k, j] / repeats + self.fixed[k, j])
        return best_step(a, self.truncated[1, k] * self.bent[way, k, j])

    def decided(self, cut: Cut, share: float, whole: float, repeats: int) -> Chosen:
        k, j = cut.at, cut.source
        p = self.problem
        found = []
        for w in range(len(SETS)):
            if not np.isfinite(p.rows[w, k, j]):
                continue
            a = p.batch * share * p.decoder[w, k, j] / 2 * (self.noise[k, j] / repeats + self.fixed[k, j])
            b = whole * self.bent[w, k, j]
            eps = snapped(p, w, cut, best_step(a, b))
            found.append((a / eps**2 + b * eps**4, w, eps))
        _, way, eps = min(found)
        return Chosen(cut, way, eps, repeats)


def best_step(noise: float, truncation: float) -> float:
    """The step that makes noise / eps^2 + truncation * eps^4 least (infinite where nothing is truncated).

    >>> round(best_step(2.0, 1.0), 9)
    1.0
    """
    return (noise / (2 * truncation)) ** (1 / 6) if truncation > 0 else math.inf

"""Timings side by side: every call in each round, in turn, so that a machine that slows down slows all of them.

Of a few calls on end the fastest counts: on a shared machine the others waited for somebody. It knows nothing of what
is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Seconds = dict[str, list[float]]


def in_turn(calls: Mapping[str, Callable[[], Any]], rounds: int, best_of: int = 3, warm: int = 3) -> Seconds:
    """Seconds of each call in each round. A call that returns seconds itself (a peer's) is taken at its word."""
    found: Seconds = {name: [] for name in calls}
    for number in range(-warm, rounds):
        for name, call in calls.items():
            spent = min(_timed(call) for _ in range(best_of))
            if number >= 0:
                found[name].append(spent)
    return found


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    answer = call()
    return answer if isinstance(answer, float) else time.perf_counter() - start


def ratio(seconds: Seconds, name: str, base: str) -> float:
    """Median over the rounds of one call's time over another's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))


def middle(seconds: Seconds, name: str) -> float:
    return statistics.median(seconds[name])


def spread(seconds: Seconds, name: str, base: str) -> list[float]:
    """The ratio's quartiles."""
    found = [a / b for a, b in zip(seconds[name], seconds[base], strict=True)]
    low, _, high = statistics.quantiles(found, n=4)
    return [round(low, 3), round(high, 3)]

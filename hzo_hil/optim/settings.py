"""Bounds on settings, and the one error for a setting outside them. It knows no method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hzo_hil.devices.errors import BadInput


@dataclass(frozen=True)
class Bound:
    """A finite number in [low, high]; `open_low`, `open_high` leave the end itself out. `whole`: an integer."""

    low: float = 0.0
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    whole: bool = False

    def check(self, where: str, name: str, value: Any) -> None:
        if not self._holds(value):
            raise BadInput(f"{where}: {name} is {value!r}: it must be {self}")

    def _holds(self, value: Any) -> bool:
        try:
            number = float(value)
        except (TypeError, ValueError):
            return False
        if not math.isfinite(number) or (self.whole and (isinstance(value, bool) or number != int(number))):
            return False
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:g}"
        high = f" and {'below' if self.open_high else 'at most'} {self.high:g}" if math.isfinite(self.high) else ""
        return f"{'a whole number' if self.whole else 'a number'}, {low}{high}"


NOT_NEGATIVE = Bound()
POSITIVE = Bound(open_low=True)
FRACTION = Bound(high=1.0, open_high=True)
SHARE = Bound(high=1.0, open_low=True)
COUNT = Bound(low=1, whole=True)


def choose(where: str, name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise BadInput(f"{where}: unknown {name} {value!r}: choose {', '.join(choices)}")
    return value

"""What the kit found: rows, figures, and what to change. Plain data; knows no device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Outcome = Literal["pass", "fail", "skip"]
_WORDS: dict[Outcome, str] = {"pass": "passed", "fail": "failed", "skip": "skipped"}
Group = Literal["core", "measured", "optional"]


@dataclass(frozen=True)
class Row:
    """One check. `change`: what to do about a failure, or advice that goes with a pass; "" where there is none."""

    name: str
    group: Group
    outcome: Outcome
    detail: str
    change: str = ""


@dataclass(frozen=True)
class Report:
    """`figures` are measured, in device units and seconds. `false_alarm`: the chance that a sound device fails."""

    identity: str
    rows: Sequence[Row]
    figures: Mapping[str, Any] = field(default_factory=dict)
    false_alarm: float = 0.0

    @property
    def passed(self) -> bool:
        return not any(r.outcome == "fail" for r in self.rows)

    def failed(self) -> list[str]:
        return [r.name for r in self.rows if r.outcome == "fail"]

    def to_change(self) -> list[str]:
        """Failures first, then advice; each remedy once."""
        ordered = sorted((r for r in self.rows if r.change), key=lambda r: r.outcome != "fail")
        return list(dict.fromkeys(f"{r.name}: {r.change}" for r in ordered))

    def as_json(self) -> dict[str, Any]:
        return {
            "identity": self.identity,
            "passed": self.passed,
            "rows": [asdict(r) for r in self.rows],
            "figures": dict(self.figures),
            "false_alarm": self.false_alarm,
            "to_change": self.to_change(),
        }

    def table(self) -> str:
        wide = max((len(r.name) for r in self.rows), default=0)
        lines = [f"{r.outcome:<5} {r.group:<9} {r.name:<{wide}}  {r.detail}" for r in self.rows]
        lines += ["", "measured"] + [f"  {line}" for line in _figure_lines(self.figures)]
        count = {o: sum(r.outcome == o for r in self.rows) for o in _WORDS}
        verdict = "PASSED" if self.passed else "FAILED"
        counts = ", ".join(f"{count[o]} {word}" for o, word in _WORDS.items())
        chance = f"a sound device fails by chance at most {self.false_alarm:.2g} of the time"
        lines += ["", f"{self.identity}: {verdict}, {counts}; {chance}"]
        change = self.to_change()
        lines += ["", "what to change" if change else "nothing to change"] + [f"  - {text}" for text in change]
        return "\n".join(lines)


def _figure_lines(figures: Mapping[str, Any], before: str = "") -> list[str]:
    lines = []
    for name, value in figures.items():
        label = f"{before}{name}"
        if isinstance(value, Mapping):
            lines += _figure_lines(value, f"{label}, ")
        else:
            shown = f"{value:.4g}" if isinstance(value, float) else "not found" if value is None else str(value)
            lines.append(f"{label:<44} {shown}")
    return lines

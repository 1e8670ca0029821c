"""The running account of everything asked of a device, per purpose, and the budgets on it.

It knows neither devices nor tensors: callers say what was spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from hzo_hil.devices.errors import BadInput, BudgetSpent

PURPOSES = ("forward", "probes", "leaf", "evaluation", "calibration", "health")
UNBUDGETED = ("evaluation",)


@dataclass
class Account:
    """Totals of one purpose. Resends count as calls, bytes and seconds, and as `resent`, not as queries."""

    queries: int = 0
    stage_evaluations: int = 0
    calls: int = 0
    writes: int = 0
    bytes: int = 0
    device_seconds: float = 0.0
    resent: int = 0

    def add(self, other: Account) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))


@dataclass
class Budget:
    """Limits over all purposes but evaluation; None means no limit."""

    max_queries: int | None = None
    max_device_seconds: float | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and not value > 0:
                raise BadInput(f"{f.name} is {value}: a budget must be above zero (leave it out for no limit)")


@dataclass(eq=False)
class Ledger:
    """Accounts by purpose and counted events (`one_sided`, `shifted`, `clipped`, `folded`, `saturated:k`, ...)."""

    budget: Budget = field(default_factory=Budget)
    accounts: dict[str, Account] = field(default_factory=lambda: {p: Account() for p in PURPOSES})
    events: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> Account:
        total = Account()
        for account in self.accounts.values():
            total.add(account)
        return total

    def charge(self, purpose: str, spent: Account) -> None:
        self.accounts[purpose].add(spent)

    def check(self, purpose: str, queries: int) -> None:
        """Raise `BudgetSpent` if `queries` more for this purpose would exceed the budget."""
        if purpose in UNBUDGETED:
            return
        used = [a for p, a in self.accounts.items() if p not in UNBUDGETED]
        if self.budget.max_queries is not None:
            spent = sum(a.queries for a in used)
            if spent + queries > self.budget.max_queries:
                raise BudgetSpent(
                    f"the budget of {self.budget.max_queries:,} queries is spent: {spent:,} used and the next batch"
                    f" needs {queries:,}. Raise max_queries and resume to go on"
                )
        if self.budget.max_device_seconds is not None:
            seconds = sum(a.device_seconds for a in used)
            if seconds >= self.budget.max_device_seconds:
                raise BudgetSpent(
                    f"the budget of {self.budget.max_device_seconds:g} device seconds is spent ({seconds:.3f} used)."
                    " Raise max_device_seconds and resume to go on"
                )

    def as_dict(self) -> dict[str, Any]:
        return {
            "purposes": {p: asdict(a) for p, a in self.accounts.items()},
            "total": asdict(self.total),
            "events": dict(sorted(self.events.items())),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"accounts": {p: asdict(a) for p, a in self.accounts.items()}, "events": dict(self.events)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.accounts = {p: Account(**state["accounts"].get(p, {})) for p in PURPOSES}
        self.events = Counter(state["events"])


_recording: list[Ledger] = []


@contextmanager
def recording(ledger: Ledger) -> Iterator[Ledger]:
    """While open, everything any module spends is charged to `ledger` too, and its budget holds.

    A plain stack, not a context variable: on a GPU host backward runs in autograd's own thread.
    """
    _recording.append(ledger)
    try:
        yield ledger
    finally:
        _recording.remove(ledger)


def open_ledgers() -> tuple[Ledger, ...]:
    """Each ledger being recorded to, once, however often it was opened."""
    return tuple(dict.fromkeys(_recording))


class Books:
    """One module's ledger and every recording that is open: what it spends is entered in all of them."""

    def __init__(self, own: Ledger) -> None:
        self.own = own

    def _all(self) -> tuple[Ledger, ...]:
        return (self.own, *(b for b in open_ledgers() if b is not self.own))

    def check(self, purpose: str, queries: int) -> None:
        for ledger in self._all():
            ledger.check(purpose, queries)

    def charge(self, purpose: str, spent: Account) -> None:
        for ledger in self._all():
            ledger.charge(purpose, spent)

    def count(self, event: str, number: int = 1) -> None:
        if number:
            for ledger in self._all():
                ledger.events[event] += number

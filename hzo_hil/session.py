"""`record`: the ledger, the budgets and a run folder for a training loop of your own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hzo_hil.devices.errors import BadInput, BudgetSpent, RunStopped
from hzo_hil.ledger import Budget, Ledger, recording
from hzo_hil.link import link_to
from hzo_hil.records import RunFolder


class Session:
    """What `record` gives you. `stopped` says why the loop was ended by a budget, or is None."""

    def __init__(self, folder: RunFolder, ledger: Ledger) -> None:
        self.folder = folder
        self.ledger = ledger
        self.stopped: str | None = None
        self.results: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}
        self._step = 0

    @property
    def limited(self) -> bool:
        budget = self.ledger.budget
        return budget.max_queries is not None or budget.max_device_seconds is not None

    @property
    def path(self) -> Path:
        return self.folder.path

    def log(self, step: int, **values: Any) -> None:
        """A row of metrics, with what has been spent so far."""
        self._step = step
        self.folder.log({"step": step, **values, "queries": self.ledger.total.queries})

    def keep(self, **objects: Any) -> None:
        """Models and optimisers (with `state_dict`) to be saved by `checkpoint`, and when a budget ends the loop."""
        self._kept |= objects

    def checkpoint(self) -> None:
        states = {name: thing.state_dict() for name, thing in self._kept.items()}
        clocks = [link_to(d).clock for d in self._devices()]
        state = {**states, "step": self._step, "ledger": self.ledger.state_dict(), "device clocks": clocks}
        self.folder.save_checkpoint(state, "last")

    def restore(self) -> int:
        """Load the last checkpoint into what is kept; returns its step."""
        state = self.folder.load_checkpoint("last")
        for name, thing in self._kept.items():
            thing.load_state_dict(state[name])
        self.ledger.load_state_dict(state["ledger"])
        for device, clock in zip(self._devices(), state.get("device clocks", []), strict=False):
            link_to(device).clock = clock
        self._step = int(state["step"])
        self.folder.truncate_metrics(self._step)
        return self._step

    def _devices(self) -> list[Any]:
        """Of the models that are kept."""
        modules = [m for thing in self._kept.values() if hasattr(thing, "modules") for m in thing.modules()]
        networks = [m.network for m in modules if hasattr(m, "network")]
        return list({id(d): d for n in networks for d in getattr(n, "devices", ())}.values())


@contextmanager
def record(
    run_dir: str | Path | None = None, *, name: str = "run", config: Mapping[str, Any] | None = None,
    resume: bool = False, max_queries: int | None = None, max_device_seconds: float | None = None,
) -> Iterator[Session]:  # fmt: skip
    """Everything that opaque modules spend inside is counted, budgeted and written to `run_dir`.

    A spent budget (or another `RunStopped`) ends the block, not the program: what is kept is saved, `stopped` says why.

    >>> with hzo_hil.record("runs/mine", max_queries=10_000) as run:    # doctest: +SKIP
    ...     run.keep(model=model, optimizer=optimizer)
    ...     for step in range(100):
    ...         ...
    ...         run.log(step, loss=loss.item())
    """
    budget = Budget(max_queries, max_device_seconds)
    if resume and run_dir is None:
        raise BadInput("resume=True needs run_dir: the folder of the run to go on with")
    if resume and run_dir is not None:
        folder = RunFolder.open(run_dir)
        folder.hold()
        folder.mark("running")
    else:
        folder = RunFolder.create(run_dir, {"name": name, **(config or {})})
    session = Session(folder, Ledger(budget))
    status = "failed"
    with folder, recording(session.ledger):
        try:
            yield session
            status = "finished"
        except RunStopped as error:
            session.stopped, status = str(error), "stopped"
            print(f"stopped: {error}", file=sys.stderr)
            if session._kept:
                session.checkpoint()
            if isinstance(error, BudgetSpent) and not session.limited:
                raise  # the budget is that of a session around this one
        except KeyboardInterrupt:
            status = "stopped"
            raise
        finally:
            summary = {"ledger": session.ledger.as_dict(), "stopped": session.stopped, **session.results}
            folder.finish(summary, status)  # type: ignore[arg-type]

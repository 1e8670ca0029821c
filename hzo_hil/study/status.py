"""How a study stands, read from its folder: also while another process runs it, or after it was killed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hzo_hil.metricsfile import read_metrics
from hzo_hil.study.folder import StudyFolder
from hzo_hil.study.runfolder import State, read_result
from hzo_hil.study.running import counts

ERRORS = 10


def status_of(folder: StudyFolder) -> dict[str, Any]:
    """Counts, the commonest errors, and what was begun and is not over, with who began it."""
    found = folder.look()
    errors: Counter[str] = Counter()
    begun = []
    for run, state in found.states.items():
        if state is State.FAILED:
            result = read_result(folder.run(run)) or {}
            errors[f"{result.get('error_type')}: {result.get('error')}"] += 1
        elif state is State.BEGUN:
            events = read_metrics(folder.run(run) / "events.jsonl")
            last = events[-1] if events else {}
            begun.append(f"{run[:12]} {last.get('event', 'begun')} by {last.get('by', '?')}")
    listed = [f"{number} x {text}" for text, number in errors.most_common(ERRORS)]
    return {**counts(folder, found), "errors": listed, "under_way": begun}

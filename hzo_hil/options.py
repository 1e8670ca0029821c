"""Options of an `Opaque` that are out of bounds, or contradict one another or its stages: refused when it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hzo_hil.devices.errors import BadInput

if TYPE_CHECKING:
    from hzo_hil.module import Opaque


def check(module: Opaque) -> None:
    """Raise BadInput for the first one that cannot be. Needs network and rules; nothing is asked."""
    if module.max_bad_steps < 1 or not 0 < module.max_saturated <= 1:
        raise BadInput("max_bad_steps must be at least 1 and max_saturated above 0 and at most 1")
    if module.buffer_bytes < 1:
        raise BadInput(f"buffer_bytes is {module.buffer_bytes}: with no room for early answers nothing could be asked")
    _check_credit(module)
    _check_memory(module)


def _check_credit(module: Opaque) -> None:
    if module.credit not in ("hzo", "twin"):
        raise BadInput(f"unknown credit {module.credit!r}: choose hzo or twin")
    missing = [s.label for s in module.network.stages if s.twin is None]
    if module.credit == "twin" and missing:
        raise BadInput(f"credit='twin' needs a twin of every stage; none for {', '.join(missing)}")


def _check_memory(module: Opaque) -> None:
    if module.memory not in ("store", "recompute"):
        raise BadInput(f"unknown memory {module.memory!r}: choose store or recompute")
    if module.memory == "store":
        return
    if module.credit == "twin":
        raise BadInput("credit='twin' needs all activations at once and cannot recompute them: use memory='store'")
    asking = [s.label for s, r in zip(module.network.stages, module.rules, strict=True) if r is not None and r.queries]
    if asking:
        raise BadInput(
            f"the leaf rule of {', '.join(asking)} asks the device after the last probe, when recomputed activations"
            " are gone again: use memory='store', or a rule without queries (a twin, delta with a known derivative)"
        )

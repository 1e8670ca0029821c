"""One step of an `Opaque` on its devices: what is lost is counted, nothing stays in flight, too much stops the run.

Knows what a step may cost, not what it asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from hzo_hil.devices.errors import BadStep, Saturated, TooManyBadSteps
from hzo_hil.tending import tend

if TYPE_CHECKING:
    from hzo_hil.module import Opaque


@contextmanager
def one_step(module: Opaque, completes: bool = False) -> Iterator[None]:
    """Leave nothing in flight; count lost steps; stop after too many in a row, or when read-outs saturate.

    `completes`: with this a training step is done, and the row of lost ones ends.
    """
    try:
        with module.dispatch.abandoned_on_error():
            tend(module.dispatch)
            module.dispatch.tallies.clear()
            yield
    except BadStep as error:
        module.bad_steps += 1
        module.bad_in_a_row += 1
        module.dispatch.count("bad_steps")
        if module.bad_in_a_row >= module.max_bad_steps:
            raise TooManyBadSteps(f"{module.bad_in_a_row} steps in a row were lost. The last: {error}") from error
        raise
    if completes:
        module.bad_in_a_row = 0
    for boundary, (saturated, total) in sorted(module.dispatch.tallies.items()):
        if saturated > module.max_saturated * total:
            raise Saturated(
                f"{saturated} of {total} answers at boundary {boundary} sit at the end of the read-out's range, more"
                f" than max_saturated={module.max_saturated:g} allows. Lower the gain before it, widen the read-out's"
                " range, or raise max_saturated"
            )

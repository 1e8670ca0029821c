"""A short look at a network that was calibrated before: do its figures still hold?

One pair of samples a stage, where calibration asks two; and two forward passes, which whoever calls has paid for. What
training moves fast (targets, likeness of samples' gradients, noise of the forward pass) comes from the passes; noise,
gain and curvature of a stage are those known unless the look contradicts them. Knows neither plans nor tolerances.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.calibrate.asking import Asker
from hzo_hil.calibrate.leaves import LeafOf, energies, products_of
from hzo_hil.calibrate.looks import curvatures, design, look
from hzo_hil.calibrate.survey import unsteady
from hzo_hil.calibration import Calibration, Measured
from hzo_hil.dispatch import Dispatch
from hzo_hil.streams import generator, stream_key
from hzo_hil.updates import LeafRule

if TYPE_CHECKING:
    from hzo_hil.calibrate import Seen

Array = NDArray[Any]
SAMPLES = 2
QUERIES = 16
"""Of each stage: two samples, two steps both ways, all of it twice."""


def look_again(
    dispatch: Dispatch,
    seen: Seen,
    known: Calibration,
    rules: Sequence[LeafRule | None],
    wanted: Sequence[bool],
    leaf_of: LeafOf,
    *,
    key: int,
) -> Calibration:
    """`known` as it would be now. A stage that does not answer to its input at all has gain 0. Sends QUERIES rows a
    stage, purpose `calibration`.
    """
    network = dispatch.network
    asker = Asker(dispatch, stream_key(key, "queries"))
    activations = {k: (a + seen.passes[1][k]).astype(np.float64) / 2 for k, a in seen.passes[0].items()}
    looks = []
    for k in range(network.depth):
        base = activations[k][:SAMPLES]
        signs = generator(key, "signs", k).integers(0, 2, (1, network.width(k))) * 2.0 - 1.0
        asked = design(network, k, base, np.repeat(signs, len(base), axis=0))
        looks.append(look(asked, asker.answers(k, k + 1, asked.rows)))
    # Where noise hides even the slope, a look this short says nothing of how it bends.
    heard = [k for k, x in enumerate(looks) if x.gain > x.slope_noise]
    bent = dict(zip(heard, curvatures([looks[k] for k in heard]), strict=True)) if heard else {}
    stages = []
    for k, (old, new) in enumerate(zip(known.stages, looks, strict=True)):
        found = new.gain_interval(stream_key(key, "bootstrap", k))
        if k not in bent:
            # A bound is all there is: the gain may be as large, and is claimed to be no smaller.
            found = Measured(found.high, found.low, found.high)
        gain = _believed(old.gain, found)
        curvature = _believed(old.curvature, bent[k]) if k in bent else old.curvature
        amplitude = float(np.sqrt(np.mean(activations[k] ** 2)))
        noise = _believed(old.noise, new.noise)
        stages.append(replace(old, noise=noise, gain=gain, curvature=curvature, amplitude=amplitude))
    products = products_of(seen.tops[0], [s.gain.value for s in stages], [s.likeness for s in stages])
    own, shared, floor = energies(network, rules, wanted, seen.passes, products, leaf_of, stream_key(key, "leaves"))
    changed = (seen.tops[0] - seen.tops[1]).astype(np.float64)
    return replace(
        known, rows=len(seen.tops[0]), stages=tuple(stages),
        unsteady=unsteady(seen.passes, network.depth), target=tuple(float(np.mean(np.diag(p))) for p in products),
        top_error=float(np.mean(np.sum(changed**2, axis=1)) / 2), own=tuple(own), shared=tuple(shared),
        floor=tuple(floor),
    )  # fmt: skip


def _believed(old: Measured, new: Measured) -> Measured:
    """The old figure, from more samples, while the two intervals meet."""
    return old if new.low <= old.high and old.low <= new.high else new

"""Cuts that a device probes by itself: which they are, and what it is asked.

Rows of probes differ from what they perturb in few places, and their answers come down to one number an input. A device
with the method `run_probes` is sent the activations, the colours and the weights instead, and sends back those numbers:
of a convolution of 3 x 3 on 64 channels some 400 times fewer bytes. Pure: it says what to ask, dispatch asks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hzo_hil.colouring import Colouring
from hzo_hil.devices.api import Probes, Segment
from hzo_hil.health import watch_of
from hzo_hil.network import Network
from hzo_hil.resolve import CutPlan
from hzo_hil.values import endless

ROWS = 1 << 16  # of one call, about: more take long before the host can be interrupted


def offloaded(network: Network, planned: CutPlan) -> bool:
    """Whether the device of a cut is asked to probe by itself: it offers to, each colour is asked once and to one
    distance, and neither values nor answers have ends that the host would have to heed or count.
    """
    cut, (hop, *more) = planned.cut, network.route(planned.cut.at, planned.cut.source)
    if more or len(hop.parts) > 1 or not (hop.codec_in.identity and hop.codec_out.identity):
        return False
    if planned.shared or planned.repeats > 1 or len(planned.scheme.levels) > 1:
        return False
    if network.structure(cut.at, cut.source) == "dense" and planned.set.name != "coordinate":
        return False
    if network.colouring(cut.at, cut.source).axes(network.width(cut.source)) is None:
        return False
    read = network.stages[cut.source - 1].read
    ends = endless(*network.limits(cut.at)) and endless(read.out_low, read.out_high)
    plain = watch_of(hop.device) is None and not getattr(hop.device, "by_sample", False)
    return ends and plain and getattr(hop.device, "run_probes", None) is not None


def samples_per_call(rows: int) -> int:
    """`rows`: of a sample."""
    return max(1, ROWS // rows)


def questions(
    segment: Segment,
    base: Any,
    colouring: Colouring,
    eps: float,
    paired: bool,
    target: Any,
    key: int,
    reference: Any = None,
) -> Iterator[Probes]:
    """All of a cut, some samples at a time. `base` [samples, width]; `target` at its source and `reference` [samples,
    outputs]. Arrays, or tensors of one dtype.
    """
    axes = colouring.axes(target.shape[1])
    assert axes is not None
    weights = target.astype(base.dtype, copy=False) if isinstance(target, np.ndarray) else target
    rows = Probes(segment, base, axes, eps, paired, weights, reference).rows
    each = samples_per_call(rows)
    for first in range(0, len(base), each):
        some = slice(first, first + each)
        known = None if reference is None else reference[some]
        yield Probes(segment, base[some], axes, eps, paired, weights[some], known, key + first * rows)

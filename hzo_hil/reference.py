"""The forward pass: activations at the boundaries, by queries.

A device with taps answers for all its stages in one query; without, training asks stage by stage. Evaluation needs no
inner boundary and asks for the longest segments the device can run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.credit.hzo import decoded, padded
from hzo_hil.dispatch import Call, Dispatch
from hzo_hil.network import Hop
from hzo_hil.scheduler import pack, rows_per_call
from hzo_hil.streams import row_keys
from hzo_hil.values import endless, within

Array = NDArray[Any]


def forward_pass(
    dispatch: Dispatch, inputs: Array, *, purpose: str, key: int, first: int = 0, repeats: int = 1, inner: bool,
    lo: int = 0, hi: int | None = None, keep: bool = True, per_sample: int = 1,
) -> dict[int, Array]:  # fmt: skip
    """Activations [samples, width] by boundary: all of them if `inner`, else at least the last.

    `key`, `first`: the noise stream and the number of its first row. `lo`, `hi`: only stages lo+1..hi. Without `keep`
    the same way is gone, and only what comes out of it is handed back and held. `per_sample` inputs in a row belong to
    one sample: a pool sends them to one member.
    """
    network = dispatch.network
    activations = {lo: inputs}
    for hop, taps in network.forward_hops(inner, lo, hi):
        taps = taps if keep else ()
        low, high = network.limits(hop.lo)
        driven = within(activations[hop.lo], low, high)
        if not endless(low, high):
            dispatch.count(f"clipped:{hop.lo}", int(np.count_nonzero(driven != activations[hop.lo])))
        parts: dict[int, Array] = {}
        tapped = {b: np.empty((len(inputs), hop.device.capabilities.width(b))) for b in taps}

        def calls(hop: Hop = hop, taps: tuple[int, ...] = taps, driven: Array = driven) -> Iterator[Call]:
            rows = rows_per_call(dispatch.link(hop.device).capabilities, hop.in_ports, repeats, 1)
            for number, part in enumerate(hop.parts):
                for start, stop in pack(len(driven), rows):
                    # Parts and stages far apart in the stream: a row's key does not depend on the batch.
                    offset = (hop.lo << 48) + (number << 36) + (first + start) * repeats
                    keys = row_keys(key, offset, (stop - start) * repeats)[::repeats]
                    block = padded(driven[start:stop, part.inputs], hop)
                    yield Call(hop, part, block, purpose, keys, repeats, taps, (number, start), start, per_sample)

        for answer in dispatch.stream(calls()):
            number, start = answer.call.tag
            values = decoded(answer)
            if number not in parts:
                parts[number] = np.empty((len(inputs), values.shape[1]), dtype=values.dtype)
            parts[number][start : start + len(values)] = values
            for boundary, tap in answer.taps.items():
                tapped[boundary][start : start + len(tap)] = tap
        if len(hop.parts) == 1 and parts:
            outputs = parts[0]
        else:
            dtype = np.result_type(*parts.values()) if parts else hop.device.capabilities.dtype
            outputs = np.zeros((len(inputs), network.width(hop.hi)), dtype=dtype)
            for number, block in sorted(parts.items()):
                part = hop.parts[number]
                outputs[:, part.outputs] += part.sign * block
        if not keep:
            del activations[hop.lo]
        activations[hop.hi] = outputs
        for k in range(hop.lo + 1, hop.hi):
            stage = network.stages[k]
            if stage.segment.lo in tapped:
                activations[k] = stage.codec_in.decode(tapped[stage.segment.lo]).astype(outputs.dtype)
    return activations

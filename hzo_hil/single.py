"""One stage alone, with values of its own: how leaf rules and the learning of twins ask.

It knows neither what the values are for nor what is made of the answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.credit.hzo import decoded, padded
from hzo_hil.dispatch import Call
from hzo_hil.network import Part
from hzo_hil.programming import Image
from hzo_hil.scheduler import pack, rows_per_call
from hzo_hil.streams import row_keys

if TYPE_CHECKING:
    from hzo_hil.module import Opaque

Array = NDArray[Any]


def ask_alone(
    module: Opaque, k: int, values: Mapping[str, Array], inputs: Array, *, tile: Any, key: int, tenant: tuple[Any, ...],
    purpose: str,
) -> Array:  # fmt: skip
    """Answers [samples, out] of one block of logical stage k (0-based) that holds `values`, to `inputs` [samples, in].

    `tenant` names these values, `key` their noise; averaged as leaf queries are.
    """
    hop = module.network.route(k, k + 1)[0]
    stage = module.network.stages[k]
    dtype = hop.device.capabilities.dtype
    cast = {n: np.asarray(v, dtype=dtype) for n, v in values.items()}
    images: dict[int, Image] = {
        p: ((module.owner, k, tile, *tenant), block, key)
        for p, block in module.written.images(k, None, cast).items()
    }  # fmt: skip
    inputs = np.clip(inputs, *module.network.limits(k)).astype(dtype, copy=False)
    repeats = module.resolved.leaf_repeats
    rows = rows_per_call(hop.device.capabilities, hop.in_ports, repeats, 1)
    outputs = np.zeros((len(inputs), stage.core[0]), dtype=np.float64)

    def calls(part: Part, number: int) -> Iterator[Call]:
        for first, last in pack(len(inputs), rows):
            keys = row_keys(key, (number << 36) + first * repeats, (last - first) * repeats)
            block = padded(inputs[first:last, part.inputs], hop)
            yield Call(hop, part, block, purpose, keys[::repeats], repeats, tag=first, first=first)

    with module.holding(images):
        for number, part in enumerate(p for p in hop.parts if p.tile == tile):
            for answer in module.dispatch.stream(calls(part, number)):
                block = decoded(answer)
                first = answer.call.tag
                outputs[first : first + len(block), : block.shape[1]] += part.sign * block
    return outputs

"""Names for randomness: every stream is keyed by what it is for, never by when it was drawn.

Keys are 64-bit integers. Rows of a batch get consecutive keys from their stream's base, so that a row
keeps its key however the batch is split. What a device or a generator makes of a key is its own affair.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def stream_key(*name: int | str) -> int:
    """A 64-bit key for a named stream, e.g. `stream_key(seed, "probes", step, cut)`. Stable across machines."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in name)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def row_keys(base: int, first: int, count: int) -> NDArray[np.uint64]:
    """Keys `[count]` of rows first..first+count-1 of a stream (modulo 2^64)."""
    start = np.uint64((base + first) % 2**64)
    with np.errstate(over="ignore"):
        return start + np.arange(count, dtype=np.uint64)


def generator(*name: int | str) -> np.random.Generator:
    """A NumPy generator for host-side draws of a named stream (shuffles, random directions)."""
    return np.random.Generator(np.random.Philox(key=stream_key(*name)))


def torch_generator(*name: int | str) -> Any:
    """A torch CPU generator for a named stream (initial values of host modules)."""
    import torch

    return torch.Generator().manual_seed(stream_key(*name) % 2**63)

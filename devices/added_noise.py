"""Noise that the host adds to what a device answers: the question of a noise study, put to a real instrument.

The device is asked as always and knows nothing of it; who reads the run does, for the device's identity says so. It
knows how to add numbers, not how to draw them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from hzo_hil.devices.api import Array, Capabilities, Device, Pipelined, Query, Reply, Segment
from hzo_hil.devices.wrapper import Wrapper

Draw = Callable[[Array, int, int], Array]
"""Of keys [batch], a boundary and a width: standard normal numbers [batch, width], the same for the same keys."""

NOTE = "added on the host"


class AddedNoise(Wrapper):
    """`device`, with Gaussian noise of standard deviation `std` (device units) on every output and tap. Pipelined if
    the device is.

    Rows that come with keys have the noise that `draw` gives for them, so that it depends on neither the split into
    batches nor the order of answers; others have that of a generator seeded by `seed`, in the order of answers. Where
    the device averages n repeats the noise is smaller by sqrt(n), as if it had been there in every shot.
    """

    def __new__(cls, device: Device, std: float, draw: Draw, seed: int = 0) -> AddedNoise:
        return super().__new__(_PipelinedAddedNoise if isinstance(device, Pipelined) else cls)

    def __init__(self, device: Device, std: float, draw: Draw, seed: int = 0) -> None:
        if not (math.isfinite(std) and std > 0):
            raise ValueError(f"noise is added with a standard deviation above 0, not {std}")
        super().__init__(device)
        self.std = std
        self._draw = draw
        self._rng = np.random.default_rng(seed)
        self._described: tuple[Capabilities, Capabilities] | None = None

    @property
    def capabilities(self) -> Capabilities:
        found = self.device.capabilities
        if self._described is None or self._described[0] is not found:
            own = found.read_noise
            told = replace(
                found,
                identity=f"{found.identity} + noise {self.std:g} {NOTE}",
                read_noise=None if own is None else math.hypot(own, self.std),
            )
            self._described = found, told
        return self._described[1]

    def run(self, segment: Segment, inputs: Array, **options: Any) -> Reply:
        reply = self.device.run(segment, inputs, **options)
        noisy: Reply = self._noisy(reply, segment, options.get("keys"), options.get("repeats", 1))
        return noisy

    def snapshot(self) -> Mapping[str, Any]:
        return {**self.device.snapshot(), "added_noise": {"std": self.std, "note": NOTE}}

    def _noisy(self, reply: Any, segment: Segment, keys: Array | None, repeats: int) -> Any:
        size = self.std / math.sqrt(repeats)
        add = partial(self._added, keys=keys, size=size)
        if isinstance(reply, np.ndarray):  # a driver may leave the reply around its outputs out
            return add(reply, segment.hi)
        if not isinstance(reply, Reply):  # no answer at all: for whoever asked to judge
            return reply
        taps = {b: add(values, b) for b, values in reply.taps.items()}
        return replace(reply, outputs=add(reply.outputs, segment.hi), taps=taps)

    def _added(self, values: Array, boundary: int, keys: Array | None, size: float) -> Array:
        values = np.asarray(values)
        if values.dtype.kind != "f":  # raw counts of a converter: noise must not be rounded to them
            values = values.astype(self.capabilities.dtype)
        if keys is None:
            drawn = self._rng.standard_normal(values.shape)
        else:
            drawn = self._draw(keys, boundary, values.shape[1])
        return values + (size * drawn).astype(values.dtype)


class _PipelinedAddedNoise(AddedNoise):
    """Of a device with several queries in flight."""

    device: Any

    def __init__(self, device: Device, std: float, draw: Draw, seed: int = 0) -> None:
        super().__init__(device, std, draw, seed)
        self._asked: dict[int, Query] = {}

    @property
    def window(self) -> int:
        return int(self.device.window)

    def submit(self, query: Query) -> int:
        ticket = int(self.device.submit(query))
        self._asked[ticket] = query
        return ticket

    def poll(self, timeout: float) -> list[tuple[int, Reply | Exception]]:
        return [(ticket, self._answered(ticket, result)) for ticket, result in self.device.poll(timeout)]

    def cancel(self) -> None:
        self.device.cancel()
        self._asked.clear()

    def _answered(self, ticket: int, result: Reply | Exception) -> Reply | Exception:
        query = self._asked.pop(ticket, None)
        if query is None or isinstance(result, Exception):
            return result
        noisy: Reply = self._noisy(result, query.segment, query.keys, query.repeats)
        return noisy

"""Which impulses measure a convolution with the same kernel everywhere, in how few images, and the kernel from the
answers.

An impulse in one channel shows every tap of the kernel that its answer does not lose at an edge or between strides. So
impulses in several channels share an image, at places so far apart that their answers do not meet; places that are left
over repeat them, and answers to the same tap are averaged. Groups answer for themselves and are probed together. Knows
the declared reach, never steps, noise or queries.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hzo_hil import convolution
from hzo_hil.colouring import Colouring
from hzo_hil.devices.api import Local

Array = NDArray[Any]


@lru_cache(maxsize=256)
def impulses(local: Local) -> Impulses | None:
    """None where taps meet again round a small circle, so that no impulse tells them apart, or nothing is seen."""
    axes = [_views(local, k) for k in range(len(local.shape))]
    if not all(axes) or any(len(set(view.outputs)) < len(view.outputs) for axis in axes for view in axis):
        return None
    return Impulses(local, [list(_lines(axis)) for axis in axes])


@dataclass(frozen=True)
class _View:
    """What an impulse at one place of an axis shows: `taps`, and the output that shows each."""

    place: int
    taps: tuple[int, ...]
    outputs: tuple[int, ...]


Line = list[list[_View]]
"""Views along an axis whose outputs do not meet: for every kind, which together show every tap, those of it."""


class Impulses(Colouring):
    """As a colouring: a colour is an image. `apply` takes what `kernel` makes of the answers."""

    def __init__(self, local: Local, axes: Sequence[Sequence[Line]]) -> None:
        self.local = local
        self.width = local.widths[0]
        self._inputs = local.in_channels // local.groups
        images: list[list[int]] = []
        seen: list[tuple[int, int, int]] = []
        for lines in product(*axes):
            for image in _filled(lines, self._inputs):
                for channel, views in image:
                    seen += [(self._entry(channel, taps), len(images), out) for taps, out in self._shown(views)]
                images.append([e for channel, views in image for e in self._elements(channel, views)])
        self.members = np.full((len(images), max(map(len, images))), -1)
        for row, elements in zip(self.members, images, strict=True):
            row[: len(elements)] = elements
        # By kernel entry: a sum of its answers does not depend on how rows were batched.
        self._seen = np.array(sorted(seen))
        self._entries, self._starts, self._counts = np.unique(self._seen[:, 0], return_index=True, return_counts=True)

    @property
    def noise(self) -> float:
        """Variance of an input's target, summed over inputs, for unit variance of a slope and unit energy of targets
        at the outputs, spread evenly: the taps that an output sees, each over how often it was measured.
        """
        shares = [[0.0] * k for k in self.local.kernel]
        for axis, share in enumerate(shares):
            for view in _views(self.local, axis):
                for tap in view.taps:
                    share[tap] += 1 / self.local.out_shape[axis]
        weights = np.array([math.prod(s) for s in product(*shares)])
        return float((weights[self._entries % len(weights)] / self._counts).sum())

    def kernel(self, slopes: Array) -> Array:
        """The kernel [out channels, in channels / groups, *taps] from slopes [images, outputs]; 0 where nobody sees."""
        local = self.local
        by_place = slopes.reshape(len(slopes), local.groups, local.out_channels // local.groups, -1)
        answers = by_place[self._seen[:, 1], :, :, self._seen[:, 2]].astype(np.float64)
        found = np.zeros((self._inputs * math.prod(local.kernel), *answers.shape[1:]))
        found[self._entries] = np.add.reduceat(answers, self._starts) / self._counts[:, None, None]
        return found.transpose(1, 2, 0).reshape(local.out_channels, self._inputs, *local.kernel).astype(slopes.dtype)

    def apply(self, slopes: Array, targets: Array) -> Array:
        found = convolution.to_inputs(self.local, torch.from_numpy(slopes), torch.from_numpy(targets))
        return np.asarray(found.numpy())

    def _entry(self, channel: int, taps: Sequence[int]) -> int:
        return int(np.ravel_multi_index((channel, *taps), (self._inputs, *self.local.kernel)))

    def _elements(self, channel: int, views: Sequence[_View]) -> Iterator[int]:
        """The flat inputs that such an impulse moves, one a group."""
        place = [v.place for v in views]
        for group in range(self.local.groups):
            where = (group * self._inputs + channel, *place)
            yield int(np.ravel_multi_index(where, (self.local.in_channels, *self.local.shape)))

    def _shown(self, views: Sequence[_View]) -> Iterator[tuple[tuple[int, ...], int]]:
        """Taps, and the flat output position that shows their weight."""
        for pairs in product(*(zip(v.taps, v.outputs, strict=True) for v in views)):
            taps, place = zip(*pairs, strict=True)
            yield taps, int(np.ravel_multi_index(place, self.local.out_shape))


def _filled(lines: Sequence[Line], channels: int) -> list[list[tuple[int, tuple[_View, ...]]]]:
    """Images of (channel, views along the axes) in which every channel is seen by every kind of view."""
    kinds = [list(product(*views)) for views in product(*lines)]
    count = math.ceil(channels / min(map(len, kinds)))
    images: list[list[tuple[int, tuple[_View, ...]]]] = []
    for image in range(count):
        # On from where the image before ended, so that channels are repeated evenly.
        images.append([((image * len(k) + n) % channels, views) for k in kinds for n, views in enumerate(k)])
    return images


def _lines(views: Sequence[_View]) -> Iterator[Line]:
    """Lines that together show every tap of an axis: one, but where an axis is too short for all kinds of view."""
    kinds = _kinds(views)
    while kinds:
        line: Line = [[] for _ in kinds]
        taken: set[int] = set()
        for view in views:
            # The kinds in turn, so that none keeps another out.
            turn = min(range(len(kinds)), key=lambda k: len(line[k]))
            if kinds[turn] <= set(view.taps) and taken.isdisjoint(view.outputs):
                line[turn].append(view)
                taken.update(view.outputs)
        yield [found for found in line if found]
        kinds = [kind for kind, found in zip(kinds, line, strict=True) if not found]


def _kinds(views: Sequence[_View]) -> list[set[int]]:
    """Sets of taps, each shown by some view, that together are all taps shown: as few as taking the most finds."""
    missing = {tap for view in views for tap in view.taps}
    kinds = []
    while missing:
        kinds.append(max((missing & set(view.taps) for view in views), key=len))
        missing -= kinds[-1]
    return kinds


@lru_cache(maxsize=256)
def _views(local: Local, axis: int) -> tuple[_View, ...]:
    """Every place of an axis that some output sees, in order."""
    size, step, padding = local.shape[axis], local.stride[axis], local.padding[axis]
    shown: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for output, tap in product(range(local.out_shape[axis]), range(local.kernel[axis])):
        place = output * step - padding + tap * local.dilation[axis]
        if local.circular or 0 <= place < size:
            shown[place % size].append((tap, output))
    return tuple(_View(place, *zip(*pairs, strict=True)) for place, pairs in sorted(shown.items()))

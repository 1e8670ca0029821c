"""A cut through a linear segment: its Jacobian, measured once for the whole batch.

One base point serves all samples, answers are kept as they are, and every sample's target is a product with them. Read
noise is then common to all samples: it does not average over the batch, but the step may be as large as the range. What
was measured holds until a stage of the segment is written: the caller keeps it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hzo_hil.colouring import Colouring
from hzo_hil.credit.cut import Probing
from hzo_hil.devices.errors import BadInput
from hzo_hil.impulses import Impulses
from hzo_hil.network import Network, Part
from hzo_hil.plan import Cut
from hzo_hil.values import within

Array = NDArray[Any]


@dataclass(frozen=True)
class Carried:
    """What takes a Jacobian past a write (`credit.averaged`). `along` [probes, outputs]: derivatives along every probe.
    `spread` [probes]: their variance, that of one measurement being 1. `weight` [outputs, width]: what the stage held.
    `turn`: the probe that is next.
    """

    along: Array
    spread: Array
    weight: Array
    turn: int

    def state(self) -> dict[str, Any]:
        arrays = {n: torch.as_tensor(getattr(self, n)) for n in ("along", "spread", "weight")}
        return {**arrays, "turn": self.turn}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Carried:
        along, spread, weight = (state[n].numpy() for n in ("along", "spread", "weight"))
        return cls(along, spread, weight, state["turn"])


@dataclass(frozen=True)
class Jacobian:
    """`slopes` [colours, outputs]: how each output follows the one input of a colour that it depends on; of `Impulses`
    the kernel.
    """

    colouring: Colouring
    slopes: Array
    carried: Carried | None = None

    def transposed(self, targets: Array) -> Array:
        """[samples, outputs] to [samples, width]."""
        return self.colouring.apply(self.slopes.astype(targets.dtype, copy=False), targets)


class Jacobians:
    """Those measured. `age(cut)` is (alignment, written): one holds while both are as they were, and may be carried on
    by what was written while the first is.
    """

    def __init__(self, age: Callable[[Cut], tuple[Any, Any]]) -> None:
        self._age = age
        self._kept: dict[Cut, tuple[tuple[Any, Any], Jacobian]] = {}

    def afresh(self) -> Jacobians:
        """None yet, of the same module."""
        return Jacobians(self._age)

    def known(self, cut: Cut) -> Jacobian | None:
        age, jacobian = self._kept.get(cut, (None, None))
        return jacobian if jacobian is not None and age == self._age(cut) else None

    def carried(self, cut: Cut) -> Carried | None:
        """What a measurement before the last writes still says."""
        age, jacobian = self._kept.get(cut, (None, None))
        return jacobian.carried if jacobian and age and age[0] == self._age(cut)[0] else None

    def keep(self, cut: Cut, jacobian: Jacobian) -> None:
        self._kept[cut] = self._age(cut), jacobian

    def state(self) -> list[list[Any]]:
        """[at, source, slopes, what is carried, whether it holds] of those still of use, as plain data with tensors."""
        found: list[list[Any]] = []
        for cut, (_, jacobian) in self._kept.items():
            holds, carried = self.known(cut) is not None, self.carried(cut)
            if holds or carried is not None:
                extra = None if carried is None else carried.state()
                found.append([cut.at, cut.source, torch.as_tensor(jacobian.slopes), extra, holds])
        return found

    def restore(self, state: Sequence[Sequence[Any]], network: Network) -> None:
        self._kept.clear()
        for at, source, slopes, *rest in state:
            extra, holds = rest or (None, True)
            cut = Cut(at, source)
            carried = None if extra is None else Carried.restored(extra)
            alignment, written = self._age(cut)
            colouring = network.colouring(at, source, shared=True)
            if isinstance(colouring, Impulses) != (slopes.ndim > 2):
                continue  # of a device that declared otherwise then: it is measured anew
            jacobian = Jacobian(colouring, slopes.numpy(), carried)
            self._kept[cut] = (alignment, written if holds else None), jacobian


@dataclass
class Shared(Probing):
    """As `Probing`, with one row of `base` made of the batch: its mean, moved inside the range by the largest step.

    `known`: the Jacobian where it was measured before; then nothing is asked. It is set once it is measured.
    """

    known: Jacobian | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        base = within(self.base, self.low, self.high)
        self._beyond = None if base is self.base else base != self.base
        reach = self.eps * (self.set.reach(base.shape[1]) if self.dense else 1.0)
        if 2 * reach > (self.high - self.low) * (1 + 1e-9):
            raise BadInput(
                f"probes at boundary {self.cut.at} move an element by up to {reach:g}, which does not fit into its"
                f" range {self.low:g}..{self.high:g}. Use a smaller eps, or leave eps out"
            )
        mean = base.mean(axis=0, keepdims=True, dtype=np.float64)
        self.base = np.clip(mean, self.low + reach, self.high - reach).astype(base.dtype)

    @property
    def asked(self) -> int:
        return self.rows if self.known is None else 0

    def build(self, first: int, last: int, columns: slice) -> Array:
        rows = super().build(first, last, columns)
        return np.clip(rows, self.low, self.high, out=rows)  # a rounding beyond the end, no more

    @property
    def _edges(self) -> bool:
        return False

    def collected(self, part: Part) -> tuple[int, int]:
        """Shape of what is kept of a part's answers: a change per pair (an answer per row) and output."""
        return self.rows // self.group, part.outputs.stop - part.outputs.start

    def collect(self, outputs: Array, first: int, part: Part, into: Array) -> None:
        """Keep the answers to rows first.. in `into` (shape `collected(part)`), at their places."""
        start = first // self.group
        block = outputs.reshape(-1, self.group, outputs.shape[-1])
        change = block[:, 0] - block[:, 1] if self.scheme.paired else block[:, 0]
        into[start : start + len(change)] = part.sign * change

    def measured(self, parts: Sequence[Part], collected: Sequence[Array]) -> None:
        """Make the Jacobian of what was collected from each part."""
        if self.known is not None:
            return
        slopes = np.zeros((self.width if self.dense else self.probes, max(p.outputs.stop for p in parts)))
        for part, values in zip(parts, collected, strict=True):
            found = self._slopes(values)
            if self.dense:
                # What the other blocks of a row answer for, they measure.
                found = self.set.decode(found.T, self.width, self.key, 0).T[part.inputs]
                slopes[part.inputs, part.outputs] += found
            elif len(parts) == 1:
                slopes = found
            else:
                slopes[:, part.outputs] += found
        slopes = slopes.astype(np.result_type(self.base.dtype, np.float32), copy=False)
        if isinstance(self.colouring, Impulses):
            slopes = self.colouring.kernel(slopes)
        self.known = Jacobian(self.colouring, slopes)

    def _slopes(self, values: Array) -> Array:
        """Derivatives [probes, outputs] along every probe; uses `values` up."""
        if not self.scheme.paired:
            return (values[1:] - values[:1]) / self.eps
        weights = np.array([weight / (2 * self.eps * multiplier) for multiplier, weight in self.scheme.levels])
        factors = np.tile(weights, self.probes) * np.where(np.arange(len(values)) % 2, -1, 1)
        values *= factors[:, None].astype(values.dtype)
        return values if len(weights) == 1 else values.reshape(self.probes, len(weights), -1).sum(axis=1)

    def through(self, targets: Array) -> Array:
        """The target [samples, width] at the cut from that at its source."""
        assert self.known is not None
        found = self.known.transposed(targets)
        # What lies beyond the range is clipped on its way in: nothing depends on it.
        return found if self._beyond is None else np.where(self._beyond, 0, found)

"""Which stages are looked at how: where they are few all in full; of many, some of each kind in full, the rest briefly.

A full look is asked twice, for its noise, and has pairs of samples along the same signs, for the likeness of their
Jacobians. Read-out noise and likeness are much the same for stages of one kind (same shape, same read-out), so a brief
look takes them from those in full, if these agree and if the two forward passes do not contradict; else it, too, is
asked twice. Where noise hides how stages bend, steps are doubled (which leaves a sixty-fourth of it). Knows no plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, f

from hzo_hil.calibrate.asking import Asker
from hzo_hil.calibrate.looks import Design, Look, design, deviation, look
from hzo_hil.calibration import Measured
from hzo_hil.devices.errors import DeviceError
from hzo_hil.network import Network
from hzo_hil.streams import generator

Array = NDArray[Any]
FEW = 8
"""Up to so many stages are all looked at in full."""
FULL, BRIEF = 4, 2
"""Samples of a look."""
_OF_A_KIND = 4
_DOUBT = 1e-4
"""How often chance alone makes stages of a kind seem to differ."""


@dataclass(frozen=True)
class Survey:
    """By stage, the look that its figures are from, and its likeness: of a brief look, that of its kind. `twice`: the
    looks in full, the first stage's first; `first`: what that was asked.
    """

    looks: tuple[Look, ...]
    likeness: tuple[float, ...]
    twice: tuple[Look, ...]
    first: Design


def survey(asker: Asker, activations: dict[int, Array], moved: Sequence[float], rows: int, key: int) -> Survey:
    """Every stage of the network alone. `moved`: variance of an activation between two forward passes of `rows`
    rows, by boundary.
    """
    network = asker.dispatch.network
    kinds = _kinds(network)
    few = network.depth <= FEW
    full = sorted(k for members in kinds for k in (members if few else _spread(members, _OF_A_KIND)))
    asked = {k: designed(network, k, activations[k], key, FULL) for k in full}
    twice = {k: looked(asker, k, k + 1, asked[k]) for k in full}
    looks = dict(twice)
    likeness = {k: x.likeness for k, x in twice.items()}

    def ask(k: int, samples: int, times: float, noise: Measured | None) -> None:
        copies = 2 if noise is None else 1
        looks[k] = looked(asker, k, k + 1, designed(network, k, activations[k], key, samples, times, copies), noise)

    for members in kinds:
        seen = [k for k in members if k in twice]
        noise = None if few else _common([twice[k] for k in seen])
        hidden = [] if network.stages[seen[0]].linear else [k for k in seen if twice[k].hidden]
        times = 2.0 if hidden and (few or _hidden([twice[k] for k in seen], len(members))) else 1.0
        if times > 1:
            for k in hidden:
                ask(k, FULL if few else BRIEF, times, None if few else twice[k].noise)
        for k in members:
            if k not in looks:
                fits = noise and _fits(moved, k, seen, rows * network.width(k + 1))
                ask(k, BRIEF, times, noise if fits else None)
                likeness[k] = float(np.mean([likeness[s] for s in seen]))
    every = range(network.depth)
    return Survey(
        tuple(looks[k] for k in every), tuple(likeness[k] for k in every), tuple(twice[k] for k in full), asked[0]
    )


def unsteady(passes: Sequence[dict[int, Array]], depth: int) -> tuple[float, ...]:
    """Variance of an activation from one forward pass to the next, by boundary."""
    one, two = passes
    return tuple(float(np.mean((one[k].astype(np.float64) - two[k]) ** 2)) / 2 for k in range(depth + 1))


def designed(
    network: Network, at: int, activations: Array, key: int, samples: int, times: float = 1.0, copies: int = 2
) -> Design:
    """A look in full or brief: pairs of samples share their signs, or each has its own."""
    base = activations[:samples].astype(np.float64)
    shared = 2 if samples > BRIEF else 1
    signs = generator(key, "signs", at).integers(0, 2, (-(-len(base) // shared), network.width(at))) * 2.0 - 1.0
    return design(network, at, base, np.repeat(signs, shared, axis=0)[: len(base)], times, copies)


def looked(asker: Asker, at: int, source: int, asked: Design, noise: Measured | None = None) -> Look:
    """Raises DeviceError where the answers do not depend on what is asked."""
    found = look(asked, asker.answers(at, source, asked.rows), noise)
    if found.deaf:
        network = asker.dispatch.network
        first, last = network.stages[at], network.stages[source - 1]
        raise DeviceError(
            f"device {first.device.capabilities.identity!r} cannot be calibrated: stages {at + 1}..{source}"
            f" ({first.label}..{last.label}) answer the same whatever is driven at boundary {at} (inputs moved by up to"
            f" {2 * asked.step:.3g}, {len(asked.rows)} rows). Is the light or the supply on, is the read-out saturated"
            " or dark, are its parameters all zero? hzo-hil device check tells more"
        )
    return found


def _kinds(network: Network) -> list[list[int]]:
    """Stages by what they have in common: device, shape, structure, and the way they are read."""
    kinds: dict[object, list[int]] = {}
    for k, s in enumerate(network.stages):
        what = (id(s.device), s.in_width, s.out_width, len(s.segment), s.linear, s.structure, s.read, s.codec_out)
        kinds.setdefault(repr(what), []).append(k)
    return list(kinds.values())


def _spread(members: list[int], count: int) -> list[int]:
    """So many of them, the first and the last included."""
    return [members[i] for i in sorted({round(v) for v in np.linspace(0, len(members) - 1, count)})]


def _hidden(looks: list[Look], stages: int) -> bool:
    """Whether noise would hide the mean curvature of so many stages looked at briefly: they are drawn together, so what
    hides one need not hide all.
    """
    found = float(np.mean([x.bend[0] for x in looks]))
    # A quarter as many answers as in full.
    error = 4 * float(np.mean([x.bend[1] for x in looks])) / stages**0.5
    return error > 0 and found < 4 * error


def _common(looks: list[Look]) -> Measured | None:
    """The noise that looks share; None where they do not (Bartlett's test: 1937)."""
    squares = np.array([x.noise.value**2 for x in looks])
    freedom = looks[0].outputs.size / 2
    mean = float(squares.mean())
    if mean > 0:
        with np.errstate(divide="ignore"):
            apart = freedom * float(np.sum(np.log(mean) - np.log(squares)))
        apart /= 1 + (len(looks) + 1) / (3 * len(looks) * freedom)
        if len(looks) > 1 and apart > chi2.isf(_DOUBT, len(looks) - 1):
            return None
    return deviation(mean, round(freedom * len(looks)))


def _fits(moved: Sequence[float], k: int, seen: list[int], freedom: int) -> bool:
    """Whether the output of stage k (0-based) moves between forward passes as much as those of the stages seen."""
    known = [moved[s + 1] for s in seen]
    least, most = min(known), max(known)
    bound = float(f.isf(_DOUBT, freedom, freedom))
    return least / bound <= moved[k + 1] <= most * bound

"""Whether what is declared of a device's Jacobians is true: a few random questions to each stage, in activations.

What is declared is not probed, so a false word bends every gradient and nothing else notices. A contradiction is
refused with its evidence, in standard deviations of the stage's own measured noise. Knows no targets and no training.

Questions to a stage, of `rows` activations the network really has, each `shots` times in turn:

* reach (diagonal, local): every input that an output does not see is exchanged; that output must not move;
* uniform: what an output sees is put where another one sees it; that must change the other as it changes the first;
* linear: f(a + d + e) - f(a + d) - f(a + e) + f(a) = 0 for differences d, e of activations;
* alone (every stage): a row among others answers as it does without them, which batch norm in training mode does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student
from torch import Tensor

from hzo_hil.credit.hzo import decoded, padded
from hzo_hil.devices.api import Local
from hzo_hil.devices.errors import BadInput, CapabilityError
from hzo_hil.dispatch import Call
from hzo_hil.module import Opaque
from hzo_hil.reference import forward_pass
from hzo_hil.scheduler import pack, rows_per_call
from hzo_hil.streams import generator, row_keys, stream_key
from hzo_hil.structure import Footprint

Array = NDArray[Any]
ALPHA = 1e-4
"""The chance that a true declaration of a module is refused, for noise that is normal in every element."""
_QUESTIONS = 4  # kinds


@dataclass(frozen=True)
class Checked:
    """A stage whose word held. `worst`: its largest deviation, in what chance allows (at most 1)."""

    stage: str
    what: str
    worst: float

    def __str__(self) -> str:
        return f"stage {self.stage}: {self.what} holds, {self.worst:.2f} of what chance allows"


def check_structure(
    module: Opaque, inputs: Tensor, *, probes: int = 8, shots: int = 16, rows: int = 4, seed: int = 0
) -> list[Checked]:
    """Ask every stage of a module about what it declares; all that held.

    `inputs` [samples, width]: at least 2 * rows + 1 samples as they come in training. `probes`: outputs asked about per
    stage. Every query is counted under `calibration`. Raises CapabilityError at the first word that is false (a true
    one is refused with probability ALPHA at most), BadInput where there are too few samples or shots.
    """
    if shots < 2 or rows < 1 or probes < 1:
        raise BadInput(f"shots {shots} must be at least 2, rows {rows} and probes {probes} at least 1")
    flat = inputs.detach().reshape(-1, module.network.width(0)).cpu().numpy()
    if len(flat) < 2 * rows + 1:
        raise BadInput(f"the check of structure needs at least {2 * rows + 1} samples, not {len(flat)}")
    module.written.update(module.stages, module.dispatch.count)
    key = stream_key(module.seed, "structure", module.name, seed)
    with module.one_step():
        activations = forward_pass(module.dispatch, flat, purpose="calibration", key=key, inner=True)
        found: list[Checked] = []
        for k in range(module.network.depth):
            found += _Stage(module, k, activations[k], probes, shots, rows, seed).all()
    return found


class _Stage:
    """Questions to logical stage k (from 0)."""

    def __init__(
        self, module: Opaque, k: int, activations: Array, probes: int, shots: int, rows: int, seed: int
    ) -> None:
        self.module, self.k, self.shots = module, k, shots
        self.stage = module.network.stages[k]
        self.hop = module.network.route(k, k + 1)[0]
        self.rng = generator(seed, "structure", module.name, k)
        self.key = stream_key(module.seed, "structure", module.name, seed, k)
        self.asked = 0
        self.probes = probes
        self.low, self.high = module.network.limits(k)
        order = self.rng.permutation(len(activations))
        drawn = np.clip(activations[order], self.low, self.high).astype(self.hop.device.capabilities.dtype)
        # Rows asked about, others to take values from, and the rest as company.
        self.rows, self.other, self.rest = drawn[:rows], drawn[rows : 2 * rows], drawn[2 * rows :]
        if not np.any(self.rows != self.other):
            raise BadInput(f"stage {self.stage.label} gets the same activations for every sample: nothing can be asked")

    def all(self) -> Iterator[Checked]:
        yield self.alone()
        structure = self.module.network.structure(self.k, self.k + 1)
        if structure != "dense":
            footprint = None if structure == "diagonal" else structure
            yield self.reach(footprint)
            if footprint is not None and footprint.uniform:
                yield self.uniform(footprint.parts[0])
        if self.stage.linear:
            yield self.linear()

    def alone(self) -> Checked:
        together = self._ask([np.concatenate([self.rows, self.rest])])[0][:, : len(self.rows)]
        single = np.concatenate([self._ask([row[None]])[0] for row in self.rows], axis=1)
        change = "move what couples samples to a host layer between two runs, or freeze its statistics"
        return self._judge(
            "a row answers for itself alone", [single, together], [1, -1], 1,
            f"a row's answer depends on which rows it is asked with (batch norm in training mode?): {change}",
        )  # fmt: skip

    def reach(self, footprint: Footprint | None) -> Checked:
        worst = 0.0
        name = "diagonal" if footprint is None else "its local reach"
        instead = "structure='dense'" if footprint is None else "a larger kernel, or structure='dense'"
        for output in self.rng.integers(0, self.stage.out_width, self.probes).tolist():
            moved = self.other.copy()
            seen = _seen(footprint, output)
            moved[:, seen] = self.rows[:, seen]
            answers = [a[..., output : output + 1] for a in self._ask([self.rows, moved])]
            found = self._judge(
                name, answers, [1, -1], self.probes,
                f"output {output} moves with inputs that it is declared not to depend on: declare {instead}",
            )  # fmt: skip
            worst = max(worst, found.worst)
        return Checked(self.stage.label, name, worst)

    def uniform(self, local: Local) -> Checked:
        worst, name = 0.0, "its kernel is the same everywhere"
        for output in self.rng.integers(0, self.stage.out_width, self.probes).tolist():
            others = local.alike(output)
            others = others[others != output]
            if not len(others):
                continue  # it sees an edge that no other does
            other = int(self.rng.choice(others))
            here, there = local.window(output), local.window(other)
            here, there = here[here >= 0], there[there >= 0]
            # The same two patches, seen by one and by the other; what surrounds them stays.
            moved, base = self.other.copy(), self.other.copy()
            moved[:, there], base[:, there] = self.rows[:, here], self.other[:, here]
            first = self.other.copy()
            first[:, here] = self.rows[:, here]
            answers = self._ask([first, self.other, moved, base])
            places = (output, output, other, other)
            found = self._judge(
                name, [a[..., p : p + 1] for a, p in zip(answers, places, strict=True)], [1, -1, -1, 1], self.probes,
                f"output {output} follows its inputs otherwise than output {other} follows the same: declare"
                " uniform=False",
            )  # fmt: skip
            worst = max(worst, found.worst)
        return Checked(self.stage.label, name, worst)

    def linear(self) -> Checked:
        middle = (self.rows + self.other) / 2
        step = (self.other - self.rows) / 4
        across = step[::-1] if len(step) > 1 else self.rng.permuted(step, axis=1)
        points = [middle + step + across, middle + step, middle + across, middle]
        if any((p < self.low).any() or (p > self.high).any() for p in points):
            # Differences halve until all corners lie inside the range.
            for _ in range(20):
                step, across = step / 2, across / 2
                points = [middle + step + across, middle + step, middle + across, middle]
                if all((p >= self.low).all() and (p <= self.high).all() for p in points):
                    break
        return self._judge(
            "linear", self._ask(points), [1, -1, -1, 1], 1,
            "answers to sums are not sums of answers: declare linear=False, or narrow the range to where it is",
        )  # fmt: skip

    # --- asking and judging ------------------------------------------------------------------------------------

    def _ask(self, questions: Sequence[Array]) -> list[Array]:
        """Answers [shot, row, out] to each question [row, in]; shots are taken in turn, so that drift cancels."""
        dtype = self.hop.device.capabilities.dtype
        count = len(questions[0])
        block = np.concatenate([np.asarray(q, dtype=dtype) for q in questions])
        found = np.empty((self.shots, len(block), self.stage.out_width))
        for shot in range(self.shots):
            found[shot] = self._answers(block)
        return [found[:, n * count : (n + 1) * count] for n in range(len(questions))]

    def _answers(self, rows: Array) -> Array:
        hop = self.hop
        limit = rows_per_call(hop.device.capabilities, hop.in_ports, 1, 1)
        outputs = np.zeros((len(rows), self.stage.out_width))
        self.asked += 1
        start = self.asked << 32

        def calls() -> Iterator[Call]:
            for number, part in enumerate(hop.parts):
                for first, last in pack(len(rows), limit):
                    keys = row_keys(self.key, start + (number << 24) + first, last - first)
                    block = padded(rows[first:last, part.inputs], hop)
                    yield Call(hop, part, block, "calibration", keys, tag=(number, first), first=first)

        parts: dict[tuple[int, int], Array] = {}
        for answer in self.module.dispatch.stream(calls()):
            parts[answer.call.tag] = decoded(answer)
        for (number, first), block in sorted(parts.items(), key=lambda item: item[0]):
            part = hop.parts[number]
            outputs[first : first + len(block), part.outputs] += part.sign * block
        return outputs

    def _judge(self, what: str, answers: Sequence[Array], weights: Sequence[int], tests: int, words: str) -> Checked:
        """Whether the weighed sum of the answers [shot, row, out] is 0 but for noise and rounding, in every element."""
        sums = sum(w * a for w, a in zip(weights, answers, strict=True))
        assert isinstance(sums, np.ndarray)
        mean, freedom = sums.mean(axis=0), len(sums) - 1
        error = sums.std(axis=0, ddof=1) / math.sqrt(len(sums))
        level = ALPHA / (self.module.network.depth * _QUESTIONS * tests * mean.size)
        allowed = partial(student.isf, level / 2)(freedom) * error + self._rounding(answers, weights)
        ratio = np.abs(mean) / allowed
        row, output = np.unravel_index(int(ratio.argmax()), ratio.shape)
        worst = float(ratio[row, output])
        if worst > 1:
            noise = float(error[row, output])
            by = f"{abs(mean[row, output]) / noise:.3g} sigma of the mean" if noise else "with no noise to speak of"
            raise CapabilityError(
                f"stage {self.k + 1} ({self.stage.label}) of device {self.hop.device.capabilities.identity!r} is not"
                f" what it declares ({what}): an answer is off by {mean[row, output]:.3g}, {by} (allowed"
                f" {float(allowed[row, output]):.3g}; false-alarm rate {ALPHA:g}). {words[0].upper()}{words[1:]}"
            )
        return Checked(self.stage.label, what, worst)

    def _rounding(self, answers: Sequence[Array], weights: Sequence[int]) -> float:
        """What arithmetic and converters may leave of a sum that is 0."""
        dtype = self.hop.device.capabilities.dtype
        scale = max(float(np.abs(a).max()) for a in answers)
        drive, read = self.stage.drive, self.stage.read
        steps = read.out_step / abs(self.stage.codec_out.gain)
        if len(weights) > 2 and drive.in_step:
            # Each corner is rounded by itself, in every input: at the slope that the answers show.
            span = max(float(np.ptp(self.rows)), 1e-30)
            steps += drive.in_step / abs(self.stage.codec_in.gain) * scale / span * math.sqrt(self.stage.in_width)
        return len(weights) * (512 * float(np.finfo(dtype).eps) * max(scale, 1e-30) + steps)


def _seen(footprint: Footprint | None, output: int) -> Array:
    """Flat inputs that an output may depend on."""
    if footprint is None:
        return np.array([output])
    places = np.unravel_index(output, footprint.shape_out)
    axes = [np.flatnonzero(axis[int(p)]) for axis, p in zip(footprint.axes, places, strict=True)]
    return np.ravel_multi_index(np.ix_(*axes), footprint.shape_in).ravel()

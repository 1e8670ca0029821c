"""Devices that are sound but for one thing: each must fail one check of the kit, and no other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from hzo_hil.devices.api import BoundarySpec, ChannelLimit, Health, Local, ParameterSpec, Reply, Segment, StageSpec
from hzo_hil.devices.errors import BadInput, DeviceRebooted, LinkLost
from hzo_hil.devices.fake import FakeDevice, FakeStage, Script
from hzo_hil.devices.fake_stages import affine, exact_matmul
from hzo_hil.devices.simulated import SimulatedDevice
from hzo_hil.simulators import chip
from hzo_hil.simulators.conv_unit import ConvUnit
from hzo_hil.simulators.model import Reach

BOUNDS = BoundarySpec(low=-1, high=1, out_low=-20, out_high=20)
RANGE = {"low": -1.0, "high": 1.0}


def sound(**options: Any) -> FakeDevice:
    options = {"boundaries": BOUNDS, "parameter": RANGE} | options
    return FakeDevice.mlp([4, 4, 3], "tanh", seed=3, **options)


class Wrapped:
    """A sound device; subclasses spoil one method."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner or sound()

    @property
    def capabilities(self):
        return self.inner.capabilities

    def open(self):
        self.inner.open()

    def run(self, segment, inputs, **options):
        reply = self.inner.run(segment, inputs, **options)
        return Reply(self.spoil(segment, inputs, reply.outputs), reply.taps)

    def spoil(self, segment, inputs, outputs):
        return outputs

    def write(self, stage, parameters, where=None, **options):
        self.inner.write(stage, parameters, where, **options)

    def read(self, stage):
        return self.inner.read(stage)

    def snapshot(self):
        return self.inner.snapshot()

    def health(self):
        return self.inner.health()

    def close(self):
        self.inner.close()


def answering(spoil: Callable[..., Any], inner: Callable[[], Any] = sound) -> Callable[[], Wrapped]:
    """`spoil(inputs, outputs) -> outputs`."""

    class Spoilt(Wrapped):
        def spoil(self, segment, inputs, outputs):
            return spoil(inputs, outputs)

    return lambda: Spoilt(inner())


def taking(mistake: Callable[[Any], bool], repair: Callable[[Any], Any], inner: Callable[[], Any] = sound) -> Any:
    """Answers `repair(inputs)` where `mistake(inputs)`: takes what it should refuse."""

    class Taking(Wrapped):
        def run(self, segment, inputs, **options):
            return self.inner.run(segment, repair(inputs) if mistake(inputs) else inputs, **options)

    return lambda: Taking(inner())


class ProbesItself(Wrapped):
    """Sound but for what it makes of its own probes."""

    def __init__(self, spoil: Callable[[Any], Any]):
        convolution = ConvUnit(Reach(2, 2, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)))
        super().__init__(SimulatedDevice([convolution], engine="torch"))
        self.changed = spoil

    def run_probes(self, probes):
        return self.changed(self.inner.run_probes(probes))


class NewIdentity(Wrapped):
    counter = itertools.count()

    @property
    def capabilities(self):
        return replace(self.inner.capabilities, identity=f"bench-{next(self.counter)}")


class OverwritesInputs(Wrapped):
    def run(self, segment, inputs, **options):
        reply = self.inner.run(segment, inputs, **options)
        inputs *= 0.5
        return reply


class OneBuffer(Wrapped):
    def __init__(self):
        super().__init__()
        self.buffers: dict[Any, Any] = {}

    def spoil(self, segment, inputs, outputs):
        buffer = self.buffers.setdefault(outputs.shape, outputs.copy())
        buffer[...] = outputs
        return buffer


class Extrapolates(Wrapped):
    """Has a range of -1 to 1, and drives whatever it is given."""

    def __init__(self):
        super().__init__(sound(boundaries=BoundarySpec(out_low=-20, out_high=20)))

    @property
    def capabilities(self):
        return replace(self.inner.capabilities, boundaries=(BOUNDS,) * 3)


class RowsLeak(Wrapped):
    """A row is read before it has settled: a hundredth of the row before is still there."""

    def spoil(self, segment, inputs, outputs):
        leaked = outputs.copy()
        leaked[1:] += 0.01 * outputs[:-1]
        return leaked


class ForgetsToUnsort(Wrapped):
    """Drives rows in rising order of the first port, to save switching, and leaves the answers so."""

    def __init__(self):
        super().__init__(sound(inner=False))

    def spoil(self, segment, inputs, outputs):
        return np.ascontiguousarray(outputs[np.argsort(inputs[:, 0], kind="stable")])


class SpoiltCache(Wrapped):
    """Keeps the last answer, and gets it wrong when the same is asked at once again."""

    def __init__(self):
        super().__init__()
        self.last = None

    def write(self, stage, parameters, where=None, **options):
        self.last = None
        super().write(stage, parameters, where)

    def open(self):
        self.last = None
        super().open()

    def spoil(self, segment, inputs, outputs):
        hit, self.last = self.last == inputs.tobytes(), inputs.tobytes()
        return (outputs * 1.01).astype(np.float32) if hit else outputs


class ReadsScaled(Wrapped):
    """read() is right for values it was given twice, and 1 % off for others."""

    def __init__(self):
        super().__init__()
        self.given: list[bytes] = []
        self.times = 0

    def write(self, stage, parameters, where=None):
        super().write(stage, parameters, where)
        key = b"".join(parameters[n].tobytes() for n in sorted(parameters))
        self.known = key in self.given or where is not None
        self.given.append(key)

    def read(self, stage):
        found = self.inner.read(stage)
        return found if getattr(self, "known", True) else {n: v * 0.99 for n, v in found.items()}


class KeepsReferences(Wrapped):
    """read() hands out the very array that answers are made from."""

    def __init__(self):
        super().__init__()
        self.arrays: dict[int, Any] = {}

    def write(self, stage, parameters, where=None):
        super().write(stage, parameters, where)
        self.arrays[stage] = self.inner.read(stage)

    def read(self, stage):
        return self.arrays[stage] if stage in self.arrays else self.inner.read(stage)


class IgnoresBias(Wrapped):
    """Says that it holds a bias, and never applies it."""

    def __init__(self):
        super().__init__()
        self.said = [dict(self.inner.read(k)) for k in range(2)]

    def write(self, stage, parameters, where=None):
        self.inner.write(stage, {**parameters, "bias": np.zeros_like(parameters["bias"])})
        if np.shape(parameters["bias"]) and not np.isfinite(parameters["bias"]).all():
            raise BadInput("NaN")
        if np.abs(parameters["bias"]).max() > 1:
            raise BadInput("beyond the range")
        self.said[stage] = {n: v.copy() for n, v in parameters.items()}

    def read(self, stage):
        self.inner.read(stage)
        return {n: v.copy() for n, v in self.said[stage].items()}


class Hysteresis(Wrapped):
    """A quarter of the change between two different settings stays behind, until told twice; none at the first."""

    def __init__(self):
        super().__init__()
        self.written = {0: False, 1: False}
        self.said = [dict(self.inner.read(k)) for k in range(2)]

    def write(self, stage, parameters, where=None):
        self.inner.write(stage, parameters)
        all_new = all(not np.array_equal(parameters[n], self.said[stage][n]) for n in parameters)
        lag = 0.25 if all_new and where is None and self.written[stage] else 0.0
        self.inner.write(stage, {n: v + lag * (self.said[stage][n] - v) for n, v in parameters.items()})
        self.said[stage], self.written[stage] = {n: np.array(v) for n, v in parameters.items()}, True

    def read(self, stage):
        self.inner.read(stage)
        return {n: v.copy() for n, v in self.said[stage].items()}


class IgnoresWhere(Wrapped):
    """Sets only the first of the values in `where`."""

    def write(self, stage, parameters, where=None):
        self.inner.write(stage, parameters, where and {n: i[:1] for n, i in where.items()})


class AnyStage(Wrapped):
    """Counts stages from behind when the number is negative, as a list does."""

    def write(self, stage, parameters, where=None):
        super().write(stage % 2 if stage < 0 else stage, parameters, where)


class DropsUnknown(Wrapped):
    def write(self, stage, parameters, where=None):
        super().write(stage, {n: v for n, v in parameters.items() if n in ("weight", "bias")}, where)


class NoRange(Wrapped):
    """Declares -1 to 1 for its weights and sets anything."""

    def __init__(self):
        super().__init__(sound(parameter={}))

    @property
    def capabilities(self):
        return sound().capabilities


class BadSnapshot(Wrapped):
    def snapshot(self):
        return {"phases": np.zeros(3)}


class Unwell(Wrapped):
    def health(self):
        return Health(False, "the laser is off")


class OpensOnce(Wrapped):
    def __init__(self):
        super().__init__()
        self.shut = False

    def open(self):
        if self.shut:
            raise OSError("port is in use")
        super().open()

    def close(self):
        self.shut = True
        super().close()


class LongestCall(Wrapped):
    def __init__(self):
        super().__init__(sound(longest_call_s=1e-3))

    def spoil(self, segment, inputs, outputs):
        time.sleep(2e-3 if len(inputs) == 3 else 0)
        return outputs


class OverLimit(Wrapped):
    """Declares a total power and does not add it up."""

    @property
    def capabilities(self):
        caps = self.inner.capabilities
        stages = [replace(s, limits=(ChannelLimit("power", ("weight",), 4.0, 2.0, unit="W"),)) for s in caps.stages]
        return replace(caps, stages=tuple(stages))


class TapsDisturb(Wrapped):
    def __init__(self):
        super().__init__(sound(taps=True))

    def run(self, segment, inputs, taps=()):
        reply = self.inner.run(segment, inputs, taps)
        return Reply(reply.outputs * (0.95 if taps else 1.0), reply.taps)


class NoAveraging(Wrapped):
    def __init__(self):
        super().__init__(sound(repeats=True, script=Script(noise=0.01)))

    def run(self, segment, inputs, repeats=1):
        return self.inner.run(segment, inputs)


class SameNoise(Wrapped):
    """Ignores its keys: noise is drawn from the row's place."""

    def __init__(self):
        super().__init__(sound(keyed=True, read_noise=0.01, script=Script(noise=0.01)))

    def run(self, segment, inputs, keys=None):
        return self.inner.run(segment, inputs, keys=keys % np.uint64(1 << 20))


class PortsCrossed(Wrapped):
    """What is driven at the inner boundary enters in another order than it was read."""

    def run(self, segment, inputs, **options):
        crossed = np.ascontiguousarray(inputs[:, ::-1]) if segment.lo == 1 and np.ndim(inputs) == 2 else inputs
        return self.inner.run(segment, crossed, **options)


class ParkedForGood(Wrapped):
    def __init__(self):
        super().__init__()
        self.parked = False

    def park(self):
        self.parked = True

    def write(self, stage, parameters, where=None):
        if self.parked:
            raise RuntimeError("interlock open")
        super().write(stage, parameters, where)

    def open(self):
        self.parked = False
        super().open()


class MaintainForgets(Wrapped):
    def maintain(self):
        zero = {n: np.zeros_like(v) for n, v in self.inner.read(0).items()}
        self.inner.write(0, zero)


class RebootsInSilence(Wrapped):
    def reboot(self):
        for k in range(2):
            self.inner.write(k, {n: np.zeros_like(v) for n, v in self.inner.read(k).items()})


class RebootsInWords(RebootsInSilence):
    """A sound one: the check passes."""

    missing: frozenset[int] = frozenset()

    def reboot(self):
        super().reboot()
        self.missing = frozenset((0, 1))

    def write(self, stage, parameters, where=None):
        super().write(stage, parameters, where)
        self.missing -= {stage}

    def run(self, segment, inputs, **options):
        if self.missing:
            raise DeviceRebooted("switched on again: write every stage")
        return super().run(segment, inputs, **options)


class Lost(Wrapped):
    """Answers twenty calls, then never again."""

    calls = 0

    def run(self, segment, inputs, **options):
        self.calls += 1
        if self.calls > 20:
            raise LinkLost("bench-9 did not answer")
        return super().run(segment, inputs, **options)


class ClampsSegments(Wrapped):
    def run(self, segment, inputs, **options):
        return self.inner.run(Segment(segment.lo, min(segment.hi, 2)), inputs, **options)


class LosesRows(Wrapped):
    """Takes 16 rows at most, and answers the first 16 of more."""

    def __init__(self):
        super().__init__(sound(max_batch=16))

    def run(self, segment, inputs, **options):
        return self.inner.run(segment, inputs[:16], **options)


class Drifts(Wrapped):
    """Grows by 1e-4 a call, behind noise of 0.005; a new object is the same chip."""

    calls = itertools.count()

    def __init__(self):
        super().__init__(sound(script=Script(noise=5e-3)))

    def spoil(self, segment, inputs, outputs):
        return outputs * np.float32(1 + 1e-4 * next(self.calls))


def not_linear() -> FakeDevice:
    spec = StageSpec("mesh", 4, 4, (ParameterSpec("weight", (4, 4), -4, 4),), linear=True)
    return FakeDevice.functions([FakeStage(spec, affine("tanh"))], boundaries=BOUNDS)


def not_diagonal() -> FakeDevice:
    spec = StageSpec("rings", 4, 4, (ParameterSpec("gain", (4,), 0.5, 1.5),), structure="diagonal")
    leak = np.eye(4) + 0.05

    def run(inputs, parameters):
        return exact_matmul(inputs * parameters["gain"], leak)

    return FakeDevice.functions([FakeStage(spec, run)], boundaries=BOUNDS)


def not_uniform() -> FakeDevice:
    """A kernel of 3 on 8 pixels, declared the same everywhere; the last pixels answer by a fifth less."""
    reach = Local.conv(1, 1, (8,), 3, padding=1, uniform=True)
    spec = StageSpec("conv", 8, 8, (ParameterSpec("gain", (1,), 0.5, 1.5),), structure=reach)
    falloff = np.linspace(1, 0.8, 8)

    def run(inputs, parameters):
        beside = np.pad(inputs, ((0, 0), (1, 1)))
        return (inputs + 0.5 * beside[:, :-2] - 0.25 * beside[:, 2:]) * parameters["gain"] * falloff

    return FakeDevice.functions([FakeStage(spec, run)], boundaries=BOUNDS)


def not_local() -> FakeDevice:
    """A kernel of 3 on 8 pixels, declared; every output also follows the mean of all."""
    reach = Local.conv(1, 1, (8,), 3, padding=1)
    spec = StageSpec("conv", 8, 8, (ParameterSpec("gain", (1,), 0.5, 1.5),), structure=reach)
    near = np.eye(8) + np.eye(8, k=1) + np.eye(8, k=-1) + 0.05

    def run(inputs, parameters):
        return parameters["gain"] * exact_matmul(inputs, near)

    return FakeDevice.functions([FakeStage(spec, run)], boundaries=BOUNDS)


def declared(**changes: Any) -> Callable[[], Any]:
    """A sound device whose boundaries are declared with `changes`."""

    class Declared(Wrapped):
        def __init__(self, inner: Any):
            super().__init__(inner)
            caps = inner.capabilities
            self.told = replace(caps, boundaries=tuple(replace(b, **changes) for b in caps.boundaries))

        @property
        def capabilities(self):
            return self.told

    return Declared


def noisier() -> SimulatedDevice:
    class Quiet(SimulatedDevice):
        @property
        def capabilities(self):
            return replace(super().capabilities, read_noise=0.01)

    return Quiet(chip.build("emulator", widths=[4, 4, 3], read_noise_std=0.1))


def stair(step: float, out_step: float = 0.0) -> FakeDevice:
    return sound(boundaries=replace(BOUNDS, in_step=step, out_step=out_step))


def _drops_rows(inputs, outputs):
    return outputs[: len(outputs) // 2 * 2] if len(outputs) in (3, 5) else outputs


def _nan_at_ends(inputs, outputs):
    outputs[np.abs(inputs).max(axis=1) >= 1.0] = np.nan
    return outputs


BROKEN: dict[str, list[Callable[[], Any]]] = {
    "description": [NewIdentity],
    "shapes": [answering(_drops_rows)],
    "dtypes": [answering(lambda x, y: y.astype(np.float16))],
    "inputs are left alone": [OverwritesInputs],
    "answers are kept": [OneBuffer],
    "ranges": [answering(_nan_at_ends), lambda: declared(out_low=-0.05, out_high=0.05)(sound())],
    "beyond the range": [Extrapolates],
    "batching equals singles": [answering(lambda x, y: y + np.float32(0.01 * len(x)))],
    "order independence": [ForgetsToUnsort],
    "repeat safety": [SpoiltCache],
    "write and read": [ReadsScaled],
    "its own copies": [KeepsReferences],
    "writes take effect": [IgnoresBias],
    "re-write restores": [Hysteresis],
    "partial writes": [IgnoresWhere],
    "refuses a wrong width": [taking(lambda x: x.ndim == 2 and x.shape[1] == 5, lambda x: x[:, :4].copy())],
    "refuses a wrong dtype": [taking(np.iscomplexobj, lambda x: x.real.astype(np.float32))],
    "refuses NaN": [taking(lambda x: x.dtype.kind == "f" and bool(np.isnan(x).any()), np.nan_to_num)],
    "refuses an unknown segment": [ClampsSegments],
    "refuses an unknown stage": [AnyStage],
    "refuses wrong parameters": [DropsUnknown],
    "parameters beyond their range": [NoRange],
    "snapshot": [BadSnapshot],
    "health": [Unwell],
    "close and reopen": [OpensOnce],
    "taps": [TapsDisturb],
    "repeats": [NoAveraging],
    "inner boundaries": [PortsCrossed],
    "limits across channels": [OverLimit],
    "noise keys": [SameNoise],
    "declared noise": [noisier, lambda: sound(read_noise=0.001, script=Script(noise=0.01))],
    "linear": [not_linear],
    "diagonal": [not_diagonal],
    "local": [not_local],
    "uniform": [not_uniform],
    "its own probes": [
        lambda: ProbesItself(lambda found: 2 * found),
        lambda: ProbesItself(lambda found: found[:, :1]),
        lambda: ProbesItself(np.cumsum),
    ],
    "largest batch": [LosesRows],
    "output converter": [
        lambda: declared(out_step=0.01)(stair(0, 0.04)),
        lambda: declared(out_step=0.03)(stair(0, 0.04)),
        lambda: declared(out_step=0.0)(stair(0, 0.04)),
    ],
    "input converter": [
        lambda: declared(in_step=0.02)(stair(0.05)),
        lambda: declared(in_step=0.02)(stair(0.0)),
        lambda: declared(in_step=0.0)(stair(0.01)),
    ],
    "park": [ParkedForGood],
    "maintain": [MaintainForgets],
    "reboot": [RebootsInSilence],
    "drift": [Drifts],
    "declared times": [LongestCall],
}

"""From configuration to objects: devices, twins, networks, models, losses. The one place that knows how each is made.

It asks no device anything but its capabilities.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hzo_hil.config import CodecSection, Config, DeviceSection, LayerSection, StageSection, parse_section
from hzo_hil.devices.api import Device, Segment
from hzo_hil.devices.errors import ConfigError, HzoError
from hzo_hil.health import HealthPolicy, watch
from hzo_hil.paths import is_object_path, load_object
from hzo_hil.yamlfile import read_yaml

if TYPE_CHECKING:
    from torch import nn

    from hzo_hil.module import Opaque
    from hzo_hil.network import Stage
    from hzo_hil.simulators.model import StageModel

ENTRY_POINTS = "hzo_hil.devices"


# --- devices ---------------------------------------------------------------------------------------------------


def open_device(source: str | Path | Mapping[str, Any] | DeviceSection, seed: int = 0) -> Device:
    """A device from a URL, a YAML file, a mapping of its fields, or a section of a configuration.

    `seed` picks the chip where the device names none. Raises ConfigError for what cannot be made.
    """
    section = device_section(source)
    return _make(section.model_dump(), seed)


def device_section(source: str | Path | Mapping[str, Any] | DeviceSection) -> DeviceSection:
    """The description of one device. Raises ConfigError."""
    if isinstance(source, DeviceSection):
        return source
    if isinstance(source, (str, Path)) and "://" in str(source):
        return DeviceSection(url=str(source))
    raw = read_yaml(source) if isinstance(source, (str, Path)) else source
    return parse_section(DeviceSection, raw, str(source) if isinstance(source, (str, Path)) else "device")


def _make(fields: Mapping[str, Any], seed: int) -> Device:
    """Module-level and plain data in, so that pickles can name it."""
    section = DeviceSection.model_validate(fields)
    try:
        device = _source(section, seed)
    except TypeError as error:  # of the keywords in `options`; a driver's own mistakes are told apart below
        raise ConfigError(f"device options {dict(section.options)}: {error}") from error
    if not isinstance(device, Device):
        raise ConfigError(
            f"driver {section.driver!r} gave a {type(device).__name__}, which is no device: it needs"
            " capabilities, open, run, write, read, snapshot, health and close"
        )
    if section.record is not None:
        from hzo_hil.devices.recorded import Recorder

        device = Recorder(device, section.record)
    if section.datasheet is not None:
        _datasheets[device] = _chip(section.datasheet.kind, section.datasheet.preset, 0, section.datasheet.options)
    if section.health is not None:
        watch(device, HealthPolicy(**section.health.model_dump()))
    try:
        from hzo_hil import sources
    except ImportError:  # a lab PC without torch serves devices and pickles no modules
        return device
    return sources.remember(device, partial(_make, dict(fields), seed))


def _source(section: DeviceSection, seed: int) -> Device:
    if section.kind is not None:
        return _simulated(section, seed)
    if section.url is not None:
        from hzo_hil.devices.remote import RemoteDevice

        return RemoteDevice(
            section.url, keys=section.keys, patience_s=section.patience_s, takeover=section.takeover, **section.options
        )
    if section.members is not None:
        from hzo_hil.devices.pool import Pool

        members = [_make(m.model_dump(), seed) for m in section.members]
        return Pool(members, identical=section.identical, **section.options)
    if section.replay is not None:
        from hzo_hil.devices.recorded import Replay

        return Replay(section.replay, match=section.match)
    return _driver(section)


def _simulated(section: DeviceSection, seed: int) -> Device:
    from hzo_hil.devices.simulated import SimulatedDevice

    chosen = section.seed if section.seed is not None else seed
    return SimulatedDevice(
        _chip(str(section.kind), section.preset, chosen, section.options),
        identity=section.identity or f"{section.kind}-{section.preset}-{chosen}",
        inner_boundaries=section.inner_boundaries,
        taps=section.taps,
        max_batch=section.max_batch,
        latency_s=section.latency_s,
        query_s=section.query_s,
        settling_s=section.settling_s,
        dtype=section.dtype,
        longest_call_s=section.longest_call_s,
        laser_wander=section.laser_wander,
        wander_period_s=section.wander_period_s,
        power=section.power,
        power_drift_std=section.power_drift_std,
        power_drift_tau_s=section.power_drift_tau_s,
        seed=chosen,
        drift_step_s=section.drift_step_s,
        engine=section.engine,
    )


def _chip(kind: str, preset: str, seed: int, options: Mapping[str, Any]) -> Sequence[StageModel]:
    from hzo_hil.simulators import chip

    try:
        return chip.build(kind, preset=preset, seed=seed, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"device of kind {kind!r}: {error}") from error


_datasheets: weakref.WeakKeyDictionary[Any, Sequence[StageModel]] = weakref.WeakKeyDictionary()


def models_of(device: Device) -> Sequence[StageModel] | None:
    """The model of each stage, where one is known: a simulated chip's own, or what its data sheet says."""
    found = getattr(device, "models", None)
    return found if found is not None else _datasheets.get(device)


def _driver(section: DeviceSection) -> Device:
    name = str(section.driver)
    if is_object_path(name):
        make = load_object(name, "driver")
    else:
        found = {e.name: e for e in metadata.entry_points(group=ENTRY_POINTS)}
        if name not in found:
            known = ", ".join(sorted(found)) or "none is installed"
            raise ConfigError(
                f"no driver {name!r} in the entry-point group {ENTRY_POINTS} ({known}); or give module:callable"
            )
        try:
            make = found[name].load()
        except Exception as error:
            raise ConfigError(
                f"driver {name!r} ({found[name].value}) cannot be loaded: {type(error).__name__}: {error}"
            ) from error
    try:
        device: Device = make(**section.options)
    except HzoError:
        raise
    except Exception as error:
        raise ConfigError(
            f"driver {name!r} could not be made with {section.options}: {type(error).__name__}: {error}"
        ) from error
    return device


def installed_drivers() -> list[dict[str, str]]:
    """Simulated kinds and installed drivers; a broken driver is listed with its error."""
    from hzo_hil.simulators import chip

    rows = [
        {"name": kind, "from": "simulator", "detail": "presets: " + ", ".join(presets)}
        for kind, presets in chip.known().items()
    ]
    for entry in sorted(metadata.entry_points(group=ENTRY_POINTS), key=lambda e: e.name):
        try:
            entry.load()
            detail = entry.value
        except Exception as error:  # noqa: BLE001 - one broken driver must not hide the others
            detail = f"broken: {type(error).__name__}: {error}"
        rows.append({"name": entry.name, "from": entry.dist.name if entry.dist else "?", "detail": detail})
    return rows


# --- networks --------------------------------------------------------------------------------------------------


def open_devices(config: Config) -> dict[str, Device]:
    return {name: open_device(section, config.seed) for name, section in config.devices.items()}


def build_model(config: Config, devices: Mapping[str, Device], credit: str | None = None) -> nn.Sequential:
    """The whole model: opaque layers on `devices`, host layers as they are. Initial values follow `config.seed`."""
    import torch

    # Host layers draw their initial values from torch's global stream: keep it to ourselves.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _layers(config, config.network, devices, credit or config.method.credit, "")


def _layers(
    config: Config, layers: list[LayerSection], devices: Mapping[str, Device], credit: str, prefix: str
) -> nn.Sequential:
    from torch import nn

    from hzo_hil.layers import Residual

    modules: list[nn.Module] = []
    for position, layer in enumerate(layers):
        name = layer.name or f"{prefix}{position}"
        if layer.skip is not None:
            modules.append(Residual(_layers(config, layer.skip, devices, credit, f"{name}.")))
        elif layer.host is not None:
            modules.append(_host(layer))
        else:
            modules.append(_opaque(config, layer, devices, credit, name))
    return nn.Sequential(*modules)


def _host(layer: LayerSection) -> nn.Module:
    from torch import nn

    path = str(layer.host)
    make = load_object(path, "host layer")
    try:
        module = make(**layer.arguments)
    except Exception as error:
        raise ConfigError(f"host layer {path!r} could not be made with {layer.arguments}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"host layer {path!r} gave a {type(module).__name__}, not a torch.nn.Module")
    return module


def _opaque(config: Config, layer: LayerSection, devices: Mapping[str, Device], credit: str, name: str) -> Opaque:
    from hzo_hil.module import Opaque
    from hzo_hil.plan import Plan

    m = config.method
    stages = _stages(config, layer, devices, name)
    tree = tuple(m.tree) if isinstance(m.tree, list) else m.tree
    plan = m.plan or Plan(tree, m.probes, m.eps, m.differences, m.repeats, shared=m.shared, average=m.average)
    return Opaque(
        stages,
        plan=plan,
        shared=m.shared if m.plan else None,  # a plan of the caller's own has it already
        tolerance=m.tolerance,
        queries_per_step=m.queries_per_step,
        seconds_per_step=m.seconds_per_step,
        # What is deployed is never asked backwards; as for the other there must be a twin of every stage.
        credit="twin" if credit == "deployed" else credit,
        memory=m.memory if credit == "hzo" else "store",
        seed=config.seed,
        name=name,
        max_bad_steps=config.train.max_bad_steps,
        max_saturated=config.train.max_saturated,
    )


def _stages(config: Config, layer: LayerSection, devices: Mapping[str, Device], name: str) -> list[Stage]:
    from dataclasses import replace

    from hzo_hil.network import Tiles, stages_of
    from hzo_hil.streams import generator
    from hzo_hil.updates import automatic

    bare: list[tuple[Stage, StageSection | None]]
    if isinstance(layer.opaque, str):
        bare = [(s, None) for s in stages_of(devices[layer.opaque])]
    else:
        bare = [(_stage(s, devices[s.device]), s) for s in layer.opaque or []]
    found = []
    for position, (stage, section) in enumerate(bare):
        tiles = Tiles(*section.tiles) if section is not None and section.tiles else None
        leaf = section.leaf if section is not None and section.leaf else config.method.leaf
        stage = replace(stage, tiles=tiles, leaf=leaf_rule(leaf, config) if stage.parameters else "auto")
        rng = generator(config.seed, "initial", name, position)
        stage = replace(stage, twin=_twin(config, stage), initial=_initial(stage, rng))
        if stage.parameters and stage.leaf == "auto":
            stage = replace(stage, leaf=automatic(stage, config.method.leaf_probes, config.method.leaf_eps))
        found.append(stage)
    return found


def stages_alone(device: Device, seed: int) -> list[Stage]:
    """A device's stages as a network of its own, with the starting values a run would give them."""
    from dataclasses import replace

    from hzo_hil.network import stages_of
    from hzo_hil.streams import generator

    stages = stages_of(device)
    return [
        replace(s, initial=_initial(s, generator(seed, "initial", "device", position)))
        for position, s in enumerate(stages)
    ]


def _stage(section: StageSection, device: Device) -> Stage:
    from hzo_hil.network import Stage

    index = section.stage if isinstance(section.stage, int) else Segment(*section.stage)
    return Stage(device, index, codec_in=_codec(section.codec_in), codec_out=_codec(section.codec_out))


def _codec(section: CodecSection) -> Any:
    from hzo_hil.codec import Codec

    return Codec(section.gain, section.offset, section.form)


def _twin(config: Config, stage: Stage) -> Any:
    """The data sheet's model of one simulated stage, where the user says that it is known."""
    models = models_of(stage.device)
    if not config.method.twins or models is None or len(stage.segment) > 1:
        return None
    from hzo_hil.coded import CodedTwin
    from hzo_hil.simulators.twins import Twin

    if hasattr(stage.leaf, "twin"):
        return _fitted(stage, models[stage.segment.lo])
    twin = Twin(models[stage.segment.lo])
    if stage.codec_in.identity and stage.codec_out.identity:
        return twin
    return CodedTwin(twin, stage.codec_in, stage.codec_out, stage.drive.low, stage.drive.high)


def _fitted(stage: Stage, model: StageModel) -> Any:
    from hzo_hil.simulators.fitted import FittedMesh

    try:
        return FittedMesh(model)
    except ValueError as error:
        raise ConfigError(f"leaf learned_twin for stage {stage.label}: {error}. Use leaf: shift") from error


def _initial(stage: Stage, rng: Any) -> dict[str, Any]:
    """Starting values as the physics suggests for matrices; phases are left to be uniform over their period.

    Phases of an exactly orthogonal matrix would be a poor start: there the real part that homodyne reads is stationary
    in most of them, and the ideal twin's gradient points elsewhere than the chip's (cosine 0.4 against 0.8).
    """
    models = models_of(stage.device)
    if models is None or stage.tiles or len(stage.segment) > 1:
        return {}
    spec = {p.name: p for p in stage.specs[0].parameters}
    return {n: v for n, v in models[stage.segment.lo].initial(rng).items() if not spec[n].period}


def leaf_rule(text: str, config: Config) -> Any:
    from hzo_hil.updates.autograd import LocalAutograd
    from hzo_hil.updates.delta import DeltaRule
    from hzo_hil.updates.learned import LearnedTwin
    from hzo_hil.updates.probing import ParameterProbing
    from hzo_hil.updates.shift import ParameterShift

    name, _, detail = text.partition(":")
    if name == "auto" and not detail:
        return "auto"
    if name == "delta":
        return DeltaRule(detail or "identity")
    if name == "autograd" and not detail:
        return LocalAutograd()
    if name == "probing" and not detail:
        return ParameterProbing(config.method.leaf_probes, config.method.leaf_eps)
    if name == "shift" and not detail:
        return ParameterShift(config.method.leaf_probes, config.method.leaf_eps)
    if name == "learned_twin" and not detail:
        return LearnedTwin(**config.method.learned.model_dump())
    raise ConfigError(
        f"unknown leaf rule {text!r}: choose auto, autograd, delta, delta:NAME, shift, learned_twin or probing"
    )


def opaques(model: nn.Module) -> list[Opaque]:
    from hzo_hil.module import Opaque

    return [m for m in model.modules() if isinstance(m, Opaque)]


def replaced(
    model: nn.Module,
    stand_in: Callable[[Opaque], nn.Module],
    host: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> nn.Module:
    """A model as `build_model` makes them, with something else in place of its opaque (and host) layers."""
    from torch import nn

    from hzo_hil.layers import Residual
    from hzo_hil.module import Opaque

    if isinstance(model, Opaque):
        return stand_in(model)
    if isinstance(model, nn.Sequential):
        return nn.Sequential(*(replaced(m, stand_in, host) for m in model))
    if isinstance(model, Residual):
        return Residual(replaced(model.body, stand_in, host))
    return host(model)


def twin_model(model: nn.Module) -> nn.Module:
    """The same model with every opaque layer replaced by its twins; parameters are shared, not copied."""
    from hzo_hil.credit.twin import TwinNetwork

    return replaced(model, lambda layer: TwinNetwork(layer.network, layer.stages))


def trained_model(config: Config, model: nn.Module) -> nn.Module:
    """What the loss of training goes through: the model itself or, where it is deployed afterwards, its twins."""
    return twin_model(model) if config.method.credit == "deployed" else model

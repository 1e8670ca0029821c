"""From configuration to stages: where each runs, its codecs, twin, leaf rule and starting values.

Knows no layers, models or plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hzo_hil.balance import has_matrix
from hzo_hil.codec import Codec
from hzo_hil.coded import CodedTwin
from hzo_hil.config import CodecSection, Config, LayerSection, StageSection
from hzo_hil.devices.api import Device, Segment
from hzo_hil.devices.errors import ConfigError
from hzo_hil.network import Stage, Tiles, stages_of
from hzo_hil.opening import models_of
from hzo_hil.simulators.fitted import FittedMesh
from hzo_hil.simulators.model import StageModel
from hzo_hil.simulators.twins import Twin
from hzo_hil.streams import generator
from hzo_hil.updates import automatic
from hzo_hil.updates.autograd import LocalAutograd
from hzo_hil.updates.delta import DeltaRule
from hzo_hil.updates.learned import LearnedTwin
from hzo_hil.updates.probing import ParameterProbing
from hzo_hil.updates.shift import ParameterShift


def stages_for(config: Config, layer: LayerSection, devices: Mapping[str, Device], name: str) -> list[Stage]:
    """The stages of one opaque layer, or of a zoo layer. `name` keys their starting values."""
    bare: list[tuple[Stage, StageSection | None]]
    if isinstance(layer.opaque, list):
        bare = [(_stage(s, devices[s.device]), s) for s in layer.opaque]
    else:
        bare = [(s, None) for name in layer.devices for s in stages_of(devices[name])]
    found = []
    for position, (stage, section) in enumerate(bare):
        tiles = Tiles(*section.tiles) if section is not None and section.tiles else None
        leaf = section.leaf if section is not None and section.leaf else config.method.leaf
        stage = replace(stage, tiles=tiles, leaf=leaf_rule(leaf, config) if stage.parameters else "auto")
        rng = generator(config.seed, "initial", name, position)
        stage = replace(stage, twin=_twin(config, stage), initial=_initial(stage, rng))
        if config.method.gain is not None and config.method.gain.start == "orthogonal" and has_matrix(stage):
            stage.initial.pop("weight", None)
        if stage.parameters and stage.leaf == "auto":
            stage = replace(stage, leaf=automatic(stage, config.method.leaf_probes, config.method.leaf_eps))
        found.append(stage)
    return found


def stages_alone(device: Device, seed: int) -> list[Stage]:
    """A device's stages as a network of its own, with the starting values a run would give them."""
    stages = stages_of(device)
    return [
        replace(s, initial=_initial(s, generator(seed, "initial", "device", position)))
        for position, s in enumerate(stages)
    ]


def _stage(section: StageSection, device: Device) -> Stage:
    index = section.stage if isinstance(section.stage, int) else Segment(*section.stage)
    return Stage(device, index, codec_in=_codec(section.codec_in), codec_out=_codec(section.codec_out))


def _codec(section: CodecSection) -> Any:
    return Codec(section.gain, section.offset, section.form)


def _twin(config: Config, stage: Stage) -> Any:
    """The data sheet's model of one simulated stage, where the user says that it is known."""
    models = models_of(stage.device)
    if not config.method.twins or models is None or len(stage.segment) > 1:
        return None
    if hasattr(stage.leaf, "twin"):
        return _fitted(stage, models[stage.segment.lo])
    twin = Twin(models[stage.segment.lo])
    if stage.codec_in.identity and stage.codec_out.identity:
        return twin
    return CodedTwin(twin, stage.codec_in, stage.codec_out, stage.drive.low, stage.drive.high)


def _fitted(stage: Stage, model: StageModel) -> Any:
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

"""What a device says of its Jacobians is tried, and a false word refused with its evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hzo_hil import Codec, Opaque, Stage, check_structure
from hzo_hil.devices.api import BoundarySpec, Local, StageSpec
from hzo_hil.devices.errors import BadInput, CapabilityError
from hzo_hil.devices.fake import FakeDevice, FakeStage, Script
from tests.core.convs import conv_stage, identity
from tests.core.nets import Affine, inputs

REACH = Local.conv(2, 2, (4, 4), 3, padding=1)
ROWS = 16


def module(*stages: FakeStage, noise: float = 0.0, seed: int = 0, **options: Any) -> Opaque:
    script = Script(noise=noise, seed=seed)
    return Opaque(FakeDevice.functions(list(stages), script=script, keyed=True, **options), seed=seed)


def stage(function: Callable[[Any], Any], width: int = 32, **declared: Any) -> FakeStage:
    return FakeStage(StageSpec("thing", width, width, **declared), lambda a, _: function(a))


def leak(a: Any) -> Any:
    return np.tanh(a) + 0.05 * np.roll(a, 1, axis=1)


def grow(a: Any) -> Any:
    return a + 0.02 * a**2


def pooled_norm(a: Any) -> Any:
    """Group norm: every pixel follows all pixels."""
    return a / np.sqrt((a**2).mean(axis=1, keepdims=True) + 0.1)


def vignetted(a: Any) -> Any:
    """A lens that loses 15 % of its light from one edge to the other: local and linear, but not everywhere alike."""
    return a * np.tile(np.linspace(1, 0.85, 4), 8)


def batch_norm(a: Any) -> Any:
    return (a - a.mean(axis=0)) / (a.std(axis=0) + 0.1)


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_true_declarations_hold(dtype, seed, noise):
    """Each run fails by chance with probability at most 1e-4; the noise is seeded."""
    made = [
        conv_stage(replace(REACH, uniform=True), identity, seed), stage(np.tanh, structure="diagonal"),
        stage(lambda a: 3 * a, structure="diagonal", linear=True), conv_stage(REACH, torch.tanh, name="curved"),
    ]  # fmt: skip
    opaque = module(*made, noise=noise, seed=seed, dtype=dtype)
    found = check_structure(opaque, inputs(ROWS, 32), seed=seed)
    said = [(c.stage, c.what) for c in found]
    assert said == [
        ("'conv'", "a row answers for itself alone"), ("'conv'", "its local reach"),
        ("'conv'", "its kernel is the same everywhere"), ("'conv'", "linear"),
        ("'thing'", "a row answers for itself alone"), ("'thing'", "diagonal"),
        ("'thing'", "a row answers for itself alone"), ("'thing'", "diagonal"), ("'thing'", "linear"),
        ("'curved'", "a row answers for itself alone"), ("'curved'", "its local reach"),
    ]  # fmt: skip
    assert all(0 <= c.worst <= 1 for c in found) and "of what chance allows" in str(found[0])
    account = opaque.ledger.accounts
    assert account["calibration"].queries > 0 and account["probes"].queries == 0


@pytest.mark.parametrize("noise", [0.0, 0.002])
@pytest.mark.parametrize(
    ("false", "words"),
    [
        (stage(leak, structure="diagonal"), r"\(diagonal\): an answer is off by .*declare structure='dense'"),
        (stage(pooled_norm, structure=REACH), r"\(its local reach\): .*Output \d+ moves with inputs .*a larger kernel"),
        (stage(grow, linear=True), r"\(linear\): .*Answers to sums are not sums of answers: declare linear=False"),
        (stage(batch_norm), r"depends on which rows it is asked with \(batch norm in training mode\?\): move what"),
        (
            conv_stage(Local.conv(2, 2, (4, 4), 3, padding=1), structure=Local.conv(2, 2, (4, 4), 1)),
            r"stage 1 \('conv'\) of device 'fake' is not what it declares \(its local reach\)",
        ),
        (
            stage(vignetted, structure=replace(REACH, uniform=True), linear=True),
            r"\(its kernel is the same everywhere\): .*Output \d+ follows its inputs otherwise than output \d+ follows"
            " the same: declare uniform=False",
        ),
    ],
)
def test_a_false_declaration_is_refused_with_the_evidence(false, words, noise):
    with pytest.raises(CapabilityError, match=words) as refused:
        check_structure(module(false, noise=noise), inputs(ROWS, 32))
    assert ("sigma" if noise else "no noise to speak of") in str(refused.value)
    assert "false-alarm rate 0.0001" in str(refused.value)


def test_ranges_and_codecs_are_respected():
    """The fake device refuses what lies outside; the offset of a codec is no contradiction of linearity."""
    boundary = BoundarySpec(low=0.0, high=1.0, in_step=1 / 255)
    device = FakeDevice.functions(
        [stage(lambda a: 0.5 * a, 8, structure="diagonal", linear=True)], boundaries=[boundary, BoundarySpec()]
    )
    opaque = Opaque([Stage(device, 0, codec_in=Codec(gain=0.25, offset=0.5), codec_out=Codec(gain=2.0, offset=0.1))])
    found = check_structure(opaque, 3 * inputs(ROWS, 8))
    assert [c.what for c in found][1:] == ["diagonal", "linear"]


@pytest.mark.parametrize(
    ("given", "words"),
    [({"shots": 1}, "shots 1 must be at least 2"), ({"rows": 8}, "needs at least 17 samples, not 16")],
)
def test_too_little_to_go_by_is_refused(given, words):
    opaque = module(stage(np.tanh))
    with pytest.raises(BadInput, match=words):
        check_structure(opaque, inputs(ROWS, 32), **given)
    with pytest.raises(BadInput, match="the same activations for every sample"):
        check_structure(opaque, torch.ones(ROWS, 32))


class Normed(Affine):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)


def test_batch_norm_in_training_mode_has_no_place_in_a_stage():
    device = FakeDevice.mlp([3, 3])
    with pytest.raises(BadInput, match=r"stage 'layer1' holds batch norm in training mode.*twin\.eval\(\).*host layer"):
        Opaque([Stage(device, 0, twin=Normed())])
    Opaque([Stage(device, 0, twin=Normed().eval())])

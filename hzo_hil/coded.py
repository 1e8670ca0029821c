"""A twin seen through a codec or a factor: what is known in device units, as a function of activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hzo_hil.codec import Codec


class CodedTwin(nn.Module):
    """decode(twin(encode(activations))), differentiable; `Codec` says the same of arrays.

    `low`, `high`: what the device can be driven with, in its own units; beyond it inputs are cut, as on the device.
    A `two_pass` codec asks twice and subtracts.
    """

    def __init__(self, twin: nn.Module, codec_in: Codec, codec_out: Codec, low: float, high: float) -> None:
        super().__init__()
        self.twin = twin
        self.codec_in = codec_in
        self.codec_out = codec_out
        self.low, self.high = low, high

    def forward(self, inputs: Tensor, **values: Tensor) -> Tensor:
        passes = self.codec_in.passes
        answers = [sign * self._decode(self.twin(self._encode(inputs, sign), **values)) for sign in passes]
        return answers[0] if len(answers) == 1 else answers[0] + answers[1]

    def _encode(self, activations: Tensor, sign: int) -> Tensor:
        codec = self.codec_in
        if codec.form == "pair":
            activations = torch.stack([activations.relu(), (-activations).relu()], dim=-1).flatten(-2)
        elif codec.form == "two_pass":
            activations = (sign * activations).relu()
        return (codec.offset + codec.gain * activations).clamp(self.low, self.high)

    def _decode(self, values: Tensor) -> Tensor:
        codec = self.codec_out
        if codec.form == "pair":
            return (values[..., 0::2] - values[..., 1::2]) / codec.gain
        constant = codec.offset if len(self.codec_in.passes) == 1 else 0.0
        return (values - constant) / codec.gain


class ScaledTwin(nn.Module):
    """factor * twin(inputs): what the host reads of a stage, multiplied."""

    def __init__(self, twin: nn.Module, factor: float) -> None:
        super().__init__()
        self.twin = twin
        self.factor = factor

    def forward(self, inputs: Tensor, **values: Tensor) -> Tensor:
        outputs: Tensor = self.factor * self.twin(inputs, **values)
        return outputs

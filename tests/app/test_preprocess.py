"""Standardising and varying images: each image's draw is its own, and what is shown is a window of what was there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hzo_hil.config import parse_config
from hzo_hil.datasections import AugmentSection
from hzo_hil.devices.errors import ConfigError
from hzo_hil.preprocess import Augment, standardised
from hzo_hil.tensors import Tensors

IMAGES = torch.arange(1.0, 1 + 40 * 2 * 5 * 4).reshape(40, 2, 5, 4)


def augment(seed: int = 0, images: torch.Tensor = IMAGES, **section: Any) -> Augment:
    return Augment(AugmentSection(**section), seed, images, "little")


def test_every_image_is_a_window_of_the_padded_image_perhaps_mirrored() -> None:
    rows = torch.arange(40)
    shown = augment(flip=True, crop=2)(IMAGES, rows, 3)
    seen = set()
    for image, found in zip(IMAGES.numpy(), shown.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        places = [
            (down, right, flip)
            for down in range(5)
            for right in range(5)
            for flip in (False, True)
            if np.array_equal(padded[:, down : down + 5, right : right + 4][:, :, :: -1 if flip else 1], found)
        ]
        assert len(places) == 1
        seen.add(places[0])
    # Forty draws out of 50: fewer than 20 different ones have a probability below 1e-6.
    assert len(seen) >= 20


def test_a_draw_depends_on_seed_epoch_and_row_and_not_on_the_batch() -> None:
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    made = augment(flip=True, crop=1)
    whole = made(IMAGES[rows], rows, 2)
    made(IMAGES, torch.arange(40), 5)  # another epoch between
    parts = torch.cat([made(IMAGES[part], part, 2) for part in rows.split(7)])
    assert torch.equal(whole, parts)
    assert torch.equal(whole, augment(flip=True, crop=1)(IMAGES[rows], rows, 2))
    assert not torch.equal(whole, made(IMAGES[rows], rows, 1))
    assert not torch.equal(whole, augment(seed=1, flip=True, crop=1)(IMAGES[rows], rows, 2))


def test_half_of_the_images_are_mirrored() -> None:
    """2,000 fair draws, to 5 deviations: false alarm 6e-7."""
    images = torch.tensor([[[[0.0, 1.0]]]]).repeat(2000, 1, 1, 1)
    found = augment(images=images, flip=True)(images, torch.arange(2000), 0)
    assert abs(float(found[..., 0].sum()) - 1000) < 5 * (2000 / 4) ** 0.5


@pytest.mark.parametrize("shape", [(50, 3, 4, 4), (50, 6)])
def test_standardising_takes_mean_and_deviation_out_by_channel_or_feature(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    scale = np.array([1.0, 5.0, 0.0, 2.0, 3.0, 4.0])[: shape[1]].reshape(-1, *[1] * (len(shape) - 2))
    train, test = (torch.as_tensor(7 + scale * rng.standard_normal(shape)) for _ in range(2))
    axes = (0, *range(2, len(shape)))
    found, other = standardised(train, test)
    values = train.numpy()
    mean, deviation = values.mean(axes, keepdims=True), values.std(axes, keepdims=True)
    alive = np.broadcast_to(deviation, shape) > 1e-6
    for got, given in ((found, train), (other, test)):
        wanted = (given.numpy() - mean) / np.where(deviation > 1e-6, deviation, 1)
        assert np.allclose(got.numpy()[alive], wanted[alive], atol=1e-9)


def test_a_channel_that_never_varies_becomes_zero_and_not_infinite() -> None:
    train = torch.full((4, 1, 2, 2), 0.25)
    found, other = standardised(train, train + 1)
    assert not found.any() and not other.any()


@pytest.mark.parametrize(
    ("images", "section", "words"),
    [
        (IMAGES.flatten(1), {"flip": True}, r"data 'little' has \[40\] per row: leave augment out"),
        (IMAGES, {"crop": 4}, "crop is 4 and the images of 'little' have 5 x 4 pixels"),
    ],
)
def test_what_is_no_image_or_too_small_is_refused(images: Any, section: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        augment(images=images, **section)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.augment": {"crop": 0}}, "augment varies nothing"),
        ({"data.augment": {"flip": True}, "data.flatten": True}, "augment moves images, and flatten: true makes rows"),
        ({"data.augment": {"crop": -1}}, "data.augment.crop: Input should be greater than or equal to 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tiny: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_config(tiny(changes))


def test_only_training_rows_are_varied_and_statistics_are_theirs() -> None:
    from hzo_hil.data import load

    found = Tensors.of(load("digits"), "cpu", standardise=True)
    assert abs(float(found.x_train.mean())) < 1e-6 < abs(float(found.x_test.mean()))

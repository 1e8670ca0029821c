"""The section of a configuration that says which data are learnt, and how images are varied on the way."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from hzo_hil.sections import Options, Section


class AugmentSection(Section):
    """How training images `[channels, height, width]` are varied, each anew in every epoch; test images never are."""

    flip: bool = Field(default=False, description="mirror every other image, left to right")
    crop: int = Field(
        default=0, ge=0, description="pixels that an image is moved at most along either axis, zeros beyond; 0: none"
    )

    @model_validator(mode="after")
    def _something(self) -> AugmentSection:
        if not (self.flip or self.crop):
            raise ValueError("augment varies nothing: give flip: true or crop, or leave it out")
        return self


class DataSection(Section):
    """Which data. `name`: digits, iris, mnist, cifar10, vowels, npz, images, or module:function."""

    name: str
    path: Path | None = Field(default=None, description="the .npz file, for name: npz; the folder, for name: images")
    flatten: bool = Field(default=False, description="make inputs [n, features]")
    limit_train: int | None = Field(default=None, ge=1, description="first training rows only; null: all")
    limit_test: int | None = Field(default=None, ge=1, description="first test rows only; null: all")
    standardise: bool = Field(
        default=False, description="mean 0 and deviation 1 over the training rows: each channel of images, each feature"
    )
    augment: AugmentSection | None = None
    options: Options = Field(
        default_factory=dict, description="keywords for a function of your own; of images: size, keep"
    )

    @model_validator(mode="after")
    def _images(self) -> DataSection:
        if self.augment is not None and self.flatten:
            raise ValueError(
                "augment moves images, and flatten: true makes rows of numbers of them: leave flatten out (a zoo layer,"
                " or the host layer torch.nn:Flatten, takes images)"
            )
        return self

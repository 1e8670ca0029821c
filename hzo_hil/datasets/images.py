"""A folder of pictures sorted by class, as ImageNet is kept: `train/<class>/*` and `test/<class>/*` (or `val/`).

Classes are counted in the order of their folders' names. Rows are shuffled once, alike everywhere, so that a first part
of them is a random one. Needs Pillow, and knows no data set by name.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hzo_hil.datasets.dataset import Array, Dataset
from hzo_hil.devices.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png")
TRAIN, TEST = ("train",), ("test", "val")
MODES = ("RGB", "L", "1", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr")
"""Of Pillow, which become 8-bit RGB without a choice of scale."""

Keep = Literal["floats", "bytes"]


def from_folder(
    path: str | Path, data_dir: str | Path | None = None, size: int | None = None, keep: Keep = "floats"
) -> Dataset:
    """Pictures of a folder as x `[n, 3, height, width]`, red, green, blue.

    A relative `path` starts at the current folder or, if nothing is there, at `data_dir` (else the environment variable
    HZO_DATA). `size`: every picture's shorter side is brought to so many pixels and the middle square kept; None: all
    must be of one size. `keep`: "floats" of 0..1, or "bytes" of 0..255 (uint8), a quarter of the memory, for whoever
    divides by 255 batch by batch. The checksum is of all files and their names. Raises DataError.
    """
    if size is not None and (type(size) is not int or size < 1):
        raise DataError(f"size is {size!r}; it is a number of pixels, 1 or more (None: pictures as they are)")
    if keep not in ("floats", "bytes"):
        raise DataError(f"keep is {keep!r}; it is 'floats' (0..1) or 'bytes' (0..255, a quarter of the memory)")
    folder = _found(Path(path), data_dir)
    digest = hashlib.sha256()
    parts = {names: _part(folder, names) for names in (TRAIN, TEST)}
    classes = sorted({file.parent.name for file in parts[TRAIN]})
    if len(classes) < 2:
        raise DataError(f"{folder / 'train'} has one class folder, {classes[0]!r}: there must be two or more")
    for file in parts[TEST]:
        if file.parent.name not in classes:
            raise DataError(
                f"class folder {file.parent} has no counterpart in {folder / 'train'}: {', '.join(classes)}"
            )
    (x_train, y_train), (x_test, y_test) = (_read(files, classes, size, digest) for files in parts.values())
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"pictures in {parts[TEST][0].parent.parent} have {_pixels(x_test)} pixels, those in"
            f" {folder / 'train'} {_pixels(x_train)}: give size to bring all to one"
        )
    if keep == "floats":
        x_train, x_test = (np.divide(x, 255, dtype=np.float32) for x in (x_train, x_test))
    return Dataset(x_train, y_train, x_test, y_test, len(classes), folder.name, str(folder), digest.hexdigest())


def _found(path: Path, data_dir: str | Path | None) -> Path:
    places = [path]
    base = data_dir or os.environ.get("HZO_DATA")
    if base and not path.is_absolute():
        places.append(Path(base) / path)
    for place in places:
        if place.is_dir():
            return place
    raise DataError(
        f"there is no image folder {path}. Looked for {', '.join(str(p.absolute()) for p in places)}. Give path: a"
        " folder with train/<class>/ and test/<class>/ (or val/), absolute, or below the current folder or the data"
        " folder (data_dir, --data-dir, HZO_DATA)"
    )


def _part(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Its files, by class and name."""
    part = next((folder / name for name in names if (folder / name).is_dir()), None)
    if part is None:
        raise DataError(
            f"image folder {folder} has no {' or '.join(names)} folder; it holds"
            f" {', '.join(sorted(p.name for p in folder.iterdir())[:8]) or 'nothing'}. Pictures lie in train/<class>/"
            " and test/<class>/ (or val/)"
        )
    classes = sorted((p for p in part.iterdir() if p.is_dir() and not p.name.startswith(".")), key=_name)
    if not classes:
        raise DataError(f"{part} has no class folders: put the pictures of each class into a folder named after it")
    found = []
    for one in classes:
        here = (p for p in one.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        pictures = sorted(here, key=_name)
        if not pictures:
            raise DataError(f"class folder {one} has no pictures ({', '.join(SUFFIXES)}): add some, or take it away")
        found += pictures
    return found


def _name(path: Path) -> str:
    """To sort by: paths themselves sort otherwise on Windows."""
    return path.name


def _read(files: list[Path], classes: list[str], size: int | None, digest: Any) -> tuple[Array, Array]:
    """uint8 [n, 3, height, width] and labels, shuffled."""
    pictures = _pictures(files, size, digest)
    first = next(pictures)
    x = np.empty((len(files), *first.shape), np.uint8)
    # Where each file goes: the order depends on how many there are alone.
    places = np.random.Generator(np.random.Philox(key=len(files))).permutation(len(files))
    x[places[0]] = first
    for place, file, picture in zip(places[1:], files[1:], pictures, strict=True):
        if picture.shape != first.shape:
            raise DataError(
                f"{file} has {_pixels(picture)} pixels and {files[0]} {_pixels(first)}: give size (in a"
                " configuration data.options: {size: 224}) to bring all to one"
            )
        x[place] = picture
    y = np.empty(len(files), np.int64)
    y[places] = [classes.index(file.parent.name) for file in files]
    return x, y


def _pictures(files: list[Path], size: int | None, digest: Any) -> Iterator[Array]:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise DataError(
            f"reading pictures needs Pillow, which does not load here ({error}): pip install 'hzo-hil[images]'"
        ) from error
    for file in files:
        try:
            content = file.read_bytes()
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as opened:
                mode, picture = opened.mode, ImageOps.exif_transpose(opened)
                picture.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"picture {file} cannot be read ({error}): get it again, or take it away") from error
        if mode not in MODES:
            raise DataError(f"picture {file} is of mode {mode!r}, not of 8 bits a channel: convert it")
        name = "/".join(file.parts[-3:]).encode("utf-8", "surrogateescape")
        digest.update(name + b"\0" + hashlib.sha256(content).digest())
        colours = picture.convert("RGB")
        if size is not None:
            colours = ImageOps.fit(colours, (size, size), Image.Resampling.BILINEAR)
        yield np.asarray(colours).transpose(2, 0, 1)


def _pixels(x: Array) -> str:
    return f"{x.shape[-2]} x {x.shape[-1]}"

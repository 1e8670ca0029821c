"""Folders of pictures: the pixels that were written, whatever the file system's order; mistakes named by file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hzo_hil.data import load
from hzo_hil.devices.errors import DataError

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")


def pixels(seed: int, height: int = 6, width: int = 6) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """`folder(test="val", kind="png")`: 2 classes, 3 + 2 training and 1 + 1 test pictures of 6 x 6 pixels."""

    def write(test: str = "val", kind: str = "png") -> Path:
        root = tmp_path / "pictures"
        number = 0
        for part, counts in (("train", {"cat": 3, "dog": 2}), (test, {"cat": 1, "dog": 1})):
            for name, count in counts.items():
                (root / part / name).mkdir(parents=True)
                for k in range(count):
                    Image.fromarray(pixels(number)).save(root / part / name / f"{k}.{kind}")
                    number += 1
        return root

    return write


def test_pixels_and_labels_are_those_of_the_files(folder: Callable[..., Path]) -> None:
    data = load("images", path=folder())
    assert (data.x_train.shape, data.x_test.shape, data.classes) == ((5, 3, 6, 6), (2, 3, 6, 6), 2)
    assert (str(data.x_train.dtype), str(data.y_train.dtype)) == ("float32", "int64")
    written = {pixels(k).transpose(2, 0, 1).tobytes(): int(k >= 3) for k in range(5)}
    found = np.rint(data.x_train * 255).astype(np.uint8)
    assert {x.tobytes(): int(y) for x, y in zip(found, data.y_train, strict=True)} == written
    assert {x.tobytes() for x in np.rint(data.x_test * 255).astype(np.uint8)} == {
        pixels(k).transpose(2, 0, 1).tobytes() for k in (5, 6)
    }


def test_bytes_are_the_floats_times_255(folder: Callable[..., Path]) -> None:
    root = folder("test")
    floats, kept = load("images", path=root), load("images", path=root, keep="bytes")
    assert str(kept.x_train.dtype) == "uint8"
    assert np.array_equal(kept.x_train.astype(np.float32) / np.float32(255), floats.x_train)
    assert (floats.checksum, floats.name) == (kept.checksum, "pictures")


def test_rows_are_mixed_and_the_same_wherever_the_folder_lies(folder: Callable[..., Path], tmp_path: Path) -> None:
    root = folder()
    for k in range(3, 40):
        Image.fromarray(pixels(100 + k)).save(root / "train" / "dog" / f"{k}.png")
    first = load("images", path=root)
    assert set(load("images", path=root, limit_train=20).y_train) == {0, 1}
    moved = root.rename(tmp_path / "elsewhere")
    again = load("images", path=moved)
    assert first.checksum == again.checksum
    assert np.array_equal(first.x_train, again.x_train)
    assert np.array_equal(first.y_train, again.y_train)
    (moved / "train" / "dog" / "4.png").rename(moved / "train" / "dog" / "x.png")
    assert load("images", path=moved).checksum != first.checksum


def test_other_modes_become_colours_and_turned_pictures_are_turned_back(folder: Callable[..., Path]) -> None:
    root = folder()
    grey = pixels(0)[:, :, 0]
    Image.fromarray(grey).save(root / "train" / "cat" / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side: to be turned by 90 degrees clockwise
    Image.fromarray(pixels(1)).save(root / "train" / "cat" / "1.png", exif=exif)
    x = {row.tobytes() for row in load("images", path=root, keep="bytes").x_train}
    assert np.repeat(grey[None], 3, 0).tobytes() in x
    assert np.rot90(pixels(1), -1).transpose(2, 0, 1).tobytes() in x


def test_size_keeps_the_middle_of_the_longer_side(folder: Callable[..., Path]) -> None:
    root = folder()
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 6:18] = 200  # filters reach a little beyond
    for name in ("cat", "dog"):
        for file in (root / "train" / name).iterdir():
            Image.fromarray(wide).save(file)
    data = load("images", path=root, size=4, keep="bytes")
    assert (data.x_train.shape, data.x_test.shape) == ((5, 3, 4, 4), (2, 3, 4, 4))
    assert (data.x_train == 200).all()


def test_a_relative_path_is_looked_for_here_and_then_in_the_data_folder(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.delenv("HZO_DATA", raising=False)
    with pytest.raises(DataError, match=r"no image folder pictures. Looked for .*empty.pictures\. Give path"):
        load("images", path="pictures")
    assert load("images", path="pictures", data_dir=tmp_path).classes == 2
    monkeypatch.setenv("HZO_DATA", str(tmp_path))
    assert load("images", path="pictures").classes == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HZO_DATA", str(tmp_path / "empty"))
    assert load("images", path="pictures").classes == 2


def torn(root: Path) -> None:
    file = root / "train" / "dog" / "1.jpg"
    file.write_bytes(file.read_bytes()[:-200])


def text(root: Path) -> None:
    (root / "val" / "cat" / "0.jpg").write_text("no picture", encoding="utf-8")


def larger(root: Path) -> None:
    Image.fromarray(pixels(0, 7, 6)).save(root / "train" / "dog" / "1.jpg")


def larger_test(root: Path) -> None:
    for name in ("cat", "dog"):
        Image.fromarray(pixels(0, 7, 6)).save(root / "val" / name / "0.jpg")


def deep(root: Path) -> None:
    Image.fromarray(np.arange(36, dtype=np.uint16).reshape(6, 6)).save(root / "train" / "dog" / "9.png")


def emptied(root: Path) -> None:
    for file in (root / "train" / "dog").iterdir():
        file.unlink()


def alone(root: Path) -> None:
    emptied(root)
    (root / "train" / "dog").rmdir()


def loose(root: Path) -> None:
    for file in [*(root / "train").rglob("*.jpg")]:
        file.unlink()
    for name in ("cat", "dog"):
        (root / "train" / name).rmdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (torn, r"picture .*dog.1\.jpg cannot be read \(.*[Tt]runcated.*\): get it again"),
        (text, r"picture .*val.cat.0\.jpg cannot be read \(cannot identify"),
        (larger, r"dog.1\.jpg has 7 x 6 pixels and .*cat.0\.jpg 6 x 6: give size"),
        (larger_test, r"pictures in .*val have 7 x 6 pixels, those in .*train 6 x 6: give size"),
        (deep, r"picture .*dog.9\.png is of mode 'I;16', not of 8 bits a channel"),
        (emptied, r"class folder .*dog has no pictures \(\.jpg, \.jpeg, \.png\)"),
        (alone, r"train has one class folder, 'cat': there must be two or more"),
        (loose, r"train has no class folders: put the pictures of each class into a folder"),
        (lambda root: (root / "val").rename(root / "other"), r"no test or val folder; it holds other, train"),
        (
            lambda root: (root / "val" / "cat").rename(root / "val" / "cow"),
            r"val.cow has no counterpart in .*: cat, dog",
        ),
    ],
)
def test_mistakes_are_named(folder: Callable[..., Path], spoil: Callable[[Path], Any], message: str) -> None:
    root = folder(kind="jpg")
    spoil(root)
    with pytest.raises(DataError, match=message):
        load("images", path=root)


def test_wrong_options(folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder()
    with pytest.raises(DataError, match="'images' needs path: the folder with train/<class>/"):
        load("images")
    with pytest.raises(DataError, match="'images' has no option crop; its own are size and keep"):
        load("images", path=root, crop=3)
    for size in (0, 2.5, True, "224"):
        with pytest.raises(DataError, match="size is .*; it is a number of pixels"):
            load("images", path=root, size=size)
    with pytest.raises(DataError, match="keep is 'disk'; it is 'floats'"):
        load("images", path=root, keep="disk")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"reading pictures needs Pillow.*pip install 'hzo-hil\[images\]'"):
        load("images", path=root)


@pytest.mark.parametrize("standardise", [False, True])
@pytest.mark.parametrize("flatten", [False, True])
def test_training_sees_the_same_numbers_of_bytes_as_of_floats(
    folder: Callable[..., Path], standardise: bool, flatten: bool
) -> None:
    from hzo_hil.tensors import Tensors

    root = folder()
    for k in range(3, 300):  # statistics are taken of 256 rows at a time
        Image.fromarray(pixels(k)).save(root / "train" / "cat" / f"{k}.png")
    floats, kept = (
        Tensors.of(load("images", path=root, keep=keep, flatten=flatten), "cpu", standardise)
        for keep in ("floats", "bytes")
    )
    assert str(kept.x_train.dtype) == "torch.uint8"
    for part in ("x_train", "x_test"):
        seen, wanted = kept.inputs(getattr(kept, part)), floats.inputs(getattr(floats, part))
        assert seen.dtype == wanted.dtype
        assert np.allclose(seen, wanted, atol=1e-5)

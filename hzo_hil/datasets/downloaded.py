"""Sets the user has on disk: MNIST, CIFAR-10 and the vowel task, read only when every byte is the expected one.

Nothing is fetched from anywhere. A file is read once: what is parsed is what was verified.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import pickle  # noqa: TID251 - only through _Restricted, only after the checksum
from pathlib import Path
from typing import Any

import numpy as np

from hzo_hil.datasets.dataset import Array, Dataset, checked, sha256
from hzo_hil.devices.errors import DataError

MNIST = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
CIFAR10 = {
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}
VOWELS = {"pat_vowels.csv": "9f74103aefa5fd6e21d41ff0a5a62c2cc1fcc2f62dac996ac35a5108ca74322e"}

# Hz, F1 F2 F3 in steady state and at 20, 50 and 80 % of the vowel: the largest over all women's recordings.
VOWEL_MAXIMA = (1163, 3049, 3831, 1152, 3057, 3816, 1117, 3039, 3806, 1046, 3006, 3859)
PIXEL_MAX = 255
IDX_BYTES = 0x08


def mnist(data_dir: Path | None) -> Dataset:
    """60,000 / 10,000 digits of 10 classes: x `[n, 1, 28, 28]`, 0..1."""
    contents = _verified("mnist", data_dir, MNIST, ("mnist", "MNIST/raw"), "the four original IDX files, still gzipped")
    x_train, y_train, x_test, y_test = (_idx(content) for content in contents.values())
    parts = {
        "x_train": _pixels(x_train[:, None]),
        "y_train": y_train,
        "x_test": _pixels(x_test[:, None]),
        "y_test": y_test,
    }
    return checked(parts, name="mnist", source="MNIST (LeCun, Cortes, Burges)", checksum=sha256(*contents.values()))


def cifar10(data_dir: Path | None) -> Dataset:
    """50,000 / 10,000 colour pictures of 10 classes: x `[n, 3, 32, 32]` (red, green, blue), 0..1."""
    folders = ("cifar-10/cifar-10-batches-py", "cifar-10-batches-py")
    contents = _verified("cifar10", data_dir, CIFAR10, folders, "the original cifar-10-python.tar.gz, unpacked")
    batches = [_batch(content) for content in contents.values()]
    x = [_pixels(pixels) for pixels, _ in batches]
    y = [labels for _, labels in batches]
    parts = {"x_train": np.concatenate(x[:-1]), "y_train": np.concatenate(y[:-1]), "x_test": x[-1], "y_test": y[-1]}
    return checked(parts, name="cifar10", source="CIFAR-10 (Krizhevsky 2009)", checksum=sha256(*contents.values()))


def vowels(data_dir: Path | None) -> Dataset:
    """210 / 49 vowels of 7 classes (ae ah aw uw er iy ih): x `[n, 12]`, formants over the columns' maxima, 0..1.

    The task and split of Wright et al., Nature 601, 549 (2022), from the recordings of Hillenbrand et al. (1995).
    """
    folders = ("hillenbrand-vowels/pat", "hillenbrand-vowels", "vowels")
    contents = _verified("vowels", data_dir, VOWELS, folders, "the table of its 259 samples")
    content = contents["pat_vowels.csv"]
    rows = list(csv.DictReader(io.StringIO(content.decode("ascii"))))
    columns = [name for name in rows[0] if name.startswith("F")]
    x = np.array([[float(row[name]) for name in columns] for row in rows]) / VOWEL_MAXIMA
    y = np.array([int(row["label"]) for row in rows])
    train = np.array([row["pat_split"] == "train" for row in rows])
    parts = {"x_train": x[train], "y_train": y[train], "x_test": x[~train], "y_test": y[~train]}
    return checked(parts, name="vowels", source="Hillenbrand et al. (1995), task of PAT", checksum=sha256(content))


def _verified(
    name: str, data_dir: Path | None, expected: dict[str, str], folders: tuple[str, ...], origin: str
) -> dict[str, bytes]:
    """The contents of the expected files, each with the expected sha256, all from one of the folders."""
    if data_dir is None:
        data_dir = Path(os.environ["HZO_DATA"]) if os.environ.get("HZO_DATA") else None
    if data_dir is None:
        raise DataError(
            f"data set {name!r} does not come with the package and no data folder is set: put {', '.join(expected)}"
            f" ({origin}) into a folder D/{folders[0]} and pass D as data_dir (--data-dir) or in the environment"
            " variable HZO_DATA"
        )
    places = [data_dir / folder for folder in folders] + [data_dir]
    folder = next((place for place in places if (place / next(iter(expected))).is_file()), places[0])
    contents = {}
    for file, digest in expected.items():
        try:
            contents[file] = (folder / file).read_bytes()
        except OSError as error:
            raise DataError(
                f"data set {name!r}: {file} cannot be read ({error.strerror or error}). Looked in"
                f" {', '.join(map(str, places))}. It is part of {origin}; put it there, or name another data folder"
                " with data_dir (--data-dir) or HZO_DATA"
            ) from error
        found = hashlib.sha256(contents[file]).hexdigest()
        if found != digest:
            raise DataError(
                f"data set {name!r}: {folder / file} is not the expected file: {len(contents[file])} bytes"
                f" with sha256 {found}, expected {digest}. It was not opened. It is damaged or another"
                f" version: get it again ({origin})"
            )
    return contents


def _idx(content: bytes) -> Array:
    """An array of unsigned bytes from gzipped IDX: two zeros, type, number of axes, their lengths as uint32, values."""
    raw = gzip.decompress(content)
    if raw[:3] != bytes([0, 0, IDX_BYTES]):
        raise DataError(f"IDX file starts with {raw[:4].hex()}: not an array of unsigned bytes")
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape.astype(int))


def _pixels(values: Array) -> Array:
    return values.astype(np.float32) / np.float32(PIXEL_MAX)


def _batch(content: bytes) -> tuple[Array, Array]:
    batch = _Restricted(io.BytesIO(content), encoding="bytes").load()
    return batch[b"data"].reshape(-1, 3, 32, 32), np.array(batch[b"labels"])


class _Restricted(pickle.Unpickler):
    """Rebuilds NumPy arrays and plain containers, and calls nothing else a pickle may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]  # its home moved in NumPy 2
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise DataError(f"the pickle asks for {module}.{name}, which a table of pictures has no use for: refused")

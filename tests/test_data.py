"""Data sets: the right values, the same split everywhere, and no damaged or unexpected file ever used."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import pickle  # noqa: TID251 - to write what must be refused
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil.data import BUNDLED, NAMES, ON_DISK, Dataset, batches, load
from hzo_hil.datasets import downloaded
from hzo_hil.devices.errors import BadInput, ConfigError, DataError
from hzo_hil.paths import load_object

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA = Path(os.environ.get("HZO_DATA", SHARED))


def on_disk(folder: str) -> Path:
    """The data folder, or a skip that says what is absent."""
    if not (DATA / folder).is_dir():
        pytest.skip(f"no {folder} in the data folder: set HZO_DATA")
    return DATA


def arrays(**changes: Any) -> dict[str, Any]:
    """A small valid classification set; a change to None takes an array away."""
    rng = np.random.default_rng(0)
    base = {
        "x_train": rng.normal(size=(6, 2, 3)),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng.normal(size=(3, 2, 3)),
        "y_test": np.array([2, 1, 0]),
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not None}


@pytest.fixture
def npz(tmp_path: Path) -> Any:
    def write(**changes: Any) -> Path:
        np.savez(tmp_path / "own.npz", **arrays(**changes))
        return tmp_path / "own.npz"

    return write


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, empty, with sys.path as an installed command finds it: without that directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return tmp_path


# ---- the sets that come with the package


def test_digits_have_the_documented_shape_split_and_range() -> None:
    digits = load("digits")
    assert (digits.x_train.shape, digits.x_test.shape, digits.classes) == ((1197, 64), (600, 64), 10)
    assert (str(digits.x_train.dtype), str(digits.y_train.dtype)) == ("float32", "int64")
    both = np.concatenate([digits.x_train, digits.x_test])
    assert (both.min(), both.max()) == (0.0, 1.0)
    assert np.array_equal(both * 16, np.rint(both * 16))


@pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn is not installed")
def test_digits_equal_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    ours = load("digits")
    with np.load(Path(downloaded.__file__).with_name("digits.npz"), allow_pickle=False) as archive:
        order = archive["order"]
    assert np.array_equal(np.sort(order), np.arange(1797))
    assert np.array_equal(np.concatenate([ours.x_train, ours.x_test]) * 16, theirs.data[order])
    assert np.array_equal(np.concatenate([ours.y_train, ours.y_test]), theirs.target[order])


@pytest.mark.parametrize(("name", "tests"), [("digits", 600), ("iris", 30)])
def test_bundled_splits_are_stratified(name: str, tests: int) -> None:
    data = load(name)
    every = np.bincount(np.concatenate([data.y_train, data.y_test]))
    expected = every * tests / every.sum()
    assert np.all(np.abs(np.bincount(data.y_test) - expected) < 1)


def test_the_first_rows_of_a_bundled_set_hold_every_class() -> None:
    assert len(np.unique(load("iris", limit_train=12).y_train)) == 3
    assert len(np.unique(load("digits", limit_train=60).y_train)) == 10


def test_iris_is_scaled_by_its_training_rows_and_equals_uci() -> None:
    iris = load("iris")
    assert np.array_equal(iris.x_train.min(axis=0), np.zeros(4))
    assert np.array_equal(iris.x_train.max(axis=0), np.ones(4))
    assert 0.0 <= iris.x_test.min() <= iris.x_test.max() <= 1.0
    text = (on_disk("iris") / "iris" / "iris.data").read_text(encoding="ascii")
    theirs = np.array([[float(v) for v in line.split(",")[:4]] for line in text.splitlines() if line])
    low, high = theirs.min(axis=0), theirs.max(axis=0)  # the extremes are among the training rows, as 0 and 1 above say
    ours = np.concatenate([iris.x_train, iris.x_test]) * (high - low) + low
    assert np.allclose(np.sort(ours, axis=0), np.sort(theirs, axis=0), atol=1e-6)
    rows = {tuple(np.rint(row * 10).astype(int)) for row in ours}
    assert rows == {tuple(np.rint(row * 10).astype(int)) for row in theirs}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_damaged_package_file_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules[BUNDLED[name].__module__].CHECKSUMS, f"{name}.npz", "0" * 64)
    with pytest.raises(DataError, match=rf"{name}.npz.*is damaged: install hzo-hil again"):
        load(name)


def test_loading_needs_no_torch(run_python: Any) -> None:
    done = run_python("import hzo_hil.data as d; print(d.load('digits').classes)", without=["torch", "sklearn"])
    assert (done.returncode, done.stdout.strip()) == (0, "10"), done.stderr


# ---- the sets the user has on disk


@pytest.mark.parametrize(
    ("name", "folder", "train", "test", "classes"),
    [
        ("mnist", "mnist", (60000, 1, 28, 28), (10000, 1, 28, 28), 10),
        ("cifar10", "cifar-10", (50000, 3, 32, 32), (10000, 3, 32, 32), 10),
        ("vowels", "hillenbrand-vowels", (210, 12), (49, 12), 7),
    ],
)
def test_sets_on_disk(name: str, folder: str, train: tuple[int, ...], test: tuple[int, ...], classes: int) -> None:
    data = load(name, data_dir=on_disk(folder))
    assert (data.x_train.shape, data.x_test.shape, data.classes) == (train, test, classes)
    assert data.x_train.min() >= 0.0
    assert data.x_train.max() == 1.0
    assert set(np.unique(data.y_test)) == set(range(classes))
    if name != "vowels":
        assert np.all(np.bincount(data.y_test) > 800)


def test_vowels_first_row_is_that_of_the_table_over_the_maxima() -> None:
    first = load("vowels", data_dir=on_disk("hillenbrand-vowels"), limit_train=1)
    hertz = np.array([474, 2362, 2830, 474, 2362, 2830, 565, 2170, 2869, 587, 1973, 2938])
    assert np.allclose(first.x_train[0], hertz / downloaded.VOWEL_MAXIMA, rtol=1e-6)
    assert first.y_train[0] == 6


def test_mnist_is_read_pixel_by_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    images = {part: rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (("train", 5), ("t10k", 2))}
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    for part, pixels in images.items():
        labels = np.arange(len(pixels), dtype=np.uint8)
        for file, values in ((f"{part}-images-idx3-ubyte.gz", pixels), (f"{part}-labels-idx1-ubyte.gz", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            content = gzip.compress(header + values.tobytes())
            (tmp_path / "MNIST" / "raw" / file).write_bytes(content)
            monkeypatch.setitem(downloaded.MNIST, file, hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("HZO_DATA", str(tmp_path))
    data = load("mnist")
    assert np.array_equal(np.rint(data.x_train[:, 0] * 255), images["train"])
    assert np.array_equal(np.rint(data.x_test[:, 0] * 255), images["t10k"])
    assert data.y_train.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ON_DISK)
def test_without_a_data_folder_the_error_says_how_to_set_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HZO_DATA", raising=False)
    with pytest.raises(DataError, match=rf"data set '{name}' does not come.*data_dir \(--data-dir\).*HZO_DATA"):
        load(name)


@pytest.mark.parametrize(
    ("name", "file"),
    [("mnist", "train-images-idx3-ubyte.gz"), ("cifar10", "data_batch_1"), ("vowels", "pat_vowels.csv")],
)
def test_a_missing_file_is_named_with_the_places_looked_in(name: str, file: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(name, data_dir=tmp_path)
    text = str(caught.value)
    assert f"{file} cannot be read (No such file or directory)" in text
    assert str(tmp_path / {"mnist": "mnist", "cifar10": "cifar-10", "vowels": "hillenbrand-vowels"}[name]) in text
    assert "put it there" in text


def test_a_changed_byte_of_cifar_is_refused_before_unpickling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = on_disk("cifar-10") / "cifar-10" / "cifar-10-batches-py"
    copy = tmp_path / "cifar-10-batches-py"
    copy.mkdir()
    content = bytearray((source / "data_batch_1").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "data_batch_1").write_bytes(content)
    opened: list[bytes] = []
    monkeypatch.setattr(downloaded, "_batch", opened.append)
    with pytest.raises(DataError, match=r"data_batch_1 is not the expected file: 31035704 bytes.*It was not opened"):
        load("cifar10", data_dir=tmp_path)
    assert opened == []


class Bomb:
    """A pickle that makes a file when it is opened carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_runs_code_is_refused_even_with_a_fitting_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pickle.dumps(Bomb(tmp_path / "bang"), protocol=2)
    for file in downloaded.CIFAR10:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match="is not the expected file"):
        load("cifar10", data_dir=tmp_path)
    for file in downloaded.CIFAR10:
        monkeypatch.setitem(downloaded.CIFAR10, file, hashlib.sha256(content).hexdigest())
    with pytest.raises(DataError, match=r"the pickle asks for \w+\.mkdir.*refused"):
        load("cifar10", data_dir=tmp_path)
    assert not (tmp_path / "bang").exists()


def test_a_torn_vowel_table_is_refused(tmp_path: Path) -> None:
    source = on_disk("hillenbrand-vowels") / "hillenbrand-vowels" / "pat" / "pat_vowels.csv"
    shutil.copyfile(source, tmp_path / "pat_vowels.csv")
    os.truncate(tmp_path / "pat_vowels.csv", 1000)
    with pytest.raises(DataError, match="pat_vowels.csv is not the expected file: 1000 bytes"):
        load("vowels", data_dir=tmp_path)


# ---- the user's own


def test_npz_classification_and_flatten(npz: Any) -> None:
    data = load("npz", path=npz(), flatten=True, limit_train=4, limit_test=99)
    assert (data.x_train.shape, data.x_test.shape, data.classes) == ((4, 6), (3, 6), 3)
    assert np.allclose(data.x_train, arrays()["x_train"][:4].reshape(4, 6), rtol=1e-6)
    assert load("npz", path=npz()).x_train.shape == (6, 2, 3)
    assert load("npz", path=npz(classes=5)).classes == 5


def test_npz_checksum_is_that_of_the_file(npz: Any) -> None:
    path = npz()
    assert load("npz", path=path).checksum == hashlib.sha256(path.read_bytes()).hexdigest()


def test_npz_regression_targets_are_columns(npz: Any) -> None:
    data = load("npz", path=npz(y_train=np.linspace(0, 1, 6), y_test=np.zeros(3)))
    assert (data.classes, data.y_train.shape, str(data.y_train.dtype)) == (0, (6, 1), "float32")


X = arrays()["x_train"]
HOLED = X.copy()
HOLED[3, 1, 2] = np.nan


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"'own.npz' has no y_test: it needs x_train, .* and holds x_test, x_train, y_train"),
        (
            {"x_train": HOLED},
            r"1 values of x_train are not finite .* \[3, 1, 2\] \(nan\)",
        ),
        ({"x_train": X * 1e300}, r"36 values of x_train are not finite in float32"),
        ({"x_train": X + 1j}, "x_train has dtype complex128.*two reals a port"),
        ({"x_train": X.astype(str)}, "x_train has dtype <U.*not a real number"),
        ({"x_train": X[:5]}, "x_train has 5 rows and y_train has 6"),
        ({"x_test": np.zeros((3, 7))}, r"a row of x_train has shape \(2, 3\), of x_test \(7,\)"),
        ({"x_train": np.zeros(6)}, r"x_train has shape \(6,\); it must be \[n, features...\]"),
        ({"x_test": np.zeros((0, 2, 3))}, "x_test is empty"),
        ({"y_train": np.array([-1, 1, -1, 1, -1, 1])}, "y_train holds the label -1; classes count from 0"),
        ({"y_train": np.eye(6, 3, dtype=int)}, r"y_train holds integers of shape \(6, 3\).*argmax"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(3, int)}, "labels go up to 0 with 1 classes"),
        ({"classes": 2}, "labels go up to 2 with 2 classes"),
        ({"classes": 2.5}, "classes is .*2.5.*whole number"),
        ({"y_test": np.zeros(3)}, "y_train is int64 and y_test float64"),
        ({"y_train": np.zeros((6, 2)), "y_test": np.zeros((3, 3))}, "y_train has 2 targets a row and y_test 3"),
        ({"y_train": np.zeros(6), "y_test": np.zeros(3), "classes": 3}, "classes is 3 but y is float64"),
        ({"y_train": np.full(6, np.inf), "y_test": np.zeros(3)}, "6 values of y_train are not finite"),
        ({"x_train": np.array([object()] * 6)}, "own.npz: x_train cannot be read .*arrays of objects are refused"),
    ],
)
def test_bad_npz(npz: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("npz", path=npz(**changes))


def test_an_npz_that_is_absent_or_no_archive(tmp_path: Path, npz: Any) -> None:
    with pytest.raises(DataError, match=r"none.npz cannot be read \(No such file"):
        load("npz", path=tmp_path / "none.npz")
    with pytest.raises(DataError, match="'npz' needs path"):
        load("npz")
    (tmp_path / "text.npz").write_text("x,y\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError, match="text.npz is not an .npz archive or is damaged"):
        load("npz", path=tmp_path / "text.npz")
    np.save(tmp_path / "single.npy", X)
    with pytest.raises(DataError, match="single.npy is one array"):
        load("npz", path=tmp_path / "single.npy")
    torn = npz().read_bytes()[:-40]
    (tmp_path / "torn.npz").write_bytes(torn)
    with pytest.raises(DataError, match="torn.npz is not an .npz archive or is damaged"):
        load("npz", path=tmp_path / "torn.npz")


def test_a_flipped_bit_inside_an_npz_is_noticed(npz: Any, tmp_path: Path) -> None:
    content = bytearray(npz().read_bytes())
    content[content.find(X.tobytes()[:8])] ^= 1
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(DataError, match="x_train cannot be read"):
        load("npz", path=tmp_path / "own.npz")


def test_a_users_function_gets_its_options_and_returns_a_dict_or_a_dataset(here: Path) -> None:
    (here / "lab_data_a.py").write_text(
        "import numpy as np\n"
        "from hzo_hil.data import load\n"
        "def spectra(rows=4, scale=1.0):\n"
        "    x = scale * np.ones((rows, 3)); y = np.arange(rows) % 2\n"
        "    return dict(x_train=x, y_train=y, x_test=x, y_test=y, source='bench 2')\n"
        "def known():\n"
        "    return load('iris')\n",
        encoding="utf-8",
    )
    data = load("lab_data_a:spectra", rows=8, scale=2.0, limit_test=2)
    assert (data.x_train.shape, data.x_test.shape, data.source) == ((8, 3), (2, 3), "bench 2")
    assert data.x_train.max() == 2.0
    assert load("lab_data_a:spectra").checksum != data.checksum
    same = load("lab_data_a:known")
    assert isinstance(same, Dataset)
    assert np.array_equal(same.x_test, load("iris").x_test)
    assert (same.name, same.source) == ("lab_data_a:known", load("iris").source)


def test_a_users_function_that_fails_is_named(here: Path) -> None:
    (here / "lab_data_b.py").write_text(
        "def broken(): raise OSError('bench is off')\ndef number(): return 3\nvalue = 4\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match="'lab_data_b:broken' called with {} failed with OSError: bench is off"):
        load("lab_data_b:broken")
    with pytest.raises(DataError, match="failed with TypeError"):
        load("lab_data_b:number", wrong=1)
    with pytest.raises(DataError, match="returned a value of type int; return a Dataset or a dict"):
        load("lab_data_b:number")
    with pytest.raises(DataError, match="is of type int, not a function"):
        load("lab_data_b:value")


def test_wrong_names_and_options() -> None:
    with pytest.raises(
        DataError, match=rf"no data set 'digit': the names are {', '.join(NAMES)}, or 'module:function'"
    ):
        load("digit")
    with pytest.raises(DataError, match="'digits' has no option shuffle; the options are data_dir"):
        load("digits", shuffle=True)
    with pytest.raises(DataError, match="'digits' takes no path"):
        load("digits", path="x.npz")
    for limit in (0, -1, True, 2.0):
        with pytest.raises(DataError, match=r"limit_train is .* a number of rows"):
            load("digits", limit_train=limit)  # type: ignore[arg-type]


# ---- batches


@given(n=st.integers(1, 300), size=st.integers(1, 80), key=st.integers(0, 2**128 - 1), shuffle=st.booleans())
def test_batches_hold_every_row_once(n: int, size: int, key: int, shuffle: bool) -> None:
    parts = batches(n, size, key, shuffle)
    assert [len(part) for part in parts[:-1]] == [size] * (len(parts) - 1)
    assert 1 <= len(parts[-1]) <= size
    rows = np.concatenate(parts)
    assert np.array_equal(np.sort(rows) if shuffle else rows, np.arange(n))


def test_batches_depend_on_the_key_alone() -> None:
    np.random.seed(1)  # noqa: NPY002 - must have no effect
    first = np.concatenate(batches(100, 7, key=5))
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(first, np.concatenate(batches(100, 30, key=5)))
    assert not np.array_equal(first, np.concatenate(batches(100, 7, key=6)))
    assert np.concatenate(batches(10, 4, key=0)).tolist() == [0, 7, 8, 6, 9, 5, 1, 3, 2, 4]


@pytest.mark.parametrize(("n", "size"), [(0, 4), (4, 0)])
def test_batches_of_nothing(n: int, size: int) -> None:
    with pytest.raises(BadInput, match="both must be at least 1"):
        batches(n, size, key=0)


# ---- "module:name"


def test_load_object_finds_neighbours_and_attributes(here: Path) -> None:
    (here / "lab_own_a.py").write_text(
        "class Loss:\n    @staticmethod\n    def soft(): import lab_own_b; return lab_own_b.value\n", encoding="utf-8"
    )
    (here / "lab_own_b.py").write_text("value = 7\n", encoding="utf-8")
    assert load_object("lab_own_a:Loss.soft", what="loss")() == 7
    assert load_object("os.path:join") is os.path.join


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("loss.py", r"loss 'loss.py' is not of the form 'module:name'.*without '.py'"),
        ("a/b.py:f", "is not of the form"),
        (":f", "is not of the form"),
        ("lab_missing:f", "no module 'lab_missing'. Looked in the current directory .*Start from the folder"),
        ("json.lab_missing:f", "no module 'json.lab_missing'"),
        ("json:dump_s", r"module 'json' \(.*\) has no 'dump_s'. Did you mean dumps"),
        ("json:JSONDecoder.xyzzy", "JSONDecoder has no 'xyzzy'"),
        ("lab_needs:f", "'lab_needs' was found but imports 'lab_not_there', which is not installed"),
        ("lab_fails:f", "importing 'lab_fails' failed with ZeroDivisionError"),
        ("lab_syntax:f", "importing 'lab_syntax' failed with SyntaxError"),
    ],
)
def test_load_object_errors(here: Path, path: str, message: str) -> None:
    (here / "lab_needs.py").write_text("import lab_not_there\n", encoding="utf-8")
    (here / "lab_fails.py").write_text("1 / 0\n", encoding="utf-8")
    (here / "lab_syntax.py").write_text("def f(:\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_object(path, what="loss")

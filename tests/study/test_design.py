"""Which points a study looks at: grids in order, samples that fill the cube, seeds and methods met by every point."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil.devices.errors import ConfigError
from hzo_hil.study.constraints import Constraint
from hzo_hil.study.design import points, size
from hzo_hil.study.studyfile import AxisSection, DesignSection

SIGMA = AxisSection(low=0.0, high=0.2, role="noise")
SEED = AxisSection(values=[0, 1, 2], role="seed")
METHOD = AxisSection(values={"a": {"m": 1}, "b": {"m": 2}})


def test_a_grid_is_every_combination_in_the_order_of_the_axes() -> None:
    axes = {"x": AxisSection(values=[1, 2]), "method": METHOD, "seed": SEED}
    found = list(points(DesignSection(), axes, []))
    assert [tuple(p.values()) for p in found] == list(itertools.product([1, 2], ["a", "b"], [0, 1, 2]))
    assert size(DesignSection(), axes) == len(found)


@pytest.mark.parametrize("kind", ["random", "latin_hypercube"])
def test_every_sampled_point_meets_every_seed_and_method(kind: str) -> None:
    design = DesignSection(kind=kind, runs=10, seed=4)
    found = list(points(design, {"sigma": SIGMA, "method": METHOD, "seed": SEED}, []))
    assert len(found) == size(design, {"sigma": SIGMA, "method": METHOD, "seed": SEED}) == 60
    by_place: dict[float, set[tuple[str, int]]] = {}
    for point in found:
        by_place.setdefault(point["sigma"], set()).add((point["method"], point["seed"]))
    assert len(by_place) == 10
    assert all(met == set(itertools.product("ab", [0, 1, 2])) for met in by_place.values())


def test_a_latin_hypercube_has_one_point_in_each_slice_of_each_axis() -> None:
    axes = {"a": SIGMA, "b": AxisSection(low=1.0, high=100.0, scale="log"), "seed": SEED}
    found = list(points(DesignSection(kind="latin_hypercube", runs=20), axes, []))[::3]
    a = np.array([p["a"] for p in found]) / 0.2
    b = np.log(np.array([p["b"] for p in found])) / np.log(100.0)
    for axis in (a, b):
        assert sorted((axis * 20).astype(int)) == list(range(20))


@pytest.mark.parametrize("kind", ["random", "latin_hypercube"])
def test_a_sample_depends_on_its_seed_alone(kind: str) -> None:
    def drawn(seed: int) -> list[dict[str, object]]:
        return list(points(DesignSection(kind=kind, runs=5, seed=seed), {"sigma": SIGMA}, []))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_constraints_leave_points_out() -> None:
    axes = {"bits": AxisSection(values=[4, 6, 8]), "sigma": AxisSection(values=[0, 0.05, 0.1])}
    found = list(points(DesignSection(), axes, ["bits >= 6 or sigma < 0.05"]))
    assert {(p["bits"], p["sigma"]) for p in found} == {(4, 0)} | set(itertools.product([6, 8], [0, 0.05, 0.1]))


@given(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from(["a", "b"]))
def test_a_constraint_means_what_python_means_by_it(x: int, y: int, method: str) -> None:
    for text in [
        "x < y", "0 <= x < y <= 4", "not (x == y) and x + 2 * y > 1", "x in [1, 2, y]", "method == 'a' or x % 3 == 1",
        "-x / 2 >= y - 1", "x != y", "method not in ('b',)",
    ]:  # fmt: skip
        names = {"x": x, "y": y, "method": method}
        assert Constraint(text, list(names)).holds(names) == bool(eval(text, {}, names))  # noqa: S307 - our own texts


def test_dots_belong_to_names() -> None:
    assert Constraint("train.epochs > 2", ["train.epochs"]).holds({"train.epochs": 3})


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "x.__class__", "(lambda: 1)()", "x[0]", "x if x else x", "[y for y in x]",
     "x ** 9", "x =", "f'{x}'", "x := 1", "1e999 < x.real()"],
)  # fmt: skip
def test_what_is_no_constraint_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="constraint"):
        Constraint(text, ["x"])


def test_a_constraint_names_axes() -> None:
    with pytest.raises(ConfigError, match="no axis 'bit'; the axes are bits"):
        Constraint("bit > 2", ["bits"])


def test_a_constraint_without_an_answer_is_a_mistake_of_the_file() -> None:
    with pytest.raises(ConfigError, match="has no answer for x='a'"):
        Constraint("x < 2", ["x"]).holds({"x": "a"})

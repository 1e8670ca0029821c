"""docs/optimisers.md: its code runs, every method is in its table, the stated settings are the defaults."""

from __future__ import annotations

import inspect
import re

import pytest

from hzo_hil import optim
from tests.conftest import ROOT

TEXT = (ROOT / "docs" / "optimisers.md").read_text(encoding="utf-8")
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)`.*$", TEXT, re.MULTILINE)}
BASES = {"Descent", "LossOnly"}


def test_every_method_has_a_row() -> None:
    public = {name for name in optim.__all__ if inspect.isclass(getattr(optim, name))} - BASES
    elsewhere = {"DeepZero", "FeatureReuse", "ZOSAH"}  # with pages of their own
    assert public - elsewhere <= set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_method_is_marked_sgd_exactly_if_it_descends_along_an_estimate(name: str) -> None:
    assert ("(SGD)" in ROWS[name]) == issubclass(getattr(optim, name), optim.Descent)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize(("setting", "pattern"), [("eps", r"eps (\d[\de.-]*)"), ("directions", r"q (\d+)\*? *[|,]")])
def test_stated_settings_are_the_defaults(name: str, setting: str, pattern: str) -> None:
    stated = re.search(pattern, ROWS[name].split("|")[4] + "|")
    default = inspect.signature(getattr(optim, name)).parameters.get(setting)
    if stated is None:
        assert default is None or default.default in (None, 1, inspect.Parameter.empty)
    else:
        assert default is not None
        assert float(stated[1]) == default.default


def test_the_examples_run() -> None:
    scope: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        exec(block, scope)
    assert float(scope["loss"]) < 0.1  # type: ignore[arg-type]

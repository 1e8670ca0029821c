"""The kit as tests: one test a check. In a test file of your own:

    import pytest
    from hzo_hil.devices.conformance.as_pytest import *  # noqa: F403

    @pytest.fixture
    def device_source():
        return lambda: MyDevice("COM3")

`device_source` gives something that makes a device each time it is called. The fixture `device_check_options` may be
overridden to pass options of `check` (`{"quick": True}`). The kit runs once a test module; skips name what is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hzo_hil.devices.api import Device
from hzo_hil.devices.conformance.kit import NAMES, check
from hzo_hil.devices.conformance.report import Report

__all__ = ["conformance_report", "device_check_options", "test_conformance"]

_reports = pytest.StashKey[dict[str, Report]]()


@pytest.fixture
def device_check_options() -> dict[str, Any]:
    return {}


@pytest.fixture
def conformance_report(
    request: pytest.FixtureRequest, device_source: Callable[[], Device], device_check_options: dict[str, Any]
) -> Report:
    """The report of this module's device, made when it is first wanted."""
    kept = request.config.stash.setdefault(_reports, {})
    where = request.node.nodeid.partition("::test_conformance")[0]
    if where not in kept:
        kept[where] = check(device_source, **device_check_options)
    return kept[where]


@pytest.mark.parametrize("name", NAMES)
def test_conformance(name: str, conformance_report: Report) -> None:
    rows = {r.name: r for r in conformance_report.rows}
    if "opens" in rows:
        pytest.fail(rows["opens"].detail)
    row = rows.get(name)
    if row is None or row.outcome == "skip":
        pytest.skip(row.detail if row else "not among the checks chosen")
    if row.outcome == "fail":
        pytest.fail(f"{row.detail}\nWhat to change: {row.change}", pytrace=False)

"""Train networks whose stages can only be queried: simulated optics, emulators, real devices.

Importing this package imports neither torch nor any transport, so that a lab PC can serve a device
with numpy alone; the names below load what they need when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In a plain checkout the folders devices/ and simulators/ sit beside this one; an installed package has them inside.
_root = Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "devices").is_dir():
    __path__.append(str(_root))
del _root

if TYPE_CHECKING:
    from hzo_hil.calibration import Calibration
    from hzo_hil.devices.errors import BadInput, BadStep, DeviceError, HzoError, RunStopped
    from hzo_hil.health import HealthPolicy, watch
    from hzo_hil.ledger import Ledger
    from hzo_hil.modelcalibration import calibrate_model
    from hzo_hil.module import Opaque
    from hzo_hil.network import Codec, Stage, Tiles
    from hzo_hil.opening import open_device
    from hzo_hil.plan import Plan, Tree
    from hzo_hil.replanning import replan_model
    from hzo_hil.session import record
    from hzo_hil.study.place import run_folder
    from hzo_hil.study.table import load_study

_EXPORTS = {
    "BadInput": "devices.errors",
    "BadStep": "devices.errors",
    "Calibration": "calibration",
    "Codec": "network",
    "DeviceError": "devices.errors",
    "HealthPolicy": "health",
    "HzoError": "devices.errors",
    "Ledger": "ledger",
    "Opaque": "module",
    "Plan": "plan",
    "RunStopped": "devices.errors",
    "Stage": "network",
    "Tiles": "network",
    "Tree": "plan",
    "calibrate_model": "modelcalibration",
    "check_structure": "structurecheck",
    "load_study": "study.table",
    "open_device": "opening",
    "record": "session",
    "replan_model": "replanning",
    "run_folder": "study.place",
    "watch": "health",
}

__all__ = [
    "BadInput",
    "BadStep",
    "Calibration",
    "Codec",
    "DeviceError",
    "HealthPolicy",
    "HzoError",
    "Ledger",
    "Opaque",
    "Plan",
    "RunStopped",
    "Stage",
    "Tiles",
    "Tree",
    "calibrate_model",
    "check_structure",
    "load_study",
    "open_device",
    "record",
    "replan_model",
    "run_folder",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'hzo_hil' has no attribute {name!r}")
    return getattr(import_module(f"hzo_hil.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])

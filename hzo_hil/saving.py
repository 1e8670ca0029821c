"""What of an `Opaque` outlives it: its state in a checkpoint, its copies and its pickles.

Devices are never copied: a copy shares them under an owner of its own, a pickle names how to open them again. Knows the
module's parts, and nothing of queries or gradients.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

from torch import nn

from hzo_hil import sources
from hzo_hil.calibrate import fingerprint
from hzo_hil.calibration import Calibration
from hzo_hil.network import Network
from hzo_hil.resolve import resolve
from hzo_hil.subspaces import Subspaces
from hzo_hil.updates import rules_for

if TYPE_CHECKING:
    from hzo_hil.module import Opaque

_CONNECTED = ("dispatch", "owner", "written", "jacobians", "_override")
"""What `Opaque._connect` makes anew."""
_SHARED = ("network", "plan", "resolved", "rules", "policy")
"""What a copy has in common with its original."""


# --- checkpoints -----------------------------------------------------------------------------------------------


def state_of(module: Opaque) -> dict[str, Any]:
    """All but the masters, which torch saves: where streams stand, what was measured, what devices hold."""
    module.written.update(module.stages, module.dispatch.count)
    return {
        "forwards": module.forwards,
        "evaluated": module.evaluated,
        "epochs": list(module.written.epochs),
        "devices": [d.capabilities.identity for d in module.network.devices],
        "held": _held(module),
        "jacobians": module.jacobians.state(),
        "twins": {k: rule.state() for k, rule in module.learned.items()},
        "subspaces": module.subspaces.state(),
        "targets": None if module.target_rule is None else [module.credit, module.target_rule.state()],
        "gains": module.gains.state(),
        "balanced": module.balanced,
        "factors": list(module.factors),
        "calibration": None if module.calibration is None else module.calibration.as_json(),
        "calibrated": module.calibrated,
        "planned_for": list(module.planned_for),
    }


def _held(module: Opaque) -> list[list[Any]]:
    """[device number, physical stage, stage, block, epoch] of what is on a device of the module, or was when last
    saved.
    """
    found: list[list[Any]] = []
    for number, device in enumerate(module.network.devices):
        expected = module.dispatch.programming.expected
        tenants = {p: tenant for (owner, p), tenant in expected.items() if owner == id(device)}
        tenants |= {p: held.tenant for p, held in module.dispatch.link(device).held.items()}
        for physical, tenant in sorted(tenants.items()):
            if tenant[0] is module.owner and len(tenant) == 5 and tenant[3] == module.written.history:
                _, k, tile, _, epoch = tenant
                found.append([number, physical, k, list(tile) if tile is not None else None, epoch])
    return found


def load(module: Opaque, state: dict[str, Any]) -> None:
    """Take a state over; `finish` does the rest once the masters, which torch loads after this, are there."""
    module.forwards, module.evaluated = state["forwards"], state["evaluated"]
    module.subspaces = Subspaces.restored(state.get("subspaces", {}))
    here = [d.capabilities.identity for d in module.network.devices]
    if state["devices"] != here:
        warnings.warn(
            f"{module.name} was trained on {', '.join(state['devices'])} and is loaded on {', '.join(here)}:"
            " its parameters fit the other device's imperfections",
            stacklevel=3,
        )
    credit, targets = state.get("targets") or (None, {})
    if module.target_rule is not None and credit == module.credit:
        module.target_rule.load(targets)
    if "gains" in state:
        module.gains.load(state["gains"])
    module.balanced = state.get("balanced", False)
    module.rescale([f / g for f, g in zip(state.get("factors", module.factors), module.factors, strict=True)])
    module.calibrated = state.get("calibrated", 0)
    if state.get("calibration") is not None:
        kept = Calibration.from_json(state["calibration"])
        # Of another device it says nothing: a plan of the planner's must then be made anew.
        module.calibration = module.outcome = None
        if kept.fingerprint == fingerprint(module.network):
            module.adopt(kept, *state["planned_for"])
    module.pending = {
        "epochs": list(state["epochs"]),
        "held": list(state.get("held", [])),
        "jacobians": list(state.get("jacobians", [])) if state["devices"] == here else [],
    }
    for k, twin in state.get("twins", {}).items():
        if k in module.learned:
            module.learned[k].load(twin)


def finish(module: Opaque, _: Any) -> None:
    """After loading, the written values are those of the loaded masters, at the epochs they had."""
    if module.pending is None:
        return
    pending, module.pending = module.pending, None
    module.written.restore(module.stages, pending["epochs"])
    module.jacobians.restore(pending["jacobians"], module.network)
    for number, physical, k, tile, epoch in pending["held"]:
        block = tuple(tile) if tile is not None else None
        tenant = (module.owner, k, block, module.written.history, epoch)
        module.dispatch.programming.expected[id(module.network.devices[number]), physical] = tenant


# --- copies and pickles ----------------------------------------------------------------------------------------


def copied(module: Opaque, memo: dict[int, Any]) -> Opaque:
    """A deep copy that shares the devices under an owner of its own."""
    twin = module.__class__.__new__(module.__class__)
    nn.Module.__init__(twin)
    memo[id(module)] = twin
    for name, value in module.__dict__.items():
        if name in _SHARED:
            twin.__dict__[name] = value
        elif name not in _CONNECTED:
            twin.__dict__[name] = copy.deepcopy(value, memo)
    twin._connect()
    twin.written.epochs = list(module.written.epochs)
    twin.written.values = [dict(v) for v in module.written.values]
    return twin


def pickled(module: Opaque) -> dict[str, Any]:
    """The module as plain data, with the address of each device in its place. Raises BadInput where one has none."""
    module.written.update(module.stages, module.dispatch.count)
    state = module.__dict__.copy()
    for name in (*_CONNECTED, "network", "resolved", "rules"):
        state.pop(name, None)
    state["_stages"] = sources.portable(module.network.stages)
    state["_epochs"] = list(module.written.epochs)
    return state


def unpickle(module: Opaque, state: dict[str, Any]) -> None:
    """The way back: opens the devices anew."""
    stages, epochs = state.pop("_stages"), state.pop("_epochs")
    module.__dict__.update(state)
    module.network = Network(sources.reopened(stages))
    module.resolved = resolve(module.network, module.plan)
    module.rules = rules_for(module.network.stages, module.credit)
    module._connect()
    module.written.restore(module.stages, epochs)

"""Looks after devices between passes, when nothing is in flight: canaries, references, maintenance.

Does the asking that `health` judges. Every query and write is charged to the purpose "health".
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.devices.errors import Drifted
from hzo_hil.dispatch import Call, Dispatch
from hzo_hil.health import Probe, Watch
from hzo_hil.link import Link
from hzo_hil.network import Network, Stage
from hzo_hil.programming import HEALTH, Image
from hzo_hil.scheduler import pack, rows_per_call
from hzo_hil.streams import row_keys, stream_key

Array = NDArray[Any]
_FIRST = 4  # baselines are averaged over so many asks


def tend(dispatch: Dispatch) -> None:
    """Do what is due on every watched device of a network. Raises Drifted where maintenance does not help."""
    for device in dispatch.network.devices:
        link = dispatch.link(device)
        if link.watch is not None:
            _look(dispatch, link, link.watch)


def _look(dispatch: Dispatch, link: Link, watch: Watch) -> None:
    reconnects = int(getattr(link.device, "counters", {}).get("reconnects", 0))
    returned, watch.reconnects = reconnects > watch.reconnects, reconnects
    reference, canary = watch.reference, watch.canary
    if reference is not None and (returned or reference.due(watch.queries)):
        if reference.first is None:
            _baseline(dispatch, link, reference)
        else:
            watch.learn(_ask(dispatch, link, reference))
        dispatch.monitors |= {"health_gain": watch.gain, "health_dark": watch.dark}
    if canary is not None and (returned or canary.due(watch.queries)):
        if canary.first is None:
            _baseline(dispatch, link, canary)
        elif watch.drifted(watch.corrected(_ask(dispatch, link, canary))):
            _maintain(dispatch, link, watch, canary)
        dispatch.monitors["health_drift"] = watch.drift


def _maintain(dispatch: Dispatch, link: Link, watch: Watch, canary: Probe) -> None:
    policy = watch.policy
    maintain = _maintenance(link)
    before = watch.drift
    if policy.on_drift == "stop":
        tried = "health.on_drift is stop"
    elif maintain is None:
        tried = "its driver has no maintain() to call"
    else:
        for _ in range(policy.tries):
            dispatch.count("maintenances")
            link.call(maintain)
            link.forget()  # re-locking may have moved what was written
            time.sleep(policy.pause_s)
            if watch.reference is not None:
                watch.learn(_ask(dispatch, link, watch.reference))
            if not watch.drifted(watch.corrected(_ask(dispatch, link, canary))):
                return
        tried = f"{policy.tries} maintenances left it at {watch.drift:.3g}"
    raise Drifted(
        f"device {link.name!r} answers its canary {before:.3g} of its spread away from the first answers, beyond the"
        f" limit of {policy.limit:g} ({tried}). The run stops here and can be resumed: re-align the device, or raise"
        " health.limit, or let references correct slow gain (health.reference)"
    )


def _maintenance(link: Link) -> Callable[[], None] | None:
    """The device's own maintain(), where it has one; behind a wire, where the other side offers it."""
    offered = "maintain" in getattr(link.device, "features", {"maintain"})
    return getattr(link.device, "maintain", None) if offered else None


def _baseline(dispatch: Dispatch, link: Link, probe: Probe) -> None:
    answers = np.stack([_ask(dispatch, link, probe) for _ in range(_FIRST)])
    probe.first = answers.mean(axis=0)
    probe.noise = float(np.sqrt(answers.var(axis=0, ddof=1).mean()))


def _ask(dispatch: Dispatch, link: Link, probe: Probe) -> Array:
    """The probe's answers, in device units, uncorrected."""
    watch = link.watch
    assert watch is not None
    images: dict[int, Image] = {
        k: ((HEALTH, k), values, stream_key(0, HEALTH, k)) for k, values in probe.parameters.items()
    }
    network = Network([Stage(link.device, probe.segment)])
    hop = network.route(0, 1)[0]
    asker = Dispatch(network, lambda *_: images, dispatch.books.own, dispatch.policy)
    key = stream_key(0, HEALTH, link.name, watch.queries)
    rows = rows_per_call(link.capabilities, hop.in_ports, 1, 1)
    calls = (
        Call(hop, hop.parts[0], probe.inputs[a:b], HEALTH, row_keys(key, a, b - a), tag=a, first=a)
        for a, b in pack(len(probe.inputs), rows)
    )
    found = np.empty((len(probe.inputs), network.width(1)))
    for answer in asker.stream(calls):
        found[answer.call.tag : answer.call.tag + len(answer.outputs)] = answer.outputs
    probe.asked_at = watch.queries
    return found

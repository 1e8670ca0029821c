"""Passes that stay where a simulation computes: activations and targets remain its tensors, on a GPU above all.

Between a device and a host in one process nothing need be copied. That holds for a simulation with a `place` that
probes by itself; whatever must look at single answers (ends of ranges, watches, rules that learn from them) goes by
arrays. What is asked, its keys and the ledger are the same either way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadStep
from hzo_hil.dispatch import Dispatch
from hzo_hil.network import Network
from hzo_hil.offload import offloaded, questions
from hzo_hil.plan import Cut
from hzo_hil.resolve import Resolved
from hzo_hil.scheduler import pack, rows_per_call
from hzo_hil.streams import row_keys
from hzo_hil.updates import LeafRule
from hzo_hil.values import endless

if TYPE_CHECKING:
    from hzo_hil.module import Opaque

OnTarget = Callable[[int, Tensor], None]


def fits(network: Network, resolved: Resolved, rules: Iterable[LeafRule | None]) -> bool:
    """Whether every pass of this plan can stay on the one device of a network."""
    hops = network.forward_hops(inner=True)
    if len(hops) > 1 or getattr(hops[0][0].device, "place", None) is None:
        return False
    if any(rule is not None and rule.queries for rule in rules):
        return False
    limits = [network.limits(k) for k in range(network.depth)]
    reads = [(s.read.out_low, s.read.out_high) for s in network.stages]
    plain = all(s.codec_in.identity and s.codec_out.identity for s in network.stages)
    ends = all(endless(*ends) for ends in [*limits, *reads])
    return plain and ends and all(offloaded(network, resolved.at[c.at]) for c in resolved.tree.with_input().cuts)


def forward(dispatch: Dispatch, flat: Tensor, key: int) -> dict[int, Tensor]:
    """Activations [samples, width] at every boundary, as `reference.forward_pass` finds them."""
    network = dispatch.network
    ((hop, taps),) = network.forward_hops(inner=True)
    device: Any = hop.device
    capabilities = device.capabilities
    driven = flat.detach().to(device.place, getattr(torch, capabilities.dtype))
    parts: list[dict[int, Tensor]] = []
    for start, stop in pack(len(driven), rows_per_call(capabilities, hop.in_ports, 1, 1)):
        keys = row_keys(key, (hop.lo << 48) + start, stop - start)

        def asked(rows: Tensor = driven[start:stop], keys: Any = keys) -> dict[int, Tensor]:
            reply = device.run(hop.segment, rows, taps=taps, keys=keys)
            return {network.boundary_of(hop, b): t for b, t in reply.taps.items()} | {hop.hi: reply.outputs}

        parts.append(dispatch.ask(hop, asked, "forward", stop - start))
    return {0: driven} | {k: torch.cat([p[k] for p in parts]) if len(parts) > 1 else parts[0][k] for k in parts[0]}


def targets(
    module: Opaque, cuts: Iterable[Cut], activations: Mapping[int, Any], top: Tensor, key: Callable[[int], int],
    on_target: OnTarget,
) -> None:  # fmt: skip
    """Targets at all cuts, parents first, as `credit.hzo.estimate_targets` finds them. `key`: of a boundary's rows."""
    network, found = module.network, {module.network.depth: top.to(activations[0])}
    for cut in cuts:
        planned = module.resolved.at[cut.at]
        (hop,) = network.route(cut.at, cut.source)
        known = activations[cut.source] if planned.answered else None
        asked = questions(
            hop.segment, activations[cut.at], network.colouring(cut.at, cut.source), planned.eps, planned.scheme.paired,
            found[cut.source], key(cut.at), known,
        )  # fmt: skip
        found[cut.at] = torch.cat([module.dispatch.probe(hop, one, "probes") for one in asked]).to(top.dtype)
        on_target(cut.at, found[cut.at])


def refuse_not_finite(module: Opaque, energies: Mapping[int, float]) -> None:
    bad = sorted(k for k, energy in energies.items() if not math.isfinite(energy))
    if bad:
        module.dispatch.count("non_finite")
        raise BadStep(
            f"targets at boundaries {bad} of {module.name} are NaN or infinite. The step was dropped, no parameter"
            " changed. Likely cause: a diverging optimiser; lower its learning rate"
        )

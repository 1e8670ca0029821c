"""A plan made definite for a network: the tree, and per boundary the step, checked before any device time.

Pure: asks capabilities, sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from hzo_hil.devices.errors import BadInput
from hzo_hil.differences import Scheme, check_step, default_step, scheme
from hzo_hil.network import Network
from hzo_hil.plan import Cut, Plan, Tree
from hzo_hil.probes import ProbeSet, probe_set


@dataclass(frozen=True)
class Resolved:
    """`eps` by boundary 0..depth-1, in activation units."""

    tree: Tree
    set: ProbeSet
    scheme: Scheme
    eps: tuple[float, ...]
    repeats: int


def resolve(network: Network, plan: Plan) -> Resolved:
    wanted = plan.tree
    if wanted is None:
        wanted = "bisect" if network.reachable(0, network.depth) else "chain"
    tree = Tree.of(wanted, network.depth)
    for cut in tree.cuts:
        if not network.reachable(cut.at, cut.source):
            raise BadInput(
                f"tree {tree.name!r} asks stages {cut.at + 1}..{cut.source} in one go, but some of them share a"
                " physical"
                " stage, which must be re-programmed in between, or need several queries each (tiles, two_pass)."
                " Use tree='chain'"
            )
    if isinstance(plan.eps, dict) and (extra := sorted(set(plan.eps) - set(range(network.depth)))):
        raise BadInput(f"eps names boundaries {extra}; this network can be driven at 0..{network.depth - 1}")
    differences = scheme(plan.differences)
    probes = probe_set(plan.probes, forward_differences=not differences.paired)
    cuts = {cut.at: cut for cut in tree.with_input().cuts}
    steps = tuple(_step(network, plan, probes, differences, cuts[k]) for k in range(network.depth))
    return Resolved(tree, probes, differences, steps, plan.repeats)


def _step(network: Network, plan: Plan, probes: ProbeSet, differences: Scheme, cut: Cut) -> float:
    low, high = network.limits(cut.at)
    diagonal = network.structure(cut.at, cut.source) == "diagonal"
    # What is left of the range for a step, where a probe moves an element by several.
    span = (high - low) / (1.0 if diagonal else max(1.0, probes.reach(network.width(cut.at))))
    converter = network.converter_step(cut.at)
    given = plan.eps.get(cut.at) if isinstance(plan.eps, dict) else plan.eps
    if given is not None:
        return check_step(differences, given, converter, span, cut.at)
    route = network.route(cut.at, cut.source)
    dtype = "float32" if any(h.device.capabilities.dtype == "float32" for h in route) else "float64"
    noise = max((n for h in route if (n := network.read_noise(h.hi)) is not None), default=None)
    return default_step(differences, dtype, noise, converter, span)

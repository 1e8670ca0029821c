"""A plan made definite for a network: the tree, and per boundary the step, checked before any device time.

Pure: asks capabilities, sends nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from hzo_hil.devices.errors import BadInput
from hzo_hil.differences import Scheme, check_step, default_step, scheme
from hzo_hil.network import Network
from hzo_hil.plan import Plan, Tree
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
                f"tree {tree.name!r} asks stages {cut.at + 1}..{cut.source} in one go, but some of them share a physical stage,"
                " which must be re-programmed in between. Use tree='chain'"
            )
    differences = scheme(plan.differences)
    steps = []
    for k in range(network.depth):
        low, high = network.limits(k)
        converter = network.converter_step(k)
        given = plan.eps.get(k) if isinstance(plan.eps, dict) else plan.eps
        if given is None:
            dtype = network.stages[k].device.capabilities.dtype
            steps.append(default_step(differences, dtype, network.read_noise(network.depth), converter, high - low))
        else:
            steps.append(check_step(differences, given, converter, high - low, k))
    if isinstance(plan.eps, dict) and (extra := sorted(set(plan.eps) - set(range(network.depth)))):
        raise BadInput(f"eps names boundaries {extra}; this network can be driven at 0..{network.depth - 1}")
    probes = probe_set(plan.probes, forward_differences=not differences.paired)
    return Resolved(tree, probes, differences, tuple(steps), plan.repeats)

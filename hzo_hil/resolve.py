"""A plan made definite for a network: the tree, and per boundary the step, checked before any device time.

Pure: asks capabilities, sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hzo_hil.devices.errors import BadInput
from hzo_hil.differences import Scheme, check_step, default_step, largest_step, scheme
from hzo_hil.network import Network
from hzo_hil.plan import Cut, Plan, Step, Tree
from hzo_hil.probes import ProbeSet, exact, probe_set
from hzo_hil.probes.subspace import Subspace
from hzo_hil.values import endless


@dataclass(frozen=True)
class CutPlan:
    """One cut made definite. `eps`: perturbation per element, activation units. `shared`: its segment has one Jacobian,
    which is measured once for the whole batch. `average`: the part of its probes asked in an ordinary pass. `answered`:
    the forward pass has asked the reference of its one-sided differences.
    """

    cut: Cut
    set: ProbeSet
    scheme: Scheme
    eps: float
    repeats: int
    shared: bool = False
    average: float = 1.0
    answered: bool = False

    def queries(self, probes: int) -> int:
        """Rows a sample (or a batch, where shared), before repeats."""
        return self.scheme.queries(probes) - self.answered


@dataclass(frozen=True)
class Resolved:
    """`at`: by boundary 0..depth-1; the first is that of the input, which the tree itself leaves out."""

    tree: Tree
    at: tuple[CutPlan, ...]
    leaf_repeats: int

    @property
    def eps(self) -> tuple[float, ...]:
        return tuple(planned.eps for planned in self.at)


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
    for name, named in plan.boundaries.items():
        if extra := sorted(named - set(range(network.depth))):
            raise BadInput(f"{name} names boundaries {extra}; this network can be driven at 0..{network.depth - 1}")
    cuts = {cut.at: cut for cut in tree.with_input().cuts}
    leaf = plan.leaf_repeats or (plan.repeats if isinstance(plan.repeats, int) else 1)
    planned = (_planned(network, plan.at(k), cuts, cuts[k], plan.shared) for k in range(network.depth))
    return Resolved(tree, tuple(planned), leaf)


def _planned(network: Network, step: Step, cuts: Mapping[int, Cut], cut: Cut, share: bool) -> CutPlan:
    differences = scheme(step.differences)
    probes = probe_set(step.probes, forward_differences=not differences.paired)
    linear = share and network.linear(cut.at, cut.source)
    full = probes
    if isinstance(probes, Subspace):
        noisy = any(network.read_noise(h.hi) for h in network.route(cut.at, cut.source))
        full = probe_set("hadamard" if noisy else "coordinate", forward_differences=not differences.paired)
        probes = full if linear else probes  # what is measured whole has nothing to be learnt
    span = _span(network, probes, cut)
    # Of a few random directions, errors common to the whole batch would not average out.
    shared = linear and exact(probes)
    eps = _eps(network, step.eps, differences, cut, span, shared)
    if shared and 2 * eps > span * (1 + 1e-9):
        # Less than two such steps, raised to the converter's: probed to one side only, sample by sample.
        shared = False
        eps = _eps(network, step.eps, differences, cut, span, shared)
    if isinstance(probes, Subspace):
        probes = probes.placed(full, _longest_chain(cuts, cut.at), network.converter_step(cut.at) / eps)
    average = step.average if shared else 1.0
    answered = not differences.paired and not shared and _answered(network, cut, probes)
    return CutPlan(cut, probes, differences, eps, step.repeats, shared, average, answered)


def _answered(network: Network, cut: Cut, probes: ProbeSet) -> bool:
    """Whether the forward pass drives the cut's base through its very segment, and would get that answer again."""
    hop = next((h for h, _ in network.forward_hops(inner=True) if (h.lo, h.hi) == (cut.at, cut.source)), None)
    if hop is None or len(hop.parts) > 1 or network.read_noise(cut.source) != 0:
        return False
    moved_inside = probes.spread and not endless(*network.limits(cut.at))  # where the range ends too soon for a probe
    return not moved_inside and not getattr(hop.device, "by_sample", False)


def _longest_chain(cuts: Mapping[int, Cut], at: int) -> int:
    """Estimates between the loss and the target that has the most of them, of those that depend on the one `at`."""

    def path(boundary: int) -> list[int]:
        return [] if boundary not in cuts else [boundary, *path(cuts[boundary].source)]

    return max(len(p) for p in map(path, cuts) if at in p)


def _span(network: Network, probes: ProbeSet, cut: Cut) -> float:
    """What is left of the range for a step, where a probe moves an element by several."""
    low, high = network.limits(cut.at)
    dense = network.structure(cut.at, cut.source) == "dense"
    return (high - low) / (max(1.0, probes.reach(network.width(cut.at))) if dense else 1.0)


def _eps(network: Network, given: float | None, differences: Scheme, cut: Cut, span: float, shared: bool) -> float:
    converter = network.converter_step(cut.at)
    if given is not None:
        return check_step(differences, given, converter, span, cut.at)
    if shared:
        return largest_step(differences, converter, span)
    route = network.route(cut.at, cut.source)
    dtype = "float32" if any(h.device.capabilities.dtype == "float32" for h in route) else "float64"
    noise = max((n for h in route if (n := network.read_noise(h.hi)) is not None), default=None)
    return default_step(differences, dtype, noise, converter, span)

"""What a training step will cost, counted beforehand exactly as the ledger counts it. Pure: sends nothing.

Per step of one batch: queries, stage evaluations, calls, writes (when every stage's codes change), and declared device
seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from hzo_hil import resident
from hzo_hil.backward import needed_tree
from hzo_hil.credit.rule import Question
from hzo_hil.ledger import Account
from hzo_hil.network import Hop, Network
from hzo_hil.offload import offloaded, samples_per_call
from hzo_hil.plan import Cut, portion
from hzo_hil.recompute import Ask, Move, moves
from hzo_hil.resolve import CutPlan, Resolved
from hzo_hil.scheduler import calls, rows_per_call
from hzo_hil.updates import LeafRule
from hzo_hil.updates.learned import LearnedTwin


@dataclass(frozen=True)
class Forecast:
    """Accounts by purpose of one training step, and the costs per sample that trees are compared by. Probes of shared
    Jacobians do not grow with the batch and are counted apart, per batch.
    """

    purposes: dict[str, Account]
    queries_per_sample: int
    stage_evaluations_per_sample: int
    queries_per_batch: int = 0
    stage_evaluations_per_batch: int = 0

    @property
    def total(self) -> Account:
        total = Account()
        for account in self.purposes.values():
            total.add(account)
        return total


def rows_of(network: Network, planned: CutPlan) -> int:
    """Rows of a cut, before repeats: per sample, or per batch where its Jacobian is shared (and averaged over steps: of
    an ordinary pass, neither the first nor one that measures the whole anew).
    """
    cut = planned.cut
    dense = network.structure(cut.at, cut.source) == "dense"
    width = network.width(cut.at)
    colouring = network.colouring(cut.at, cut.source, planned.shared)
    probes = planned.set.count(width) if dense else colouring.count
    return planned.queries(portion(planned.average, probes) if planned.average < 1 else probes)


def forecast(
    network: Network,
    resolved: Resolved,
    rules: Sequence[LeafRule | None],
    batch: int,
    *,
    wanted: Sequence[bool] | None = None,
    needs_input: bool = False,
    credit: str = "hzo",
    memory: str = "store",
    asks: Sequence[Question] = (),
) -> Forecast:
    """`wanted`: which stages are trained (default: all with parameters); `needs_input`: the input needs a gradient;
    `credit` `none`: a step asks the devices nothing. `asks`: what a target rule of another credit than hzo asks in its
    place.

    With a learned subspace `resolved` is the module's `next_pass`; its own plan is that of a pass in full.
    """
    if credit == "none":
        return Forecast({name: Account() for name in ("forward", "probes", "leaf")}, 0, 0)
    trained = [r is not None and (wanted is None or wanted[k]) for k, r in enumerate(rules)]
    listens = any(isinstance(r, LearnedTwin) for r in rules)
    stays = credit == "hzo" and memory == "store" and not listens and resident.fits(network, resolved, rules)
    tree = needed_tree(resolved.tree, trained, needs_input)
    writes = _Writes(network, trained)
    purposes = {name: Account() for name in ("forward", "probes", "leaf")}
    # The second of two steps: what the first leaves on the devices is what a step finds.
    for step in range(2):
        purposes = {name: Account() for name in purposes}
        # What is averaged over steps is measured ahead of the others.
        ordered = sorted(tree.cuts, key=lambda cut: resolved.at[cut.at].average == 1)
        cuts: Iterable[Move] = ordered if credit == "hzo" else ()
        if memory == "recompute":
            cuts = moves(tree, trained)
        for cut in (Ask(0, network.depth), *cuts):
            if isinstance(cut, Ask):
                for hop, _ in network.forward_hops(True, cut.lo, cut.hi):
                    for number in range(len(hop.parts)):
                        purposes["forward"].add(writes.before(hop, number, step))
                        cost = _cost(hop, batch, 1, 1, hop_rows(hop, 1, 1))
                        purposes["forward"].add(replace(cost, bytes=0) if stays else cost)
            if not isinstance(cut, Cut) or _held(resolved.at[cut.at], trained):
                continue
            hops, planned = network.route(cut.at, cut.source), resolved.at[cut.at]
            if offloaded(network, planned) and not listens:
                cost = _cost_of_probes(network, hops[0], planned, batch)
                purposes["probes"].add(writes.before(hops[0], 0, step))
                purposes["probes"].add(replace(cost, bytes=0) if stays else cost)
                continue
            group = 2 if planned.scheme.paired else 1
            size = min(hop_rows(h, planned.repeats, group) for h in hops)
            for hop in hops:
                for number in range(len(hop.parts)):
                    purposes["probes"].add(writes.before(hop, number, step))
                    rows = (1 if planned.shared else batch) * rows_of(network, planned)
                    purposes["probes"].add(_cost(hop, rows, planned.repeats, group, size))
        for question in asks:
            for hop in network.route(question.lo, question.hi):
                for number in range(len(hop.parts)):
                    purposes["probes"].add(writes.before(hop, number, step))
                    rows, repeats = batch * question.rows, question.repeats
                    purposes["probes"].add(_cost(hop, rows, repeats, 1, hop_rows(hop, repeats, 1)))
        for k, rule in enumerate(rules):
            if trained[k] and rule is not None and rule.queries:
                purposes["leaf"].add(_leaf(network, k, rule, batch, resolved.leaf_repeats, writes))
    counted = {False: [0, 0], True: [0, 0]}
    for p in (resolved.at[cut.at] for cut in (tree.cuts if credit == "hzo" else ())):
        if _held(p, trained):
            continue
        for hop in network.route(p.cut.at, p.cut.source):
            asked = rows_of(network, p) * p.repeats * len(hop.parts)
            counted[p.shared][0] += asked
            counted[p.shared][1] += asked * len(hop.segment)
    for question in asks:
        for hop in network.route(question.lo, question.hi):
            asked = question.rows * question.repeats * len(hop.parts)
            counted[False][0] += asked
            counted[False][1] += asked * len(hop.segment)
    return Forecast(purposes, *counted[False], *counted[True])


def evaluations(network: Network, batch: int, count: int, repeats: int, trained: Sequence[bool]) -> Forecast:
    """`count` losses of a batch under parameters that differ from one to the next in every trained stage.

    Methods that move a few parameters at a time write fewer stages: of writes and what they cost it is a bound.
    """
    writes, spent = _Writes(network, trained), Account()
    rows = 0
    for number in range(2 * count):  # the second of two steps, as in `forecast`
        spent = Account() if number == count else spent
        for hop in network.route(0, network.depth):
            for part in range(len(hop.parts)):
                spent.add(writes.before(hop, part, number))
                spent.add(_cost(hop, batch, repeats, 1, hop_rows(hop, repeats, 1)))
    for hop in network.route(0, network.depth):
        rows += len(hop.parts)
    depth = sum(len(hop.segment) * len(hop.parts) for hop in network.route(0, network.depth))
    purposes = {"forward": Account(), "probes": spent, "leaf": Account()}
    return Forecast(purposes, count * repeats * rows, count * repeats * depth)


def _held(planned: CutPlan, trained: Sequence[bool]) -> bool:
    """Whether the Jacobian of a step before still holds: none of its stages has been written."""
    return planned.shared and not any(trained[planned.cut.at : planned.cut.source])


def hop_rows(hop: Hop, repeats: int, group: int) -> int:
    return rows_per_call(hop.device.capabilities, hop.in_ports, repeats, group) // group * group


def _cost(hop: Hop, rows: int, repeats: int, group: int, size: int) -> Account:
    capabilities = hop.device.capabilities
    count = calls(rows, size)
    evaluations = rows * repeats * len(hop.segment)
    seconds = count * capabilities.latency_s + evaluations * capabilities.query_s
    itemsize = 4 if capabilities.dtype == "float32" else 8
    copies = 1 if capabilities.repeats else repeats
    sent = rows * copies * (hop.in_ports + capabilities.width(hop.segment.hi)) * itemsize
    return Account(rows * repeats, evaluations, count, 0, sent, seconds)


def _cost_of_probes(network: Network, hop: Hop, planned: CutPlan, batch: int) -> Account:
    """Of a cut that the device probes by itself: activations, weights and what comes back are all that travels."""
    capabilities, cut, rows = hop.device.capabilities, planned.cut, rows_of(network, planned)
    itemsize = 4 if capabilities.dtype == "float32" else 8
    numbers = 2 * network.width(cut.at) + (1 + planned.answered) * network.width(cut.source)
    evaluations, count = batch * rows * len(hop.segment), calls(batch, samples_per_call(rows))
    seconds = count * capabilities.latency_s + evaluations * capabilities.query_s
    return Account(batch * rows, evaluations, count, 0, batch * numbers * itemsize, seconds)


class _Writes:
    """Which physical stages must be written before a hop's part, given what came before. Frozen stages keep their
    codes.
    """

    def __init__(self, network: Network, trained: Sequence[bool]) -> None:
        self.network = network
        self.trained = trained
        self.held: dict[tuple[int, int], object] = {}

    def before(self, hop: Hop, part: int, step: int) -> Account:
        spent = Account()
        for k in range(hop.lo, hop.hi):
            for physical in self.physical(k):
                tenant = (k, hop.parts[part].tile, step if self.trained[k] else 0)
                if self.held.get((id(hop.device), physical)) != tenant:
                    self.held[id(hop.device), physical] = tenant
                    spent.add(self.one(k, physical))
        return spent

    def physical(self, k: int) -> list[int]:
        return sorted({p for p, _ in self.network.stages[k].parameters.values()})

    def one(self, k: int, physical: int) -> Account:
        capabilities = self.network.stages[k].device.capabilities
        values = sum(s.size for s in capabilities.stages[physical].parameters)
        itemsize = 4 if capabilities.dtype == "float32" else 8
        return Account(writes=1, bytes=values * itemsize, device_seconds=capabilities.settling_s)


def _leaf(network: Network, k: int, rule: LeafRule, batch: int, repeats: int, writes: _Writes) -> Account:
    stage = network.stages[k]
    hop = network.route(k, k + 1)[0]
    spent = Account()
    for part in hop.parts:
        _, queries = rule.cost(stage.block_specs)
        if part.sign < 0:
            continue
        for _ in range(queries):
            for physical in writes.physical(k):
                spent.add(writes.one(k, physical))
                writes.held[id(hop.device), physical] = "probed"
            for _ in stage.codec_in.passes:
                spent.add(_cost(hop, batch, repeats, 1, hop_rows(hop, repeats, 1)))
    return spent

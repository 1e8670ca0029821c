"""What each credit needs of a device, in one table, and the check before anything is asked.

Tiers, from the least to the most: `loss` (the loss alone), `taps` (boundaries between stages can be read), `inject`
(driven, too), `twin` (a differentiable model of every stage), `graph` (backpropagation through one). Knows what is
declared, not what is true.
"""

from __future__ import annotations

from dataclasses import dataclass

from hzo_hil.devices.errors import BadInput
from hzo_hil.network import Network

TIERS = {
    "loss": "the outputs alone",
    "taps": "boundaries between stages that can be read",
    "inject": "boundaries between stages that can be driven and read",
    "twin": "a differentiable twin of every stage",
    "graph": "a differentiable twin of the whole, and no device at all while training",
}


@dataclass(frozen=True)
class Needs:
    """`tier` in `TIERS`; `inner`: useless without a boundary between stages; `source`: where it was published."""

    tier: str
    inner: bool
    source: str


CREDITS = {
    "hzo": Needs("inject", False, "Cao, Ma, Tian 2026"),
    "activity": Needs("inject", True, "Ren et al., ICLR 2023"),
    "difference": Needs("inject", True, "Lee et al., ECML 2015"),
    "feedback": Needs("taps", True, "Lillicrap et al., Nature Communications 7, 2016"),
    "direct_feedback": Needs("taps", True, "Nokland, NeurIPS 2016"),
    "align": Needs("twin", False, "Boopathy and Fiete, ICML 2022"),
    "twin": Needs("twin", False, "Wright et al., Nature 601, 2022"),
    "loss": Needs("loss", False, "any optimiser of hzo_hil.optim"),
    "deployed": Needs("graph", False, "backpropagation"),
}


def check(credit: str, network: Network) -> None:
    """BadInput where the network's devices lack what `credit` needs, with the tier it is of. Sends nothing."""
    known = [name for name in CREDITS if name != "deployed"]  # which is the trainer's: no device is asked for targets
    if credit not in known:
        raise BadInput(f"unknown credit {credit!r}: choose {', '.join(known[:-1])} or {known[-1]}")
    needs = CREDITS[credit]
    missing = [s.label for s in network.stages if s.twin is None] if needs.tier == "twin" else []
    if missing:
        raise BadInput(
            f"credit={credit!r} needs a twin of every stage; none for {', '.join(missing)}. It is of tier 'twin'"
            f" ({TIERS['twin']}): give Stage(twin=module), method.twins: true for a simulated chip or one with a"
            " datasheet, or use a credit of another tier"
        )
    if needs.inner and network.depth == 1 and len(network.stages[0].segment) > 1:
        raise BadInput(
            f"credit={credit!r} gives targets between stages and is of tier {needs.tier!r} ({TIERS[needs.tier]});"
            f" device {network.stages[0].device.capabilities.identity!r} is driven and read at its ends only, so that"
            f" its {len(network.stages[0].segment)} stages are one. Use credit 'hzo' with a leaf rule that probes"
            " parameters (leaf: probing or shift), or 'loss' (tier 'loss')"
        )

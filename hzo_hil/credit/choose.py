"""The target rule that a credit's name stands for, with its usual settings."""

from __future__ import annotations

from hzo_hil.credit.activity import ActivityPerturbation
from hzo_hil.credit.align import AlignAda
from hzo_hil.credit.difference import DifferenceTargets
from hzo_hil.credit.feedback import DirectFeedback, FeedbackAlignment
from hzo_hil.credit.rule import TargetRule
from hzo_hil.credit.twin import PhysicsAware
from hzo_hil.resolve import Resolved


def target_rule(credit: str, resolved: Resolved, seed: int, name: str) -> TargetRule | None:
    """None for `hzo`, whose targets follow the plan, and for `loss`, which has none.

    `seed` and `name` key its draws.
    """
    if credit == "feedback":
        return FeedbackAlignment(seed, name)
    if credit == "direct_feedback":
        return DirectFeedback(seed, name)
    if credit == "align":
        return AlignAda()
    if credit == "difference":
        return DifferenceTargets(seed, name)
    if credit == "activity":
        return ActivityPerturbation(resolved.at[0].set, resolved.at[0].repeats)
    return PhysicsAware() if credit == "twin" else None

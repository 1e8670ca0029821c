"""The section of a configuration that says how targets and gradients are found."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hzo_hil.sections import Section

PLANNER_GOALS = ("tolerance", "queries_per_step", "seconds_per_step")
PLANNED = ("tree", "probes", "eps", "differences", "repeats", "average")

Credit = Literal["hzo", "twin", "deployed", "feedback", "direct_feedback", "align", "difference", "activity", "loss"]


class LearnedSection(Section):
    """How `leaf: learned_twin` measures, follows and judges the twin of each mesh."""

    nodewise: bool = Field(default=True, description="measure each mesh node by node before training")
    settings: int = Field(default=24, ge=1, description="random settings that the twin is then fitted to")
    check_every: int = Field(default=50, ge=1, description="steps between checks of the twin's gradient")
    check_phases: int = Field(default=16, ge=2, description="phases whose derivative a check measures")
    trust: float = Field(default=0.9, gt=0, lt=1, description="cosine with the measured gradient that keeps the twin")
    memory: int = Field(default=16, ge=1, description="settings of late that the twin follows")
    fit_steps: int = Field(default=1, ge=0, description="steps of its fit per training step; 0: none")
    rate: float = Field(default=0.001, gt=0, description="size of such a step, in expected sizes of an error")


class InverseSection(Section):
    """Of `credit: difference`: its learned inverses, and how far its targets go."""

    step: float = Field(default=0.1, gt=0, description="size of the last target's change, as a part of the activations")
    noise: float = Field(default=0.1, ge=0, description="of inputs asked to learn from, relative; 0: none is asked")
    fit_steps: int = Field(default=5, ge=1, description="steps of Adam a training step")
    rate: float = Field(default=3e-3, gt=0, description="learning rate of Adam")


class LocalSection(Section):
    """Block-wise local losses: after each of these boundaries of every opaque layer the gradient is stopped, and a
    linear head on the host, trained with the rest, gives the block a loss of its own.
    """

    boundaries: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, description="inner boundaries, ascending")
    outputs: int = Field(ge=1, description="width of a head: that of the model's outputs")


class GainSection(Section):
    """What is set before the first step, from one measured pass, so that the gain of each stage is near 1."""

    start: Literal["none", "scaled", "orthogonal"] = Field(
        default="orthogonal",
        description="orthogonal: draw matrices orthogonal and scale them; scaled: scale the weights as they are drawn;"
        " none: leave weights alone",
    )
    host: bool = Field(
        default=True,
        description="multiply what the host reads where it carries activations on: between devices, tiles and stages"
        " that are re-programmed, and at the end",
    )


class MethodSection(Section):
    """How targets and gradients are found."""

    credit: Credit = Field(
        default="hzo",
        description="hzo: by queries; twin: physics-aware training (device forward, twin backward); deployed: by"
        " backpropagation on the twins alone, and only what comes out is written to the device; feedback,"
        " direct_feedback: random feedback; align: backward through the initial weights' twin; difference: learned"
        " inverses; activity: one random direction of all activations; loss: none, train.optimizer is one of"
        " hzo_hil.optim (see docs/methods.md)",
    )
    inverse: InverseSection = InverseSection()
    local_losses: LocalSection | None = Field(default=None, description="cut the network into blocks trained apart")
    plan: Literal["auto"] | None = Field(
        default=None,
        description="auto: calibrate at the start, choose tree, probes, eps, differences and repeats; null: as named",
    )
    tolerance: float | None = Field(
        default=None, gt=0, description="for plan auto: rms relative error of a minibatch's gradient; 0 is refused"
    )
    queries_per_step: float | None = Field(
        default=None, gt=0, description="for plan auto: queries that a training step may ask; 0 is refused"
    )
    seconds_per_step: float | None = Field(
        default=None, gt=0, description="for plan auto: device seconds that a training step may take; 0 is refused"
    )
    replan: bool = Field(
        default=True, description="for plan auto: look again after each epoch, plan anew where calibration has moved"
    )
    tree: str | list[int] | None = Field(
        default=None, description="bisect, chain, direct or inner boundaries in order of cuts"
    )
    probes: str = Field(
        default="coordinate",
        description="coordinate, hadamard, rademacher:q, gaussian:q, sphere:q, or a learned subspace: subspace,"
        " subspace:r, subspace:r+s",
    )
    eps: Annotated[float, Field(gt=0)] | dict[int, float] | None = Field(
        default=None, description="perturbation per element in activation units; null: from dtype, noise and converter"
    )
    differences: str = Field(default="central", description="central, forward or richardson")
    repeats: int = Field(default=1, ge=1, description="shots averaged per query")
    shared: bool = Field(
        default=True, description="measure the Jacobian of linear segments once a batch; false: sample by sample"
    )
    average: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="part of such a Jacobian's probes that is asked anew after a write, where the parameter is the"
        " matrix; the rest follows from the change commanded, and answers are averaged over steps",
    )
    memory: Literal["store", "recompute"] = Field(
        default="store", description="store activations, or ask for them again in the backward pass, O(log L) at a time"
    )
    twins: bool = Field(default=True, description="whether the ideal model of each single simulated stage is known")
    leaf: str = Field(
        default="auto",
        description="auto, autograd, delta, delta:tanh (or relu, ..., measured), shift, learned_twin, probing",
    )
    learned: LearnedSection = LearnedSection()
    gain: GainSection | None = Field(
        default=None, description="bring gains near 1 before the first step; null: starts as drawn, no factors"
    )
    leaf_probes: str = Field(default="coordinate", description="probe set of leaf: probing, and of shift's remainder")
    leaf_eps: float | None = Field(
        default=None, gt=0, description="parameter change of such probes; null: two converter steps"
    )

    @model_validator(mode="after")
    def _one_planner(self) -> MethodSection:
        goals = [n for n in PLANNER_GOALS if getattr(self, n) is not None]
        if self.plan is None:
            if goals:
                raise ValueError(f"{', '.join(goals)}: a goal for the planner; add plan: auto")
            return self
        if len(goals) != 1:
            raise ValueError(f"plan: auto needs exactly one of {', '.join(PLANNER_GOALS)} ({len(goals)} given)")
        fields = type(self).model_fields
        given = [n for n in PLANNED if getattr(self, n) != fields[n].default]
        if given:
            raise ValueError(f"plan: auto chooses {', '.join(given)} itself: leave {'them' if given[1:] else 'it'} out")
        if self.credit != "hzo":
            raise ValueError(f"plan: auto plans probes, and credit: {self.credit} asks for none of its own")
        return self

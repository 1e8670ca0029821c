"""The configuration of a run: what is done, and in the section `where`, where it is done.

Every field has a bound, a unit and the meaning of zero. Unknown keys are refused. A budget decides when a run stops but
changes no step of it, so that it may be raised on resuming. Knows no torch and no devices.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hzo_hil.devices.errors import ConfigError
from hzo_hil.yamlfile import read_yaml, with_overrides

WHERE_SECTIONS = ("where", "budget")
"""Top-level sections that may change when a run is resumed: all others say *what* is run."""

_PLACE = ("url", "keys", "patience_s", "takeover", "record")
WHERE_FIELDS = WHERE_SECTIONS + tuple(f"devices.*.{prefix}{name}" for prefix in ("", "members.*.") for name in _PLACE)
"""With the fields of a device that say where it is reached and not which it is. * stands for any name."""

_KINDS = "onn, chip, svd_onn, emulator, conv_emulator, ring_bank, diffractive, crossbar, tensor_core"
_ENGINES = r"^(native|torch|cuda(:\d+)?)$"
PLANNER_GOALS = ("tolerance", "queries_per_step", "seconds_per_step")
PLANNED = ("tree", "probes", "eps", "differences", "repeats", "average")
SOURCES = ("kind", "driver", "url", "members", "replay")

Credit = Literal["hzo", "twin", "deployed", "feedback", "direct_feedback", "align", "difference", "activity", "loss"]

Options = dict[str, Any]
S = TypeVar("S", bound=BaseModel)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(_Section):
    """Which data. `name`: digits, iris, mnist, cifar10, vowels, npz, or module:function."""

    name: str
    path: Path | None = Field(default=None, description="the .npz file, for name: npz")
    flatten: bool = Field(default=False, description="make inputs [n, features]")
    limit_train: int | None = Field(default=None, ge=1, description="first training rows only; null: all")
    limit_test: int | None = Field(default=None, ge=1, description="first test rows only; null: all")
    options: Options = Field(default_factory=dict, description="keywords for a function of your own")


class DatasheetSection(_Section):
    """What is known of a device that cannot be looked into: its ideal model, for twins and starting values."""

    kind: str = Field(description=f"as of a simulated chip: {_KINDS}")
    preset: str = "ideal"
    options: Options = Field(default_factory=dict)


class HealthSection(_Section):
    """How a device is watched. Queries count rows of any purpose; checks happen between passes, with nothing in flight.

    A canary is a fixed batch at fixed parameters: at the start, every `canary` queries and after each reconnect.
    A reference is a dark and a bright input: its answers correct slow changes of gain and dark level.
    """

    canary: int = Field(default=0, ge=0, description="queries between canaries; 0: none")
    limit: float = Field(default=0.1, gt=0, description="allowed drift of the canary's answers, as a fraction of them")
    on_drift: Literal["maintain", "stop"] = Field(
        default="stop", description="maintain: call the device's own maintain() and look again; stop: end the run"
    )
    tries: int = Field(default=3, ge=1, description="maintenances in a row before the run is stopped")
    pause_s: float = Field(default=0.0, ge=0, description="seconds to wait after each maintenance")
    reference: int = Field(default=0, ge=0, description="queries between references; 0: none")
    rows: int = Field(default=16, ge=1, description="rows of a canary, and of each level of a reference")


class DeviceSection(_Section):
    """One device: a simulated chip (`kind`), your own driver (`driver`), one behind a wire (`url`), several as a pool
    (`members`), or a recording of one (`replay`)."""

    kind: str | None = Field(default=None, description=f"simulated chip: {_KINDS}")
    preset: str = Field(default="ideal", description="named set of imperfections; options override it")
    driver: str | None = Field(
        default=None, description="module:callable, or a name of the entry-point group hzo_hil.devices"
    )
    url: str | None = Field(
        default=None, description="zmq+tcp://host:port, zmq+ipc://path, serial:///dev/ttyUSB0, serial+tcp://host:port"
    )
    members: list[DeviceSection] | None = Field(default=None, description="devices that share the queries")
    replay: Path | None = Field(default=None, description="answer from this recording instead of a device")
    options: Options = Field(default_factory=dict, description="of the chip, or keywords of the driver")
    seed: int | None = Field(default=None, ge=0, description="which chip is fabricated; null: the run's seed")
    identity: str | None = Field(default=None, description="the device's name; null: made from kind, preset and seed")
    inner_boundaries: bool = Field(default=True, description="false: driven and read at the ends only")
    taps: bool = Field(default=True, description="inner boundaries can be read within one query")
    max_batch: int = Field(default=0, ge=0, description="rows a call; 0: no limit")
    latency_s: float = Field(default=0.0, ge=0, description="declared seconds a call")
    query_s: float = Field(default=0.0, ge=0, description="declared seconds a stage evaluation")
    settling_s: float = Field(default=0.0, ge=0, description="declared seconds a write")
    dtype: Literal["float32", "float64"] = "float32"

    longest_call_s: float = Field(default=10.0, gt=0, description="no call takes longer; silent for more: it hangs")
    power: float = Field(default=1.0, gt=0, description="of a simulated chip: every stage's answer is times this")
    laser_wander: float = Field(default=0.0, ge=0, lt=1, description="of a simulated chip: power wanders by +- this")
    wander_period_s: float = Field(default=10.0, gt=0, description="declared device seconds of a slow wander")
    power_drift_std: float = Field(default=0.0, ge=0, description="of a simulated chip: relative random power drift")
    power_drift_tau_s: float = Field(default=10.0, gt=0, description="declared device seconds over which it forgets")
    drift_step_s: float = Field(default=0.1, gt=0, description="of a simulated chip: its drifts go in steps of these")
    engine: str = Field(
        default="native",
        json_schema_extra={"pattern": _ENGINES},
        description="what computes a simulated chip: native (CPU), torch (CPU by torch), cuda or cuda:N (GPU by torch)",
    )
    keys: Path | None = Field(default=None, description="folder made by `hzo-hil device keys`, for url")
    patience_s: float = Field(default=30.0, gt=0, description="how long a lost device is waited for, for url")
    takeover: bool = Field(default=False, description="take the device from another host, for url")
    datasheet: DatasheetSection | None = Field(default=None, description="the known ideal model behind url or driver")
    identical: bool = Field(default=True, description="members give the same answers; false: different chips of a kind")
    match: Literal["strict", "key"] = Field(default="strict", description="replay in order, or by what is asked")
    record: Path | None = Field(default=None, description="keep every query and answer in this file")
    added_noise: float = Field(
        default=0.0, ge=0, description="std, in device units, of noise that the host adds to every answer; 0: none"
    )
    health: HealthSection | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DeviceSection:
        given = [s for s in SOURCES if getattr(self, s) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(SOURCES)} (given: {', '.join(given) or 'none'})")
        if self.members is not None and not self.members:
            raise ValueError("members is empty: a pool needs at least one device")
        if self.datasheet is not None and self.kind is not None:
            raise ValueError("datasheet is for devices that cannot be looked into; a simulated chip is its own")
        self._only_simulated()
        return self

    def _only_simulated(self) -> None:
        if not re.fullmatch(_ENGINES, self.engine):
            raise ValueError(f"unknown engine {self.engine!r}: choose native, torch, cuda or cuda:N")
        drifting = [n for n in ("laser_wander", "power_drift_std") if getattr(self, n)]
        given = drifting + [n for n, usual in (("power", 1.0), ("engine", "native")) if getattr(self, n) != usual]
        if given and self.kind is None:
            raise ValueError(f"{', '.join(given)}: for simulated chips (kind) only")
        if drifting and not (self.query_s or self.settling_s):
            raise ValueError(
                f"{', '.join(drifting)}: power follows the time of the device's work, and a device whose query_s and"
                " settling_s are 0 takes none: set one of them"
            )


class CodecSection(_Section):
    gain: float = Field(default=1.0, description="device units per activation")
    offset: float = Field(default=0.0, description="device value of activation 0")
    form: Literal["plain", "pair", "two_pass"] = "plain"


class StageSection(_Section):
    """One logical stage on a physical one. `stage` counts from 0; [lo, hi] are several with no boundary between."""

    device: str
    stage: int | tuple[int, int] = 0
    leaf: str | None = Field(default=None, description="null: as in method.leaf")
    codec_in: CodecSection = CodecSection()
    codec_out: CodecSection = CodecSection()
    tiles: tuple[int, int] | None = Field(default=None, description="[in, out] widths of a matrix tiled over this core")


class LayerSection(_Section):
    """One of: `opaque` (a device's name for all its stages, or a list of stages), `host` (module:class), `skip` (layers
    inside a known skip)."""

    opaque: str | list[StageSection] | None = None
    host: str | None = None
    skip: list[LayerSection] | None = None
    arguments: Options = Field(default_factory=dict, description="keywords of the host module")
    name: str | None = Field(default=None, description="names the streams of an opaque layer; null: by position")

    @model_validator(mode="after")
    def _one_kind(self) -> LayerSection:
        if sum(v is not None for v in (self.opaque, self.host, self.skip)) != 1:
            raise ValueError("a layer has exactly one of opaque, host, skip")
        if self.arguments and self.host is None:
            raise ValueError("arguments are for host layers")
        return self


class LearnedSection(_Section):
    """How `leaf: learned_twin` measures, follows and judges the twin of each mesh."""

    nodewise: bool = Field(default=True, description="measure each mesh node by node before training")
    settings: int = Field(default=24, ge=1, description="random settings that the twin is then fitted to")
    check_every: int = Field(default=50, ge=1, description="steps between checks of the twin's gradient")
    check_phases: int = Field(default=16, ge=2, description="phases whose derivative a check measures")
    trust: float = Field(default=0.9, gt=0, lt=1, description="cosine with the measured gradient that keeps the twin")
    memory: int = Field(default=16, ge=1, description="settings of late that the twin follows")
    fit_steps: int = Field(default=1, ge=0, description="steps of its fit per training step; 0: none")
    rate: float = Field(default=0.001, gt=0, description="size of such a step, in expected sizes of an error")


class InverseSection(_Section):
    """Of `credit: difference`: its learned inverses, and how far its targets go."""

    step: float = Field(default=0.1, gt=0, description="size of the last target's change, as a part of the activations")
    noise: float = Field(default=0.1, ge=0, description="of inputs asked to learn from, relative; 0: none is asked")
    fit_steps: int = Field(default=5, ge=1, description="steps of Adam a training step")
    rate: float = Field(default=3e-3, gt=0, description="learning rate of Adam")


class LocalSection(_Section):
    """Block-wise local losses: after each of these boundaries of every opaque layer the gradient is stopped, and a
    linear head on the host, trained with the rest, gives the block a loss of its own.
    """

    boundaries: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, description="inner boundaries, ascending")
    outputs: int = Field(ge=1, description="width of a head: that of the model's outputs")


class GainSection(_Section):
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


class MethodSection(_Section):
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


class OptimizerSection(_Section):
    name: str = Field(
        default="Adam", description="a class of torch.optim, of hzo_hil.optim for credit: loss, or module:class"
    )
    lr: float = Field(default=1e-2, gt=0)
    options: Options = Field(default_factory=dict)


class ScheduleSection(_Section):
    """Learning-rate schedule over the whole run."""

    name: Literal["constant", "one_cycle", "cosine"] = "constant"
    options: Options = Field(default_factory=dict)


class TrainSection(_Section):
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=32, ge=1)
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    loss: str = Field(default="cross_entropy", description="cross_entropy, mse, or module:function(outputs, targets)")
    metric: str = Field(default="accuracy", description="accuracy, mse, or module:function(outputs, targets) -> number")
    best: Literal["highest", "lowest"] | None = Field(
        default=None, description="which test metric best.pt is kept for; null: lowest for mse, else highest"
    )
    max_bad_steps: int = Field(default=10, ge=1, description="lost steps in a row that stop the run")
    max_saturated: float = Field(
        default=0.5, gt=0, le=1, description="fraction of a boundary's answers at an end that stops the run"
    )
    checkpoint_every: int = Field(default=0, ge=0, description="steps between checkpoints; 0: at the end of each epoch")
    cosine_every: int = Field(
        default=0,
        ge=0,
        description="steps between comparisons of the gradient with that of a noise-free copy of the simulated devices"
        " (host time only); 0: none",
    )


class BudgetSection(_Section):
    """Limits of training in the loop; evaluation is not counted. May be raised on resuming."""

    max_queries: int | None = Field(default=None, gt=0, description="null: no limit; 0 is refused")
    max_device_seconds: float | None = Field(default=None, gt=0, description="null: no limit; 0 is refused")


class WhereSection(_Section):
    """What may differ when a run is resumed, here or on another machine."""

    run_dir: Path | None = Field(default=None, description="null: runs/<name>-<time>-<hash>")
    data_dir: Path | None = Field(default=None, description="null: the environment variable HZO_DATA")
    host: str = Field(default="cpu", description="torch device of masters and host layers, e.g. cuda")
    threads: int | None = Field(default=None, ge=1, description="torch threads; null: torch's choice")
    tensorboard: bool = Field(default=False, description="also write TensorBoard events")
    picture: bool = Field(default=True, description="draw the learning curves at the end")


Reference = Literal["deployed", "ideal", "physics_aware"]


class Config(_Section):
    """A whole run."""

    name: str = Field(pattern=r"^[\w.-]+$")
    seed: int = Field(default=0, ge=0)
    data: DataSection
    devices: dict[str, DeviceSection]
    network: list[LayerSection] = Field(min_length=1)
    method: MethodSection = MethodSection()
    train: TrainSection = TrainSection()
    budget: BudgetSection = BudgetSection()
    references: list[Reference] = Field(
        default_factory=list,
        description="also report: ideal (backpropagation on noise-free twins), deployed (that, written to the device),"
        " physics_aware (device forward, twin backward)",
    )
    where: WhereSection = WhereSection()

    @model_validator(mode="after")
    def _names(self) -> Config:
        for layer in _flat(self.network):
            used = [layer.opaque] if isinstance(layer.opaque, str) else [s.device for s in layer.opaque or []]
            for name in used:
                if name not in self.devices:
                    raise ValueError(
                        f"network uses device {name!r}, which devices does not define{_near(name, self.devices)}"
                    )
        if not any(layer.opaque is not None for layer in _flat(self.network)):
            raise ValueError("the network has no opaque layer: nothing to train on a device")
        deployed = self.method.credit == "deployed"
        if (self.references or deployed) and not self.method.twins:
            what = "method.credit: deployed needs" if deployed else "references need"
            raise ValueError(f"{what} the twins of the stages, and method.twins is false")
        if deployed and "deployed" in self.references:
            raise ValueError("references: deployed is what method.credit: deployed does itself: leave it out")
        if self.method.local_losses is not None and self.train.cosine_every:
            raise ValueError("train.cosine_every compares gradients of one loss, and method.local_losses has several")
        if self.method.credit == "loss" and (self.references or self.train.cosine_every):
            what = "references are" if self.references else "train.cosine_every looks at what is"
            raise ValueError(
                f"{what} trained by gradients, and with method.credit: loss train.optimizer is one of losses alone:"
                " leave it out, or have it in a run of credit: hzo"
            )
        return self

    def what(self) -> dict[str, Any]:
        """Everything that says what is run, as plain data."""
        return self.model_dump(mode="json", exclude=set(WHERE_SECTIONS))


def _flat(layers: Iterable[LayerSection]) -> Iterable[LayerSection]:
    for layer in layers:
        yield layer
        yield from _flat(layer.skip or [])


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file and apply `a.b=c` overrides. Raises ConfigError, which names file, field and remedy."""
    return parse_config(read_yaml(path), overrides, str(path))


def parse_config(raw: Mapping[str, Any], overrides: Iterable[str] = (), source: str = "configuration") -> Config:
    return parse_section(Config, with_overrides(dict(raw), overrides), source)


def parse_section(model: type[S], raw: Mapping[str, Any], source: str) -> S:
    """Validate `raw` against a section, with every mistake named in one error."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(model, e) for e in error.errors()]
        raise ConfigError(
            f"{source} has {len(lines)} mistake{'s' * (len(lines) > 1)}:\n  " + "\n  ".join(lines)
        ) from None


def _explain(model: type[BaseModel], error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        return f"{where}: no such field{_near(str(error['loc'][-1]), known)}"
    if error["type"] == "missing":
        return f"{where}: this field is needed"
    given = "" if isinstance(error.get("input"), (dict, list)) else f" (given: {error.get('input')!r})"
    return f"{where}: {message}{given}" if where else message


def _fields_at(model: type[BaseModel], place: tuple[Any, ...]) -> list[str]:
    """Field names of the section that a mistake's place lies in."""
    found: Any = model
    for part in place:
        if isinstance(part, int) or not (isinstance(found, type) and issubclass(found, BaseModel)):
            continue
        field = found.model_fields.get(str(part))
        sections = _sections_in(field.annotation) if field else []
        found = sections[0] if sections else found
    return list(found.model_fields)


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [s for a in getattr(annotation, "__args__", ()) for s in _sections_in(a)]


def _near(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def schema() -> dict[str, Any]:
    """JSON schema of a configuration."""
    return Config.model_json_schema()

"""The configuration of a run: what is done, and in the section `where`, where it is done.

Every field has a bound, a unit and the meaning of zero. Unknown keys are refused. A budget decides when a run stops but
changes no step of it, so that it may be raised on resuming. Knows no torch and no devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from hzo_hil.datasections import DataSection
from hzo_hil.devicesections import DeviceSection
from hzo_hil.methodsections import MethodSection
from hzo_hil.sections import Options, Section, near, parse_section
from hzo_hil.yamlfile import read_yaml, with_overrides

WHERE_SECTIONS = ("where", "budget")
"""Top-level sections that may change when a run is resumed: all others say *what* is run."""

_PLACE = ("url", "keys", "patience_s", "takeover", "record")
WHERE_FIELDS = WHERE_SECTIONS + tuple(f"devices.*.{prefix}{name}" for prefix in ("", "members.*.") for name in _PLACE)
"""With the fields of a device that say where it is reached and not which it is. * stands for any name."""


class CodecSection(Section):
    gain: float = Field(default=1.0, description="device units per activation")
    offset: float = Field(default=0.0, description="device value of activation 0")
    form: Literal["plain", "pair", "two_pass"] = "plain"


class StageSection(Section):
    """One logical stage on a physical one. `stage` counts from 0; [lo, hi] are several with no boundary between."""

    device: str
    stage: int | tuple[int, int] = 0
    leaf: str | None = Field(default=None, description="null: as in method.leaf")
    codec_in: CodecSection = CodecSection()
    codec_out: CodecSection = CodecSection()
    tiles: tuple[int, int] | None = Field(default=None, description="[in, out] widths of a matrix tiled over this core")


class LayerSection(Section):
    """One of: `opaque` (a device's name for all its stages, or a list of stages), `host` (module:class), `skip` (layers
    inside a known skip), `zoo` (a network of the literature whose convolutions are the stages of `device`, in order).
    """

    opaque: str | list[StageSection] | None = None
    host: str | None = None
    skip: list[LayerSection] | None = None
    zoo: str | None = Field(default=None, description="resnet20 or plain_cnn: norms, rectifiers and head on the host")
    device: str | None = Field(default=None, description="of a zoo layer: the device of its convolutions")
    arguments: Options = Field(default_factory=dict, description="keywords of the host module, or of the zoo's network")
    name: str | None = Field(default=None, description="names the streams of an opaque layer; null: by position")

    @model_validator(mode="after")
    def _one_kind(self) -> LayerSection:
        if sum(v is not None for v in (self.opaque, self.host, self.skip, self.zoo)) != 1:
            raise ValueError("a layer has exactly one of opaque, host, skip, zoo")
        if self.arguments and self.host is None and self.zoo is None:
            raise ValueError("arguments are for host and zoo layers")
        if (self.zoo is None) != (self.device is None):
            raise ValueError("zoo and device go together: the network, and the device of its convolutions")
        return self

    @property
    def devices(self) -> list[str]:
        """The names it uses; empty on the host."""
        if self.zoo is not None:
            return [str(self.device)]
        return [self.opaque] if isinstance(self.opaque, str) else [s.device for s in self.opaque or []]


class OptimizerSection(Section):
    name: str = Field(
        default="Adam", description="a class of torch.optim, of hzo_hil.optim for credit: loss, or module:class"
    )
    lr: float = Field(default=1e-2, gt=0)
    options: Options = Field(default_factory=dict)


class ScheduleSection(Section):
    """Learning-rate schedule over the whole run."""

    name: Literal["constant", "one_cycle", "cosine"] = "constant"
    options: Options = Field(default_factory=dict)


class TrainSection(Section):
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


class BudgetSection(Section):
    """Limits of training in the loop; evaluation is not counted. May be raised on resuming."""

    max_queries: int | None = Field(default=None, gt=0, description="null: no limit; 0 is refused")
    max_device_seconds: float | None = Field(default=None, gt=0, description="null: no limit; 0 is refused")


class WhereSection(Section):
    """What may differ when a run is resumed, here or on another machine."""

    run_dir: Path | None = Field(default=None, description="null: runs/<name>-<time>-<hash>")
    data_dir: Path | None = Field(default=None, description="null: the environment variable HZO_DATA")
    host: str = Field(default="cpu", description="torch device of masters and host layers, e.g. cuda")
    threads: int | None = Field(default=None, ge=1, description="torch threads; null: torch's choice")
    tensorboard: bool = Field(default=False, description="also write TensorBoard events")
    picture: bool = Field(default=True, description="draw the learning curves at the end")


Reference = Literal["deployed", "ideal", "physics_aware"]


class Config(Section):
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
            for name in layer.devices:
                if name not in self.devices:
                    raise ValueError(
                        f"network uses device {name!r}, which devices does not define{near(name, self.devices)}"
                    )
        if not any(layer.devices for layer in _flat(self.network)):
            raise ValueError("the network has no opaque layer: nothing to train on a device")
        deployed = self.method.credit == "deployed"
        if (self.references or deployed) and not self.method.twins:
            what = "method.credit: deployed needs" if deployed else "references need"
            raise ValueError(f"{what} the twins of the stages, and method.twins is false")
        if deployed and "deployed" in self.references:
            raise ValueError("references: deployed is what method.credit: deployed does itself: leave it out")
        if self.method.local_losses is not None and any(layer.zoo is not None for layer in _flat(self.network)):
            raise ValueError("method.local_losses cuts layers of several stages, and each of a zoo layer has one")
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


def schema() -> dict[str, Any]:
    """JSON schema of a configuration."""
    return Config.model_json_schema()

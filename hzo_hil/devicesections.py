"""The sections of a configuration that describe a device: what it is, where it is reached, how it is watched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from hzo_hil.sections import Options, Section

_KINDS = "onn, chip, svd_onn, emulator, conv_emulator, ring_bank, diffractive, crossbar, tensor_core"
_ENGINES = r"^(native|torch|cuda(:\d+)?(\+tf32)?)$"
SOURCES = ("kind", "driver", "url", "members", "replay")


class DatasheetSection(Section):
    """What is known of a device that cannot be looked into: its ideal model, for twins and starting values."""

    kind: str = Field(description=f"as of a simulated chip: {_KINDS}")
    preset: str = "ideal"
    options: Options = Field(default_factory=dict)


class HealthSection(Section):
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


class DeviceSection(Section):
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
        description="what computes a simulated chip: native (CPU), torch (CPU by torch), cuda or cuda:N (GPU by"
        " torch), cuda+tf32 (its tensor cores, which round to 10 bits)",
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
            raise ValueError(
                f"unknown engine {self.engine!r}: choose native, torch, cuda or cuda:N"
                " (cuda+tf32 or cuda:N+tf32 for tensor cores)"
            )
        drifting = [n for n in ("laser_wander", "power_drift_std") if getattr(self, n)]
        given = drifting + [n for n, usual in (("power", 1.0), ("engine", "native")) if getattr(self, n) != usual]
        if given and self.kind is None:
            raise ValueError(f"{', '.join(given)}: for simulated chips (kind) only")
        if drifting and not (self.query_s or self.settling_s):
            raise ValueError(
                f"{', '.join(drifting)}: power follows the time of the device's work, and a device whose query_s and"
                " settling_s are 0 takes none: set one of them"
            )

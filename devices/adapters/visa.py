"""A device of a SCPI instrument, by templates of its commands, through PyVISA.

It knows no instrument: which command sets a value and which reads one is said by whoever makes the device. The resource
is opened, and PyVISA imported, in `open`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from hzo_hil.devices.adapters.one_stage import Given, OneStage, needed
from hzo_hil.devices.api import Array, Health
from hzo_hil.devices.errors import BadReply, ConfigError, DeviceError, HzoError, LinkLost

MOST_ERRORS = 32


class VisaDevice(OneStage):
    """Commands are `str.format` templates. Known fields: `{value}`, `{values}` (all, joined by commas), `{index}` (from
    0), `{channel}` (from 1), `{name}` (of a parameter).

    drive: sent for each input of a row, or once a row if it holds `{values}`; with `drive_binary` followed by a block.
    read: asked for each output, or once for all of them (comma-separated, or a block with `read_binary`) where it names
        neither `{index}` nor `{channel}`.
    set_parameter: sent for each value that changed; one template, or one for each parameter's name.
    get_parameter: what the instrument then holds, asked by `read`; without it, what was written is told.
    before_read: sent when a row is driven (a trigger); `settle_s` passes before and after it.
    on_open, on_park: lists of commands. A device without `on_park` has no park().
    binary formats: letters of the struct module (f, d, h, H, ...), blocks with an IEEE header, little endian.
    error_query: asked after every row and every write until it says 0; anything else is a DeviceError. "" asks nothing.
    options: for PyVISA's open_resource (read_termination, write_termination, baud_rate, ...).
    """

    def __init__(
        self,
        resource: str,
        in_width: int,
        out_width: int,
        *,
        drive: str,
        read: str,
        parameters: Mapping[str, Given] | None = None,
        set_parameter: str | Mapping[str, str] = "",
        get_parameter: str | Mapping[str, str] = "",
        before_read: str = "",
        on_open: Sequence[str] = (),
        on_park: Sequence[str] = (),
        drive_binary: str = "",
        read_binary: str = "",
        error_query: str = "SYST:ERR?",
        settle_s: float = 0.0,
        timeout_s: float = 5.0,
        backend: str = "",
        identity: str = "",
        options: Mapping[str, Any] | None = None,
        dtype: Literal["float32", "float64"] = "float64",
        **declared: Any,
    ) -> None:
        super().__init__(identity or resource, in_width, out_width, parameters, dtype=dtype, **declared)
        self._drive, self._read, self._before_read = drive, read, before_read
        names = [s.name for s in self.capabilities.stages[0].parameters]
        self._setters = _for_each(names, set_parameter, "set_parameter")
        self._getters = _for_each(names, get_parameter, "get_parameter") if get_parameter else {}
        self._on_open, self._drive_binary, self._read_binary = tuple(on_open), drive_binary, read_binary
        self._error_query, self._settle_s = error_query, settle_s
        self._where = resource, backend
        self._options = {"timeout": round(1000 * timeout_s), **(options or {})}
        self._port: Any = None
        self._idn = ""
        self._try_templates()
        if on_park:
            self.park = lambda: self._commands(on_park)

    def open(self) -> None:
        try:
            import pyvisa
        except ImportError as error:
            raise needed("pyvisa", "visa", error) from error
        resource, backend = self._where
        try:
            self._port = pyvisa.ResourceManager(backend).open_resource(resource, **self._options)
        except (pyvisa.Error, ValueError, OSError) as error:
            raise LinkLost(
                f"{self._name}: VISA resource {resource!r} cannot be opened ({error}). Is it switched on, is its"
                f" address"
                " right, is a VISA library installed (backend='@py' uses pyvisa-py)?"
            ) from error
        try:
            self._commands(self._on_open)
        except HzoError:
            self.close()
            raise

    def close(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None

    def read(self, stage: int) -> Mapping[str, Array]:
        if not self._getters:
            return super().read(stage)
        self._check_stage(stage)
        found = {name: np.empty_like(value) for name, value in self._values.items()}
        for name, value in found.items():
            for index in range(value.size):
                value.flat[index] = self._ask(self._getters[name], 1, name=name, index=index, channel=index + 1)[0]
        self._check_errors()
        return found

    def snapshot(self) -> Mapping[str, Any]:
        return {
            "identity": self.capabilities.identity,
            "resource": self._where[0],
            "idn": self._say("query", "*IDN?").strip(),
        }

    def health(self) -> Health:
        try:
            self._check_errors()
        except DeviceError as error:
            return Health(False, str(error))
        return Health(True)

    # --- the instrument --------------------------------------------------------------------------------------------

    def _respond(self, inputs: Array) -> Array:
        outputs = np.empty((len(inputs), self.capabilities.width(1)))
        for row, answer in zip(inputs, outputs, strict=True):
            self._drive_row(row.tolist())
            self._wait()
            if self._before_read:
                self._say("write", self._before_read)
                self._wait()
            answer[:] = self._read_row()
            self._check_errors()
        return outputs

    def _drive_row(self, row: list[float]) -> None:
        if self._drive_binary:
            self._say("write_binary_values", self._drive, row, datatype=self._drive_binary)
        elif "{values" in self._drive:
            self._say("write", self._drive.format(values=",".join(f"{v:.9g}" for v in row)))
        else:
            for index, value in enumerate(row):
                self._say("write", self._drive.format(value=value, index=index, channel=index + 1))

    def _read_row(self) -> list[float]:
        width = self.capabilities.width(1)
        if "{index" not in self._read and "{channel" not in self._read:
            return self._ask(self._read, width)
        return [self._ask(self._read, 1, index=i, channel=i + 1)[0] for i in range(width)]

    def _ask(self, template: str, count: int, **fields: Any) -> list[float]:
        question = template.format(**fields)
        if self._read_binary and not self._asks_parameter(fields):
            found = list(self._say("query_binary_values", question, datatype=self._read_binary))
        else:
            text = str(self._say("query", question))
            try:
                found = [float(part) for part in text.split(",")]
            except ValueError:
                raise BadReply(f"{self._name}: {question!r} was answered {text!r}, which is no number") from None
        if len(found) != count:
            raise BadReply(f"{self._name}: {question!r} was answered {len(found)} values, expected {count}")
        return found

    @staticmethod
    def _asks_parameter(fields: Mapping[str, Any]) -> bool:
        return "name" in fields

    def _set(self, name: str, index: int, value: float) -> None:
        self._say("write", self._setters[name].format(name=name, index=index, channel=index + 1, value=value))

    def _written(self) -> None:
        self._wait()
        self._check_errors()

    def _commands(self, commands: Sequence[str]) -> None:
        for command in commands:
            self._say("write", command)
        self._check_errors()

    def _wait(self) -> None:
        if self._settle_s:
            time.sleep(self._settle_s)

    def _check_errors(self) -> None:
        """Empty the instrument's queue of errors; DeviceError with all that was in it."""
        if not self._error_query:
            return
        found: list[str] = []
        for _ in range(MOST_ERRORS):
            text = str(self._say("query", self._error_query)).strip()
            number = text.partition(",")[0].strip()
            if number.lstrip("+-") == "" or not number.lstrip("+-").isdigit():
                raise BadReply(
                    f"{self._name}: {self._error_query!r} was answered {text!r}; expected a number and words"
                )
            if int(number) == 0:
                break
            found.append(text)
        if found:
            raise DeviceError(f"{self._name} reports: {'; '.join(found)}. Check the templates and the ranges declared")

    def _say(self, method: str, *arguments: Any, **options: Any) -> Any:
        """One exchange; what PyVISA raises becomes this project's errors."""
        if self._port is None:
            raise DeviceError(f"{self._name} is not open")
        import pyvisa

        try:
            return getattr(self._port, method)(*arguments, **options)
        except pyvisa.VisaIOError as error:
            late = error.error_code == pyvisa.constants.StatusCode.error_timeout
            kind = LinkLost if late else DeviceError
            hint = "Is the command right, and the termination (options)?" if late else "Is it still connected?"
            raise kind(f"{self._name}: {arguments[0]!r}: {error.abbreviation} ({error.description}). {hint}") from error
        except (ValueError, UnicodeDecodeError, pyvisa.Error) as error:
            raise BadReply(f"{self._name}: {arguments[0]!r} was answered what PyVISA cannot read ({error})") from error

    def _try_templates(self) -> None:
        """Wrong fields are found now, and not with the laser on."""
        fields: dict[str, Any] = {"value": 0.0, "values": "0", "index": 0, "channel": 1, "name": "w"}
        for template in (self._drive, self._read, *self._setters.values(), *self._getters.values()):
            try:
                template.format(**fields)
            except (KeyError, IndexError, ValueError) as error:
                raise ConfigError(
                    f"{self._name}: template {template!r} cannot be filled in ({type(error).__name__}: {error});"
                    f" known fields:"
                    f" {', '.join(fields)}"
                ) from error


def _for_each(names: Sequence[str], templates: str | Mapping[str, str], what: str) -> dict[str, str]:
    found = dict.fromkeys(names, templates) if isinstance(templates, str) else dict(templates)
    if set(found) != set(names) or not all(found.values()):
        raise ConfigError(f"{what}: one template for each of the parameters {list(names)}, not {templates!r}")
    return found

"""Everything that can go wrong, named by who is at fault.

The caller's mistakes are `BadInput`; the device's are `DeviceError`. Nothing here is raised
without saying what happened, where, the likely cause and what to change.
"""

from __future__ import annotations


class HzoError(Exception):
    """Base of every error this project raises on purpose."""


class BadInput(HzoError, ValueError):
    """The caller asked for something that cannot be done. No device time was spent on it."""


class ConfigError(BadInput):
    """A configuration file or option is wrong. The message names the field."""


class DataError(BadInput):
    """A data set is missing, corrupt or of the wrong shape."""


class CapabilityError(BadInput):
    """The device cannot do this: a boundary it cannot drive, a range it does not have."""


class DeviceError(HzoError, RuntimeError):
    """The device, or the way to it, failed."""


class LinkLost(DeviceError):
    """No answer came in time. Asking again may help: the query is repeatable."""


class DeviceGone(LinkLost):
    """No answer came for as long as the caller is patient, and asking again will not help. The run stops; resume it."""


class BadReply(DeviceError):
    """The device answered with the wrong shape or dtype. Asking again will not help."""


class DeviceRebooted(DeviceError):
    """The device lost its parameters. Everything must be written again before the next query."""


class WireError(DeviceError):
    """Bytes arrived that are no message of the protocol. They are counted and dropped, never used."""


class Busy(DeviceError):
    """The device serves another host."""


class BadStep(DeviceError):
    """One training step could not be completed and touched no parameter.

    Catch it in your own loop, call `optimizer.zero_grad()` and go on with the next batch.
    """


class RunStopped(HzoError):
    """The run ended early on purpose; what was reached is saved. Base of the stops below."""


class BudgetSpent(RunStopped):
    """`max_queries` or `max_device_seconds` is used up."""


class TooManyBadSteps(RunStopped, DeviceError):
    """`max_bad_steps` steps in a row were lost to the device."""


class OverLimit(RunStopped, DeviceError):
    """What training asked for would exceed a limit across the device's channels. Nothing of it was written."""


class Drifted(RunStopped, DeviceError):
    """The device no longer answers its canary as it did at the start, and maintenance did not help."""


class Saturated(RunStopped, DeviceError):
    """More answers than `max_saturated` sat at the end of a read-out range."""

"""Parameters of a simulator from measurements of a device: gain, noise, converters, drift, with 95 % intervals."""

from hzo_hil.fit.procedure import Fit, fit_device

__all__ = ["Fit", "fit_device"]

"""Response curves of single ports: what light, or a circuit behind a port, makes of one value.

Each is a function of the module (numpy or torch), of u = gain x, and of options with defaults; all can be
differentiated by torch. Fields are real amplitudes in units of full scale, intensities their squares. Knows nothing
of stages, noise or converters.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

Curve = Callable[..., Any]


def identity(xp: Any, u: Any) -> Any:
    """y = u."""
    return u * 1


def relu(xp: Any, u: Any) -> Any:
    """y = max(u, 0), digital."""
    return xp.where(u > 0, u, 0.0)


def tanh(xp: Any, u: Any) -> Any:
    """y = tanh u, digital, or a saturating amplifier."""
    return xp.tanh(u)


def sigmoid(xp: Any, u: Any) -> Any:
    """y = 1 / (1 + e^-u), digital."""
    return xp.tanh(u * 0.5) * 0.5 + 0.5


def square(xp: Any, u: Any) -> Any:
    """Photodetector, square law: y = u^2, the current R P of a field of amplitude u in units of its full scale."""
    return u * u


def limiter(xp: Any, u: Any, *, limit: float = 1.0) -> Any:
    """Hard limiter: y = u within +-`limit`, and `limit` with the sign of u beyond; an amplifier between its rails."""
    return xp.clip(u, -limit, limit)


def saturable(xp: Any, u: Any, *, optical_depth: float = 2.0, saturation: float = 1.0) -> Any:
    """Saturable absorber: y = u exp(-(d / 2) / (1 + u^2 / s)).

    `optical_depth` d of the intensity at low power; `saturation` s: the intensity (amplitude squared) that halves it.
    Thin absorber: its excitation is that of the light coming in (Guo et al., Photonics Research 9, B71, 2021).
    """
    return u * xp.exp(-0.5 * optical_depth / (1 + u * u / saturation))


def electro_optic(xp: Any, u: Any) -> Any:
    """y = sin(pi/2 tanh u): a Mach-Zehnder modulator at its null, behind a saturating amplifier of the amplitude."""
    return xp.sin(xp.tanh(u) * (math.pi / 2))


def electro_optic_tap(
    xp: Any, u: Any, *, tap: float = 0.1, phase_gain: float = math.pi, bias_phase: float = math.pi
) -> Any:
    """Light that modulates itself: y = sqrt(1 - a) cos(g u^2 / 2 + b / 2) u.

    The intensity share `tap` a is detected and drives, amplified, a Mach-Zehnder modulator in the way of the rest:
    `phase_gain` g (rad for an intensity of 1, = pi a R G P / V_pi) and `bias_phase` b (rad, = pi V_b / V_pi). b = pi
    transmits weak light least (like a ReLU), b = 0 most. Williamson et al., IEEE J. Sel. Top. Quantum Electron. 26(1),
    7700412, 2020, for a push-pull modulator: the phase factor of a single-arm one is left out, since what
    leaves a stage is a real number.
    """
    return xp.cos(u * u * (phase_gain / 2) + bias_phase / 2) * u * math.sqrt(1 - tap)


CURVES: dict[str, Curve] = {
    curve.__name__: curve
    for curve in (identity, relu, tanh, sigmoid, square, limiter, saturable, electro_optic, electro_optic_tap)
}

_ABOVE_ZERO = ("limit", "saturation")
_LIMITS = {"optical_depth": (0.0, math.inf), "tap": (0.0, 1.0)}


def check_kind(kind: str, what: str, options: Mapping[str, Any] | None = None) -> None:
    """Raise ValueError for a curve that is not known, or options it does not take."""
    if kind not in CURVES:
        raise ValueError(f"unknown {what} {kind!r}: known are {', '.join(CURVES)}")
    known = curve_options(kind)
    for name, value in (options or {}).items():
        if name not in known:
            takes = f"takes {', '.join(known)}" if known else "takes none"
            raise ValueError(f"{what} {kind!r} has no option {name!r}: it {takes}")
        low, high = _LIMITS.get(name, (-math.inf, math.inf))
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{what} {kind!r}: {name} must be a finite number, not {value!r}")
        if not low <= value <= high or (name in _ABOVE_ZERO and value <= 0):
            allowed = "above 0" if name in _ABOVE_ZERO else f"from {low:g} to {high:g}"
            raise ValueError(f"{what} {kind!r}: {name} must be {allowed}, not {value}")


def curve_options(kind: str) -> dict[str, float]:
    """Options of a curve and their defaults."""
    found = inspect.signature(CURVES[kind]).parameters.values()
    return {p.name: p.default for p in found if p.kind is inspect.Parameter.KEYWORD_ONLY}

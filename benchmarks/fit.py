"""`device fit` on simulated devices of known parameters: how often its 95 % intervals hold the truth, and their width.

Every trial draws a device from the prior of its case (below), fits CONFIG, which knows the chip and none of the
parameters, with the default budget, and asks for each parameter whether its interval holds the value drawn. Rows: the
part of the trials where it does, the median half width relative to the value, queries a trial, and trials where the
parameter was not identified (they do not count as covered or missed). A last row for each case: how often the test of
the fit failed a device that is what CONFIG says. The case `served` runs behind a real ZeroMQ socket. `--quick`: 20
trials of each case instead of 100, 3 where served.
"""

from __future__ import annotations

import statistics
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from _rows import Rows, arguments

from hzo_hil.devices.server import Server
from hzo_hil.fit import Fit, fit_device
from hzo_hil.opening import device_section, open_device

Fields = dict[str, Any]
Trial = tuple[Fields, Fields, dict[str, float]]
"""CONFIG, the device, and the parameters to find."""


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def codes(bits: int, signed: bool = True) -> int:
    return int(2 ** (bits - 1) - 1 if signed else 2**bits - 1)


# --- priors --------------------------------------------------------------------------------------------------------


def converters(rng: np.random.Generator) -> Trial:
    """An emulator's matrix of 8 x 8: noise 0.003 to 0.1, inputs of 4 to 8 bits to 0.5 to 2, outputs of 5 to 9 bits to 1
    to 4, power 0.5 to 2."""
    base = {"widths": [8, 8], "activation": "none"}
    found: Fields = {
        "read_noise_std": log_uniform(rng, 0.003, 0.1),
        "in_bits": int(rng.integers(4, 9)),
        "in_bound": log_uniform(rng, 0.5, 2),
        "out_bits": int(rng.integers(5, 10)),
        "out_bound": log_uniform(rng, 1, 4),
    }
    power = log_uniform(rng, 0.5, 2)
    config = {"kind": "emulator", "options": base}
    return config, {**config, "options": base | found, "power": power}, found | {"power": power}


def mesh(rng: np.random.Generator) -> Trial:
    """A calibrated mesh of 8 ports read by homodyne: noise 0.003 to 0.05, inputs of 5 to 8 bits to 0.7 to 1.5, no
    converter at the output, power 0.5 to 2."""
    base = {"layers": 1, "ports": 8, "activation": "tanh"}
    found: Fields = {
        "noise_std": log_uniform(rng, 0.003, 0.05),
        "in_bits": int(rng.integers(5, 9)),
        "in_bound": log_uniform(rng, 0.7, 1.5),
    }
    power = log_uniform(rng, 0.5, 2)
    config = {"kind": "onn", "preset": "calibrated_chip", "options": base, "seed": int(rng.integers(1000))}
    return config, {**config, "options": base | found, "power": power}, found | {"power": power}


def intensity(rng: np.random.Generator) -> Trial:
    """A mesh of 8 ports read as intensities: plain noise 0.0005 to 0.005, bandwidth 5 to 50 GHz of a diode of 1 A/W on
    166 ohm at 1 mW, every second with an output of 8 to 11 bits to 1 to 2, power 0.5 to 2."""
    base = {"layers": 1, "ports": 8, "activation": "tanh", "detection": "intensity", "load": 166.0}
    found: Fields = {"noise_std": log_uniform(rng, 5e-4, 5e-3), "bandwidth": log_uniform(rng, 5e9, 5e10)}
    if rng.random() < 0.5:
        found |= {"out_bits": int(rng.integers(8, 12)), "out_bound": log_uniform(rng, 1, 2)}
    power = log_uniform(rng, 0.5, 2)
    config = {"kind": "onn", "options": base, "seed": int(rng.integers(1000)), "query_s": 1e-3}
    return config, {**config, "options": base | found, "power": power}, found | {"power": power}


def drift(rng: np.random.Generator) -> Trial:
    """The mesh, noise 0.003 to 0.03, with a power that drifts by 0.5 to 5 % within 0.5 to 5 s, looked at for 82 s."""
    config, device, found = mesh(rng)
    for name in ("in_bits", "in_bound"):
        del device["options"][name], found[name]
    found["noise_std"] = device["options"]["noise_std"] = log_uniform(rng, 0.003, 0.03)
    return _drifting(config, device, found, rng)


def wander(rng: np.random.Generator) -> Trial:
    """The mesh of the drift, with a laser that wanders by 2 to 20 %, the slower sine within 5 to 20 s."""
    config, device, found = mesh(rng)
    for name in ("in_bits", "in_bound"):
        del device["options"][name], found[name]
    size, clock = log_uniform(rng, 0.02, 0.2), {"query_s": 0.02, "wander_period_s": log_uniform(rng, 5, 20)}
    return config | clock, device | clock | {"laser_wander": size}, found | {"laser_wander": size}


def everything(rng: np.random.Generator) -> Trial:
    """The emulator's converters and noise, and the drift."""
    return _drifting(*converters(rng), rng)


def _drifting(config: Fields, device: Fields, found: dict[str, float], rng: np.random.Generator) -> Trial:
    drifts = {"power_drift_std": log_uniform(rng, 5e-3, 5e-2), "power_drift_tau_s": log_uniform(rng, 0.5, 5)}
    return config | {"query_s": 0.02}, device | drifts | {"query_s": 0.02}, found | drifts


CASES: dict[str, Callable[[np.random.Generator], Trial]] = {
    "converters": converters, "mesh": mesh, "intensity": intensity, "drift": drift, "wander": wander,
    "everything": everything, "served": everything,
}  # fmt: skip


# --- trials --------------------------------------------------------------------------------------------------------


@contextmanager
def served(device: Any) -> Iterator[Any]:
    """The device behind a socket of this machine."""
    server, stop = Server(device, "tcp://127.0.0.1:0"), threading.Event()
    thread = threading.Thread(target=server.serve, args=(stop,), daemon=True)
    thread.start()
    remote = open_device("zmq+" + server.url.removeprefix("zmq+"))
    try:
        yield remote
    finally:
        remote.close()
        stop.set()
        thread.join(10)


def fitted(case: str, trial: int) -> tuple[Fit, dict[str, float]]:
    seed = 1000 * list(CASES).index(case) + trial  # no two trials share noise
    config, described, truth = CASES[case](np.random.default_rng((2024, seed)))
    device = open_device(described, seed=seed)
    if case != "served":
        return fit_device(device_section(config), device, seed=seed, wander=case == "wander"), truth
    with served(device) as remote:
        return fit_device(device_section(config), remote, seed=seed), truth


def study(case: str, trials: int, rows: Rows, quick: bool) -> None:
    covered, widths = defaultdict(list), defaultdict(list)
    open_ones: dict[str, int] = defaultdict(int)
    queries, alarms = [], 0
    for trial in range(trials):
        fit, truth = fitted(case, trial)
        queries.append(fit.ledger.total.queries)
        alarms += not fit.good
        found = {f.name: f.estimate for f in fit.findings}
        for name, value in truth.items():
            estimate = found[name]
            if estimate is None:
                open_ones[name] += 1
                continue
            covered[name].append(estimate.low <= value <= estimate.high)
            widths[name].append((estimate.high - estimate.low) / 2 / value)
    few = trials < 100
    for name, hits in covered.items():
        rows.row(
            f"{case} {name}", statistics.mean(hits), "coverage of 95 % intervals", trials=len(hits),
            # One in a thousand honest parameters would miss the target of few trials.
            target=None if few and not quick else ">= 0.75" if few else ">= 0.9",
            half_width=statistics.median(widths[name]), queries=max(queries), not_identified=open_ones[name],
        )  # fmt: skip
    rows.row(f"{case} false alarms", alarms / trials, "of sound devices", target="<= 0.05" if not few else None)


def main() -> None:
    given = arguments(__doc__)
    rows = Rows()
    for case in CASES:
        trials = (3 if case == "served" else 20) if given.quick else 100
        study(case, trials, rows, given.quick and case != "served")
    rows.environment()
    rows.exit()


if __name__ == "__main__":
    main()

"""A mesh, its inputs, and what every route makes of them: `python -m tests.simulators.mesh_routes FILE` stores that."""

from __future__ import annotations

import sys

import numpy as np

from hzo_hil.simulators import native, noise, probes, sweep
from hzo_hil.simulators.circuit import Setting
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.layouts import Layout

ERRORS = {"coupler_std": 0.05, "loss_db": 0.1, "loss_std_db": 0.05, "shot_phase_std": 0.05}


def fabricated(layout: Layout, **more: float) -> ImperfectMesh:
    return ImperfectMesh(layout, MeshErrors(**{**ERRORS, **more}), seed=3)


def light(layout: Layout, kind: str = "complex64", rows: int = 50) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, layout.ports)) + 1j * rng.standard_normal((rows, layout.ports))
    return x.astype(kind) if kind.startswith("complex") else x.real.astype(kind)


def phases(layout: Layout, count: int = 1) -> np.ndarray:
    return np.random.default_rng(2).uniform(-7, 14, (count, layout.phases))


def keys(*shape: int) -> np.ndarray:
    return noise.derive(np.arange(np.prod(shape), dtype=np.uint64), 9).reshape(shape)


def every_route() -> dict[str, np.ndarray]:
    layout = Layout(8)
    made, told = fabricated(layout), phases(layout, 3)
    setting = Setting(made.circuit, told[0])
    found = {"matrix": setting.matrix}
    for kind in ("complex64", "float64"):
        x = light(layout, kind)
        found |= {
            f"{kind} sweep": sweep.fields(made, told, x),
            f"{kind} noisy sweep": sweep.fields(made, told, x, keys(3, 50)),
            f"{kind} probes": probes.fields(setting, np.arange(9, 30), np.linspace(-1, 2, 21), x),
            f"{kind} blocks": probes.fields(setting, np.array([[3, 60], [40, 5]]), np.array([[0.3, -1], [2, 0.1]]), x),
        }
    return found


if __name__ == "__main__":
    np.savez(sys.argv[1], route=native.route(), **every_route())

"""One mesh at many settings: phase vectors x samples x shots in one call.

The settings may differ in all phases; for probes that differ in a few see `probes`. Knows meshes and what reads them,
but not what the answers are for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import noise
from hzo_hil.simulators.arrays import is_numpy, namespace
from hzo_hil.simulators.circuit import Setting
from hzo_hil.simulators.converters import convert
from hzo_hil.simulators.imperfect import ImperfectMesh
from hzo_hil.simulators.mesh_stage import MeshStage

Array = NDArray[Any]


def fields(mesh: ImperfectMesh, phases: Array, inputs: Any, keys: Any = None) -> Any:
    """Complex fields `[P, B, N]` behind the mesh for phases `[P, phases]` (rad, as the light meets them) and inputs
    `[B, N]`, real or complex.

    With `keys`, uint64 `[P, B]` or `[P, shots, B]`, every row meets phase noise of its own and the result is
    `[P, B, N]` or `[P, shots, B, N]`. Inputs and keys may be torch tensors (keys int64); phases are numpy. ValueError
    for shapes that do not fit.
    """
    phases = np.atleast_2d(np.asarray(phases, np.float64))
    _check(mesh, phases, inputs, keys)
    if keys is None or not mesh.errors.shot_phase_std:
        still = mesh.circuit.fields(phases, inputs)
        if keys is None or keys.ndim == 2:
            return still
        every = [still] * keys.shape[1]
        return np.stack(every, axis=1) if is_numpy(still) else namespace(still).stack(every, dim=1)
    shape = (*keys.shape, mesh.layout.ports)
    shots = keys.shape[1] if keys.ndim == 3 else 1
    keys = keys.reshape(len(phases), shots, len(inputs))
    out = _complex((len(phases), shots, *inputs.shape), inputs)
    for vector, its_keys, into in zip(phases, keys, out, strict=True):
        setting = Setting(mesh.circuit, vector)
        for shot in range(shots):
            into[shot] = mesh.walk_rows(setting, inputs, its_keys[shot])
    return out.reshape(shape)


def outputs(stage: MeshStage, commanded: Array, inputs: Any, keys: Any, writes: Array) -> Any:
    """What a stage reads, `[P, B, N]` or `[P, shots, B, N]`: write p sets `commanded` `[P, phases]` (theta, phi,
    out_phase; rad) with key writes[p], and each of its rows is run with its own of `keys`, `[P, B]` or `[P, shots, B]`.

    The same as `stage.run` of every write and shot, to rounding.
    """
    inputs = convert(inputs, stage.input)
    behind = fields(stage.mesh, stage.mesh.phases(commanded, np.asarray(writes, np.uint64)), inputs, keys)
    ports = stage.layout.ports
    return stage.detect(behind.reshape(-1, ports), keys.reshape(-1)).reshape(*keys.shape, ports)


def shot_keys(keys: Array, shots: int) -> Array:
    """Keys `[..., shots, B]` of repeated shots of rows with keys `[..., B]`."""
    return np.stack([noise.derive(keys, shot) for shot in range(shots)], axis=-2)


def _complex(shape: tuple[int, ...], like: Any) -> Any:
    if is_numpy(like):
        return np.empty(shape, np.result_type(like, np.complex64))
    return like.new_empty(shape, dtype=(like[:1, :1] * (1 + 0j)).dtype)


def _check(mesh: ImperfectMesh, phases: Array, inputs: Any, keys: Any) -> None:
    ports, count = mesh.layout.ports, mesh.layout.phases
    if phases.ndim != 2 or phases.shape[1] != count:
        raise ValueError(f"a mesh of {ports} ports takes phases [vectors, {count}], not {list(phases.shape)}")
    if inputs.ndim != 2 or inputs.shape[1] != ports:
        raise ValueError(f"a mesh of {ports} ports takes inputs [batch, {ports}], not {list(inputs.shape)}")
    if keys is not None and not (
        keys.ndim in (2, 3) and keys.shape[0] == len(phases) and keys.shape[-1] == len(inputs)
    ):
        raise ValueError(
            f"keys must be [{len(phases)}, {len(inputs)}] or [{len(phases)}, shots, {len(inputs)}],"
            f" not {list(keys.shape)}"
        )

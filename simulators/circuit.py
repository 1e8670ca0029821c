"""A fabricated mesh at given phases: fields and matrices by the fastest route at hand, all the same to rounding.

Routes: C kernels where they are built, else numpy; torch for tensors. Light walks node by node, or the matrix is
compiled by sending every basis vector through and then multiplied. Knows couplers, loss and phases, but not where they
come from; knows no converters and no detectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hzo_hil.simulators import circuit_kernels as kernels
from hzo_hil.simulators import native
from hzo_hil.simulators.arrays import Held, is_numpy, namespace, precision
from hzo_hil.simulators.layouts import Layout
from hzo_hil.simulators.mesh import elements, phasor, through
from hzo_hil.simulators.phase_noise import PhaseNoise, like

Array = NDArray[Any]
# Cost of a walk of one field through one node in float64 (the compile) and in float32, and of one product of a
# matrix element with one field: nanoseconds, measured on one core with AVX-512; on others their ratios are close.
_COMPILE_NS, _WALK_NS, _PRODUCT_NS = 1.0, 0.5, 0.09
_MATRIX_BYTES = 1 << 25  # for the matrices of many settings
_NUMPY_BYTES, _TORCH_BYTES = 1 << 23, 1 << 28  # for the node elements of rows that have phases of their own


@dataclass(frozen=True, eq=False)
class Circuit:
    """A layout and its `couplers` float64 `[nodes, 4]`: cosine and sine of the first and of the second coupler, the
    second pair times the amplitude that passes the node."""

    layout: Layout
    couplers: Array

    def walk(self, phases: Array, fields: Any) -> Any:
        """Complex fields `[vectors, rows, ports]`: `fields` `[rows, ports]` at each of `phases` `[vectors, phases]`.

        Phases are float64 rad, numpy in any case; the result has the precision of `fields` and lives where they do.
        """
        if not is_numpy(fields):
            return self._walk_tensor(phases, fields)
        out = np.empty((len(phases), *fields.shape), np.result_type(fields, np.complex64))
        if native.library() is not None:
            kernels.walk(self.layout, self.couplers, np.ascontiguousarray(phases), fields, out)
        else:
            self.walk_numpy(phases, fields, out)
        return out

    def walk_numpy(self, phases: Array, fields: Array, out: Array) -> None:
        for vector, into in zip(phases, out, strict=True):
            made, ends = self._shared(vector, out.dtype)
            into.T[:] = ends * through(self.layout, made, fields.T.astype(out.dtype, order="C"))

    def _walk_tensor(self, phases: Array, fields: Any) -> Any:
        """All vectors side by side: ports first, then vectors, then rows."""
        inner, outer, ends = self.layout.split(Held(phasor(np, phases.T)[:, :, None]).like(fields))
        made = elements(inner, outer, *Held(self.couplers.T[:, :, None, None]).like(fields))
        light = (fields.T * (1 + 0j))[:, None, :].repeat(1, len(phases), 1)
        return (ends * through(self.layout, made, light)).permute(1, 2, 0)

    def _shared(self, phases: Array, dtype: Any) -> tuple[Any, Any]:
        """Elements of all nodes, each `[nodes, 1]`, and phasors of the ends `[ports, 1]`; computed in double."""
        inner, outer, ends = self.layout.split(phasor(np, phases)[:, None])
        made = elements(inner, outer, *self.couplers.T[:, :, None])
        return tuple(t.astype(dtype) for t in made), ends.astype(dtype)

    def matrices(self, phases: Array) -> Array:
        """Transposed transfer matrices complex128 `[vectors, ports, ports]`: rows of fields go on their left."""
        return self.walk(phases, np.eye(self.layout.ports))

    def prefers_walk(self, rows: int, real: bool = False) -> bool:
        """Whether `rows` fields that meet a phase vector once are cheaper to walk than a compile and a product."""
        ports, nodes = self.layout.ports, self.layout.nodes
        product = ports**2 * _PRODUCT_NS * (0.5 if real else 1.0)
        return rows * (nodes * _WALK_NS - product) < ports * nodes * _COMPILE_NS

    def fields(self, phases: Array, fields: Any) -> Any:
        """What `walk` gives, by the cheaper route."""
        if self.prefers_walk(len(fields), str(fields.dtype).removeprefix("torch.") in ("float32", "float64")):
            return self.walk(phases, fields)
        if not is_numpy(fields):
            basis = namespace(fields).eye(self.layout.ports, dtype=like(fields), device=fields.device)
            return (fields * (1 + 0j)) @ self.walk(phases, basis)
        out = np.empty((len(phases), *fields.shape), np.result_type(fields, np.complex64))
        step = max(1, _MATRIX_BYTES // (24 * self.layout.ports**2))
        for start in range(0, len(phases), step):
            some = slice(start, start + step)
            # Of real fields, real and imaginary parts are columns of one real product.
            kind = fields.dtype
            np.matmul(fields, self.matrices(phases[some]).astype(out.dtype).view(kind), out=out[some].view(kind))
        return out


class Setting:
    """A circuit at realised `phases` float64 `[phases]` (rad): what its routes need is made once and kept."""

    def __init__(self, circuit: Circuit, phases: Array) -> None:
        self.circuit, self.phases = circuit, np.ascontiguousarray(phases, np.float64)
        self._parts: dict[str, tuple[Array, Array]] = {}

    @cached_property
    def matrix(self) -> Array:
        """Complex transfer matrix `[ports, ports]`: column k is the field behind the mesh for light in port k."""
        return np.asarray(self.circuit.matrices(self.phases[None])[0].T)

    @cached_property
    def real(self) -> Held:
        return Held(self.matrix.real.T)

    @cached_property
    def imaginary(self) -> Held:
        return Held(self.matrix.imag.T)

    @cached_property
    def _phasors(self) -> Held:
        return Held(phasor(np, self.phases)[:, None])

    @cached_property
    def _couplers(self) -> Held:
        return Held(self.circuit.couplers.T[:, :, None])

    def parts(self, kind: str) -> tuple[Array, Array]:
        """The kernels' constants in "float32" or "float64"."""
        if kind not in self._parts:
            self._parts[kind] = kernels.parts(self.circuit.layout, self.circuit.couplers, self.phases, kind)
        return self._parts[kind]

    def noisy(self, fields: Any, keys: Any, streams: tuple[int, int], noise: PhaseNoise) -> Any:
        """Complex fields `[rows, ports]` when every row meets phase noise of its own.

        `fields` `[rows, ports]`, real or complex, numpy or torch. `streams` are those of the nodes, where column i is
        the draw of theta of node i and column nodes + i that of its phi, and of the output phases.
        """
        if is_numpy(fields) and native.library() is not None:
            made, ends = self.parts(precision(fields))
            return kernels.noisy(self.circuit.layout, made, ends, fields, keys, streams, noise.std, noise.lost)
        return self.noisy_plain(fields, keys, streams, noise)

    def noisy_plain(self, fields: Any, keys: Any, streams: tuple[int, int], noise: PhaseNoise) -> Any:
        """`noisy` without the kernel, in parts, so that memory does not grow with the batch."""
        xp, layout = namespace(fields), self.circuit.layout
        rows = max(1, (_NUMPY_BYTES if xp is np else _TORCH_BYTES) // (64 * layout.nodes))
        done = []
        for start in range(0, max(len(fields), 1), rows):
            part = fields[start : start + rows]
            off = _ports_first(noise.draw(keys[start : start + rows], streams[0], 2 * layout.nodes, like(part)))
            ends = _ports_first(noise.draw(keys[start : start + rows], streams[1], layout.ports, like(part)))
            inner, outer, still = layout.split(self._phasors.like(part))
            made = elements(
                inner * phasor(xp, off[: layout.nodes]), outer * phasor(xp, off[layout.nodes :]),
                *self._couplers.like(part),
            )  # fmt: skip
            done.append((still * phasor(xp, ends) * through(layout, made, _ports_first(part) * (1 + 0j))).T)
        return np.concatenate(done) if xp is np else xp.cat(done)


def _ports_first(x: Any) -> Any:
    return np.ascontiguousarray(x.T) if is_numpy(x) else x.T.contiguous()

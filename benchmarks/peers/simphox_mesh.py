"""simphox's rectangular mesh by its jax route; run by the environment of simphox.txt."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import sys

import jax
import jax.example_libraries.optimizers
import jax.numpy as jnp
import numpy as np
from _answer import serve

# Where jax moved it after simphox's last release; simphox imports it, and nothing here uses it.
sys.modules["jax.experimental.optimizers"] = jax.example_libraries.optimizers
from simphox.circuit import rectangular  # noqa: E402


def prepare(ports: int, batch: int, noisy: bool) -> tuple[Callable[[], Any], dict[str, Any]]:
    rng = np.random.default_rng(0)
    unitary = np.linalg.qr(rng.standard_normal((ports, ports)))[0].astype(complex)
    mesh = rectangular(unitary)
    theta, phi, gamma = (jnp.asarray(p, jnp.float32) for p in mesh.params)
    light = (rng.standard_normal((ports, batch)) + 1j * rng.standard_normal((ports, batch))).astype(np.complex64)
    facts = {"simphox": "0.0.1a8", "jax": jax.__version__, "precision": "complex64", "mode": "jit"}
    if not noisy:
        through = jax.jit(mesh.matrix_fn(inputs=light, use_jax=True))
        return lambda: through((theta, phi, gamma)).block_until_ready(), facts

    def single(key: Any, sample: Any) -> Any:
        first, second = jax.random.split(key)
        off = 0.02 * jax.random.normal(first, theta.shape), 0.02 * jax.random.normal(second, phi.shape)
        return mesh.matrix_fn(inputs=sample, use_jax=True)((theta + off[0], phi + off[1], gamma))[:, 0]

    every = jax.jit(jax.vmap(single))
    keys, samples = jax.random.split(jax.random.PRNGKey(0), batch), jnp.asarray(light.T)
    return lambda: every(keys, samples).block_until_ready(), {**facts, "mode": "jit of vmap, a key for each sample"}


serve(prepare)

"""Meshes against a dense complex product of their size: one draw a call, noise of every sample, many settings, probes.

complex64, batch 1024, one thread. "dense" is `x @ U` with x `[batch, N]` and U `[N, N]`, by numpy or by torch,
whichever is faster in this run, timed in turn with what it is compared with. Every call of ours starts from phases:
"one draw per call" takes other phases at each call, as a chip does that is written each time, and "own phase noise"
other keys.

- 256 phase vectors: one call of `sweep.fields` against 256 calls of it with one vector each.
- Probes: all changes of single phases by `probes.chunks`, against one call with all phases for each (by the fastest
  route; a walk is slower) of a part of them, both per probe.
- "plain" rows: `_mesh_plain.py`, what one writes without a simulator. "numpy route": a second process with
  HZO_HIL_NATIVE=0, which is what remains where the kernels are not built.
- Peers: `--peer simphox=PYTHON` and so on times them beside ours, with the interpreter of an environment made from
  peers/NAME.txt. Their phases stay as they are (torchonn draws its noise), but each call starts from them.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import _one_thread  # noqa: F401
import numpy as np
import torch
from _mesh_plain import by_numpy, by_torch
from _peers import Peer, interpreters, missing
from _rows import Rows, arguments
from _timing import in_turn, middle, ratio, spread

from hzo_hil.simulators import native, probes, sweep
from hzo_hil.simulators.circuit import Setting
from hzo_hil.simulators.imperfect import ImperfectMesh, MeshErrors
from hzo_hil.simulators.layouts import Layout

BATCH, STD = 1024, 0.02
# Ports and whether with noise of every sample; photontorch solves for all inner ports at once, over a minute at N = 64.
PEERS = {
    "simphox": [(64, False), (64, True)],
    "neuroptica": [(64, False)],
    "photontorch": [(16, False)],
    "torchonn": [(64, False)],
}
Calls = dict[str, Callable[[], Any]]


class Case:
    """A mesh, its inputs, and calls that take other phases or keys each time."""

    def __init__(self, ports: int, batch: int = BATCH) -> None:
        rng = np.random.default_rng(0)
        self.mesh = ImperfectMesh(Layout(ports), MeshErrors(coupler_std=0.02, shot_phase_std=STD))
        self.vectors = rng.uniform(0, 6.28, (256, self.mesh.layout.phases))
        self.light = (rng.standard_normal((batch, ports)) + 1j * rng.standard_normal((batch, ports))).astype(
            np.complex64
        )
        self.setting = Setting(self.mesh.circuit, self.vectors[0])
        self.matrix = self.setting.matrix.T.astype(np.complex64)
        self._next = itertools.cycle(range(256))
        self._keys = itertools.count()

    def dense(self) -> Calls:
        light, matrix = torch.from_numpy(self.light), torch.from_numpy(self.matrix)
        return {"dense numpy": lambda: self.light @ self.matrix, "dense torch": lambda: light @ matrix}

    def one_draw(self) -> Any:
        some = next(self._next)
        return sweep.fields(self.mesh, self.vectors[some : some + 1], self.light)

    def own_noise(self) -> Any:
        first = next(self._keys) * len(self.light)
        keys = np.arange(first, first + len(self.light), dtype=np.uint64)
        return self.mesh.walk_rows(self.setting, self.light, keys)

    def plain(self) -> tuple[Calls, Calls]:
        """Plain torch and numpy, for one draw a call and for noise of every sample."""
        parts = self.mesh.layout.split(self.vectors[0].astype(np.float32))
        light, rng = np.ascontiguousarray(self.light.T), np.random.default_rng(0)
        tensors, torch_light = [torch.from_numpy(p.copy()) for p in parts], torch.from_numpy(light)
        still: Calls = {
            "plain torch": lambda: by_torch(*tensors, torch_light),
            "plain numpy": lambda: by_numpy(*parts, light),
        }
        noisy: Calls = {
            "plain torch": lambda: by_torch(*tensors, torch_light, STD),
            "plain numpy": lambda: by_numpy(*parts, light, STD, rng),
        }
        return still, noisy


def faster(found: dict[str, list[float]]) -> str:
    return min(("dense numpy", "dense torch"), key=lambda name: middle(found, name))


def call_rows(rows: Rows, rounds: int, targets: bool, plain: bool = True) -> None:
    """One set of phases a call, and phases of every sample's own, at three sizes."""
    for ports in (16, 64, 256):
        case = Case(ports)
        few = rounds if ports < 256 else max(3, rounds // 8)
        others = case.plain() if plain else ({}, {})
        kinds = [
            ("one draw per call", case.one_draw, "<= 5", few),
            ("own phase noise", case.own_noise, "<= 40", few // 3),
        ]
        for (what, ours, target, count), other in zip(kinds, others, strict=True):
            found = in_turn({**case.dense(), "ours": ours}, max(3, count))
            base = faster(found)
            rows.row(
                f"{what}, N = {ports}", middle(found, "ours"), "s", against=base, ratio=ratio(found, "ours", base),
                target=target if targets and ports == 64 else None, quartiles=spread(found, "ours", base),
                dense_s=middle(found, base), route=native.route(), rounds=max(3, count),
            )  # fmt: skip
            if ports == 256 and what == "own phase noise":
                continue
            for name, call in other.items():
                found = in_turn({**case.dense(), name: call}, max(3, count // 6), best_of=1, warm=1)
                base = faster(found)
                rows.row(
                    f"{name}: {what}, N = {ports}",
                    middle(found, name),
                    "s",
                    against=base,
                    ratio=ratio(found, name, base),
                )


def sweep_rows(rows: Rows, rounds: int, targets: bool) -> None:
    for batch, target in ((1024, "<= 1.05"), (64, None)):
        case = Case(64, batch)

        def single(case: Case = case) -> None:
            for vector in case.vectors:
                sweep.fields(case.mesh, vector[None], case.light)

        def kept(case: Case = case) -> list[Any]:
            return [sweep.fields(case.mesh, vector[None], case.light) for vector in case.vectors]

        calls: Calls = {
            "at once": lambda case=case: sweep.fields(case.mesh, case.vectors, case.light),
            "one by one": kept,
            "one by one, dropped": single,
        }
        found = in_turn(calls, rounds, best_of=1)
        walks = case.mesh.circuit.prefers_walk(batch)
        rows.row(
            f"256 phase vectors x {batch} samples, N = 64", middle(found, "at once"), "s", against="256 calls",
            ratio=ratio(found, "at once", "one by one"), target=target if targets else None,
            quartiles=spread(found, "at once", "one by one"), way="walk" if walks else "compile and product",
            against_dropped_results=ratio(found, "at once", "one by one, dropped"), route=native.route(),
        )  # fmt: skip


def probe_rows(rows: Rows, rounds: int, targets: bool) -> None:
    case = Case(64)
    layout, setting = case.mesh.layout, case.setting
    which = np.arange(2 * layout.nodes)
    changes = np.full(len(which), 0.1)
    part = which[:: len(which) // 64]
    vectors = np.repeat(setting.phases[None], len(part), axis=0)
    vectors[np.arange(len(part)), part] += 0.1

    def low_rank() -> None:
        for _ in probes.chunks(setting, which, changes, case.light):
            pass

    def full() -> None:
        for vector in vectors:
            case.mesh.circuit.fields(vector[None], case.light)

    def walks() -> None:
        for vector in vectors:
            case.mesh.circuit.walk(vector[None], case.light)

    found = in_turn({"low rank": low_rank, "full": full, "walks": walks}, rounds, best_of=1, warm=1)
    each = {"low rank": len(which), "full": len(part), "walks": len(part)}
    found = {name: [s / each[name] for s in seconds] for name, seconds in found.items()}
    for against in ("walks", "full"):
        rows.row(
            f"single-phase probes by low rank, N = 64, against {against}", middle(found, "low rank"), "s a probe",
            against="walks of the mesh" if against == "walks" else "compiled matrix and product",
            ratio=ratio(found, against, "low rank"), target=">= 8" if targets and against == "walks" else None,
            quartiles=spread(found, against, "low rank"), full_s=middle(found, against), probes=len(which),
            route=native.route(),
        )  # fmt: skip


def peer_rows(rows: Rows, rounds: int, given: dict[str, str]) -> None:
    for name, kinds in PEERS.items():
        for ports, noisy in kinds:
            what = f"{name}: {'own phase noise' if noisy else 'one draw per call'}, N = {ports}"
            if name not in given:
                rows.row(what, missing(name), "none")
                continue
            with ExitStack() as stack:
                peer = stack.enter_context(Peer(given[name], f"{name}_mesh.py", ports=ports, batch=BATCH, noisy=noisy))
                case = Case(ports)
                ours = case.own_noise if noisy else case.one_draw
                found = in_turn({**case.dense(), "ours": ours, "peer": peer.seconds}, rounds, best_of=1, warm=2)
            base = faster(found)
            rows.row(
                what, middle(found, "peer"), "s", against=base, ratio=ratio(found, "peer", base),
                over_ours=ratio(found, "peer", "ours"), ours_s=middle(found, "ours"), **peer.facts,
            )  # fmt: skip


def main() -> None:
    peers = interpreters()
    given = arguments(__doc__, fallback="only the rows of the numpy route (used by the benchmark itself)")
    rounds = 24 if given.quick else 120
    rows = Rows()
    if given.fallback:
        call_rows(rows, 6, targets=False, plain=False)
        probe_rows(rows, 3, targets=False)
        return
    rows.environment()
    targets = native.library() is not None
    call_rows(rows, rounds, targets)
    sweep_rows(rows, max(5, rounds // 12), targets)
    probe_rows(rows, max(5, rounds // 12), targets)
    peer_rows(rows, max(5, rounds // 12), peers)
    if native.library():
        command = [sys.executable, __file__, "--fallback"]
        subprocess.run(command, env={**os.environ, native.OFF: "0"}, check=True)
    rows.exit()


if __name__ == "__main__":
    main()

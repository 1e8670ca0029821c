"""One gradient of a network of opaque convolutions: asked row by row, by a device that probes by itself, and with all
activations and targets left where the device computes.

The network of `gpu` in benchmarks/paper/opaque.py (15 stages, 712 queries a sample), chain, one-sided differences, at
the same step. `rows` sends every row and gets every answer, on the native engine and on torch's; `its own probes` sends
activations, colours and weights; `stays` sends nothing. Seconds are medians of rounds in turn, each with its quartiles
against the rows of its own engine; bytes by the ledger; cosines to autograd. `--cuda` adds a GPU ("not measured" where
there is none), with and without tensor cores. `--quick`: fewer samples and rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import _one_thread  # noqa: F401
import torch
from _rows import Rows, arguments
from _timing import in_turn, middle, ratio, spread

sys.path.insert(0, str(Path(__file__).parent / "paper"))
from _blocks import UnitNet, by_autograd, on_device
from torch import Tensor, nn
from torch.nn import functional

from hzo_hil import Opaque
from hzo_hil.devices.wrapper import Wrapper

GROUPS, EPS = ((64, 3), (128, 3)), 0.1
SAMPLES, ROUNDS = {"cpu": 8, "cuda": 64}, 5


class ByRows(Wrapper):
    """The device, with nothing but `run`."""

    def run(self, *given: Any, **options: Any) -> Any:
        return self.device.run(*given, **options)


def asked(engine: str, how: str, images: Tensor) -> nn.Module:
    model = on_device(UnitNet(32, 2, EPS, GROUPS), images, 10, 0, engine)
    run: Opaque = model[0]
    if how == "rows":
        device = ByRows(run.network.devices[0])
        stages = [type(s)(device, s.index, s.leaf, s.twin, s.initial) for s in run.network.stages]
        model[0] = Opaque(stages, plan=run.plan, name="network", seed=0)
    elif how == "its own probes":
        run._stays = lambda: False  # type: ignore[method-assign]
    return model.to("cuda" if engine.startswith("cuda") else "cpu")


def gradient(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    model.zero_grad()
    functional.cross_entropy(model(images), labels).backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return found.double().cpu()  # waits for a GPU


def compared(rows: Rows, engines: dict[str, list[str]], place: str, samples: int, rounds: int) -> None:
    """`engines`: what is measured on each; the first of `rows` is what others are compared with."""
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3 * 32 * 32), torch.arange(samples) % 10
    true = gradient(by_autograd(UnitNet(32, 2, EPS, GROUPS), images, 10, 0), images[:samples], labels)
    x, y = images[:samples].to(place), labels.to(place)
    models = {f"{engine}: {how}": asked(engine, how, images) for engine, hows in engines.items() for how in hows}
    cosines, sent, calls = {}, {}, {}
    for name, model in models.items():
        found = gradient(model, x, y)
        cosines[name] = float(found @ true / (found.norm() * true.norm()))
        account = model[0].ledger.accounts["probes"]  # type: ignore[index]
        sent[name], calls[name] = account.bytes, account.calls
    seconds = in_turn({n: lambda m=m: gradient(m, x, y) for n, m in models.items()}, rounds, best_of=1, warm=1)  # type: ignore[misc]
    for name in models:
        base = f"{name.partition(':')[0]}: rows"
        if base not in models:
            base = next(iter(models))
        rows.row(
            name, ratio(seconds, base, name), "times as fast", against=base, quartiles=spread(seconds, base, name),
            seconds=middle(seconds, name), samples=samples, bytes=sent[name], calls=calls[name],
            cosine=cosines[name], threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if place == "cuda" else "cpu",
        )  # fmt: skip


def main() -> None:
    given = arguments(__doc__, cuda="measure a GPU as well")
    rows = Rows()
    rows.environment()
    rounds = 3 if given.quick else ROUNDS
    every = ["rows", "its own probes", "stays"]
    compared(rows, {"native": ["rows"], "torch": every}, "cpu", 2 if given.quick else SAMPLES["cpu"], rounds)
    if given.cuda and torch.cuda.is_available():
        compared(rows, {"cuda": every, "cuda+tf32": ["stays"]}, "cuda", SAMPLES["cuda"], rounds)
    elif given.cuda:
        rows.row("cuda", "not measured", "times as fast", why="torch finds no GPU here")
    rows.exit()


if __name__ == "__main__":
    main()

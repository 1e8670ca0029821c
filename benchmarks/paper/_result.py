"""What every item of `benchmarks/paper` shares: its command line, parts kept as they are measured, one JSON, a figure.

An item is made of parts (a method and a seed, say). Each is measured once and kept at once in `<item>.partial.json`: a
run that was stopped goes on with the next part, on another machine too, if that file is copied there. With the last
part it becomes `<item>.json`, beside `<item>.png`. Import it before `_rows` and hzo_hil: it puts the folder above on
the path. It knows no item.

    result = begun("fig1", __doc__, full={"depths": [16, 32], "seeds": 5}, smoke={"depths": [4], "seeds": 1})
    for seed in result.seeds:
        found = result.part(f"resnet/{seed}", lambda: {"cosine": 0.9})
    result.row("ResNet, L = 32", 0.9, "cosine", target=">= 0.8")
    result.finish(lambda figure: figure.subplots().plot([1, 2]))

as `main`, and `go(main)` where the item is the program.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _rows import ROOT, Rows

from hzo_hil.devices.errors import HzoError
from hzo_hil.environment import environment, git_commit
from hzo_hil.interrupts import heed_sigterm, status_of
from hzo_hil.ledger import Account, Ledger, recording
from hzo_hil.runfiles import plain, read_json, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULTS = ROOT / "benchmarks" / "results"


def begun(
    item: str, doc: str | None, full: Mapping[str, Any], smoke: Mapping[str, Any], *, groups: Sequence[str] = (),
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Result:  # fmt: skip
    """Reads the command line. `full`: the settings of the whole run, `seeds` (how many) among them; `smoke`: what a
    smoke changes of them. `groups`: what `--parts` chooses from, for items whose parts are measured on different days
    (a part belongs to the group before its first slash); `flags`: more flags, as argparse takes them, found in `given`.
    Ends the process with status 2 where the command line or a kept part does not fit.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="seconds: shows that it runs; its numbers mean nothing")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"seeds 0..N-1 (default: {full['seeds']})")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: benchmarks/results; smoke: a new folder")
    parser.add_argument("--fresh", action="store_true", help="forget the parts of a run that was stopped")
    if groups:
        parser.add_argument(
            "--parts", default=",".join(groups), metavar="P,Q", help=f"which to measure now, of {', '.join(groups)}"
        )
    for flag, how in (flags or {}).items():
        parser.add_argument(flag, **how)
    given = parser.parse_args()
    chosen = _chosen(parser, given.parts, groups) if groups else []
    config = plain(full | smoke if given.smoke else full)
    if given.seeds is not None:
        config["seeds"] = given.seeds
    if config["seeds"] < 1:
        parser.error(f"--seeds {given.seeds}: at least 1")
    folder = given.out or (Path(tempfile.mkdtemp(prefix=f"{item}-")) if given.smoke else RESULTS)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Result(item, config, given.smoke, folder, given.fresh, chosen, given)
    except (HzoError, OSError) as error:
        parser.error(str(error))


def go(main: Callable[[], None]) -> None:
    """What an item does as a program. Ends with a line: status 130 by Ctrl-C, 143 by SIGTERM, 2 by a mistake."""
    heed_sigterm()
    try:
        main()
    except KeyboardInterrupt as error:
        print("stopped; what was reached is kept, and the same command goes on (not with --smoke)", file=sys.stderr)
        raise SystemExit(status_of(error)) from None
    except HzoError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@contextmanager
def workplace(result: Result, usual: str) -> Iterator[Path]:
    """Where trainings keep their checkpoints: `--work`, or as usual; of a smoke, which nobody goes on with, nowhere."""
    with tempfile.TemporaryDirectory() as nobodys:
        yield result.given.work or Path(nobodys if result.smoke else usual)


def _chosen(parser: argparse.ArgumentParser, text: str, groups: Sequence[str]) -> list[str]:
    """A group is itself alone; where none is called `e`, `e` stands for every group `e-...`."""
    found: list[str] = []
    for name in text.split(","):
        meant = [name] if name in groups else [g for g in groups if g.startswith(f"{name}-")]
        if not meant:
            parser.error(f"--parts {text}: there is no {name!r}; choose of {', '.join(groups)}")
        found += meant
    return [g for g in groups if g in found]


class Result:
    """One run of an item. `config`: its settings; `seeds`: the numbers themselves; `smoke`: whether it is one; `given`:
    its flags. With groups, parts of the finished result are kept as well.
    """

    def __init__(
        self, item: str, config: dict[str, Any], smoke: bool, folder: Path, fresh: bool, chosen: Sequence[str] = (),
        given: argparse.Namespace | None = None,
    ) -> None:  # fmt: skip
        self.item, self.config, self.smoke, self.folder = item, config, smoke, folder
        self.chosen, self.given = list(chosen), given or argparse.Namespace()
        self.seeds = list(range(config["seeds"]))
        self.rows = Rows()
        self._partial = folder / f"{item}.partial.json"
        self.parts: dict[str, dict[str, Any]] = {}
        self._asked: list[str] = []
        whole = folder / f"{item}.json"
        for file in (whole, self._partial) if self.chosen else (self._partial,):
            if file.exists() and (self.chosen or not fresh):
                self.parts |= self._earlier(file)
                print(f"{len(self.parts)} parts taken from {file}", file=sys.stderr)
        if fresh:
            self.parts = {n: p for n, p in self.parts.items() if _group(n) not in self.chosen}
        self.rows.environment()

    def _earlier(self, file: Path) -> dict[str, dict[str, Any]]:
        kept = read_json(file)
        if not isinstance(kept, dict) or not {"config", "parts"} <= set(kept):
            raise HzoError(f"{file} holds no parts of a run: take it away, or --fresh to write over it")
        if changed := _differences(kept["config"], self.config):
            raise HzoError(
                f"{file} holds parts of a run with other settings ({changed}). Give those to go on with it, or"
                f" {'take it away' if self.chosen else '--fresh'} to forget it"
            )
        return kept["parts"]

    def wanted(self, name: str) -> bool:
        """Of an item with groups, whether a part is kept or to be measured now."""
        return name in self.parts or _group(name) in self.chosen

    def part(self, name: str, measure: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What `measure()` returns, as JSON holds it; of a part that is kept already, what it returned then.

        All that opaque modules spend meanwhile is its ledger. A measurement that goes on with what an earlier process
        began returns `in_all`, too: `wall_seconds` and `ledger` of both.
        """
        self._asked.append(name)
        if name not in self.parts:
            ledger, start = Ledger(), time.perf_counter()
            with recording(ledger):
                found = plain(measure())
            seconds, in_all = time.perf_counter() - start, found.pop("in_all", {})
            self.parts[name] = {
                "found": found, "wall_seconds": round(seconds, 3), "ledger": _spent(ledger), "commit": git_commit(ROOT),
            } | in_all  # fmt: skip
            write_json(self._partial, {"config": self.config, "parts": self.parts})
            print(f"{self.item}: {name} ({seconds:.1f} s)", file=sys.stderr, flush=True)
        return self.parts[name]["found"]

    def row(self, case: str, value: float | int | str, unit: str, *, target: str | None = None, **more: Any) -> None:
        """Printed and kept; see `Rows.row`. A smoke is too small for targets and is not judged by them."""
        self.rows.row(case, value, unit, target=None if self.smoke else target, **more)

    def finish(self, draw: Callable[[Figure], Any]) -> NoReturn:
        """Writes the result and what `draw` paints, and ends the process: status 1 if a target was missed."""
        parts = {name: self.parts[name] for name in self._asked}  # a run of more seeds may have left others
        write_json(
            self.folder / f"{self.item}.json",
            {
                "item": self.item,
                "command": self._command(),
                "smoke": self.smoke,
                "config": self.config,
                "seeds": self.seeds,
                "commit": git_commit(ROOT),
                "hardware": hardware(),
                "wall_seconds": round(sum(p["wall_seconds"] for p in parts.values()), 3),
                "ledger": _summed([p["ledger"] for p in parts.values()]),
                "rows": self.rows.kept,
                "parts": parts,
            },
        )
        drawn = self._drawn(draw)
        self._partial.unlink(missing_ok=True)
        print(f"wrote {self.folder / self.item}.json{' and .png' if drawn else ''}", file=sys.stderr)
        self.rows.exit()
        raise AssertionError  # never comes here

    def _command(self) -> str:
        """What makes this file again, in a clone."""
        flags = ["--smoke"] * self.smoke + ["--seeds", str(len(self.seeds))]
        return " ".join(["python", f"benchmarks/paper/{Path(sys.argv[0]).name}", *flags])

    def _drawn(self, draw: Callable[[Figure], Any]) -> bool:
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            print("matplotlib is not installed, so no figure was drawn: pip install 'hzo-hil[plots]'", file=sys.stderr)
            return False
        figure = Figure(figsize=(8.0, 4.0), dpi=140, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.savefig(self.folder / f"{self.item}.png")
        return True


def _group(part: str) -> str:
    return part.partition("/")[0]


def hardware() -> dict[str, Any]:
    """Machine, threads and versions; the card where there is one."""
    import torch

    found = {k: v for k, v in environment().items() if k not in ("git", "command")}
    found["processor"] = _processor() or found["processor"]
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str | None:
    """The model's name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _spent(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """By purpose, what was asked at all."""
    return {p: a for p, a in ledger.as_dict()["purposes"].items() if any(a.values())}


def _summed(spent: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    total = Ledger()
    for part in spent:
        for purpose, account in part.items():
            total.charge(purpose, Account(**account))
    return _spent(total)


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words; empty where there are none. More or fewer seeds are none: each part is of one seed."""
    names = sorted(k for k in {*then, *now} - {"seeds"} if then.get(k) != now.get(k))
    return ", ".join(f"{k} {then.get(k)!r} instead of {now.get(k)!r}" for k in names)

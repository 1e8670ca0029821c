"""`hzo-hil report` on runs, comparisons and studies, whole, broken and empty."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hzo_hil.records import RunFolder

Report = Callable[..., tuple[int, str, str]]


def make_run(path: Path, seed: int = 0, method: str = "chain", score: float = 0.8, name: str = "mine") -> Path:
    """A finished run folder, through the real RunFolder."""
    config = {"name": name, "seed": seed, "train": {"metric": "accuracy"}, "method": {"tree": method}}
    with RunFolder.create(path, config) as folder:
        for epoch in (1, 2, 3):
            folder.log(
                {
                    "step": epoch,
                    "epoch": epoch,
                    "loss": 1 / epoch,
                    "test_accuracy": score * epoch / 3,
                    "queries": 100 * epoch,
                    "stage_evaluations": 400 * epoch,
                    "device_seconds": 0.1 * epoch,
                }
            )
        folder.write_device({"identity": {"chip": "bench-2"}, "snapshot": {"chip": {"power": 1.0}}})
        folder.finish(
            {
                "accuracy": {"in_loop": score, "ideal": 0.9}, "metric": "accuracy", "queries": 300,
                "device_seconds": 0.3,
                "rows": {"in_loop": {"score": score, "queries": 300, "device_seconds": 0.3, "wall_seconds": 1.0}},
                "gradient_error": {"onn": {"predicted": 0.2, "predicted_noise": 0.1, "measured_noise": 0.12}},
            }
        )  # fmt: skip
    return path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_reported_in_its_own_folder(tmp_path: Path, report: Report) -> None:
    run = make_run(tmp_path / "run")
    status, out, _ = report(run)
    assert status == 0 and "reached 80.0 % test accuracy with 300 queries" in out
    assert "the ideal twin itself, noise-free 90.0 %" in out and "One run says nothing" in out
    page = (run / "report" / "index.html").read_text(encoding="utf-8")
    for part in ("bench-2", "tree: chain", "(b) trained in the loop", "torch"):
        assert part in page


@pytest.mark.slow
def test_a_run_that_was_really_trained_is_reported(
    tmp_path: Path, report: Report, tiny_run: Callable[[Path], Path]
) -> None:
    status, out, _ = report(tiny_run(tmp_path / "run"), "--json")
    found = json.loads(out)
    assert status == 0 and found["figures"] >= 5 and found["notes"] == []


def test_every_figure_comes_as_pdf_png_and_numbers(lab_page: Path) -> None:
    figures = lab_page.parent / "figures"
    names = {p.stem for p in figures.iterdir()}
    assert len(names) >= 14
    for name in names:
        assert (figures / f"{name}.pdf").read_bytes().startswith(b"%PDF-")
        with Image.open(figures / f"{name}.png") as image:
            assert min(image.size) > 700 and len(image.convert("RGB").getcolors(1 << 24) or []) > 20
        assert rows(figures / f"{name}.csv")


def test_numbers_beside_a_figure_are_those_of_the_runs(lab_page: Path) -> None:
    runs = rows(lab_page.parent / "runs.csv")
    assert len(runs) == 81 and sum(r["status"] == "failed" for r in runs) == 1
    for row in rows(lab_page.parent / "figures" / "outcome_score_phase_noise.csv"):
        same = [
            float(r["score"])
            for r in runs
            if r["method"] == row["method"] and float(r["phase_noise"]) == float(row["phase_noise"])
            and not r["converter"] and r["status"] == "done"
        ]  # fmt: skip
        assert float(row["score"]) == pytest.approx(sum(same) / len(same)) and int(row["seeds"]) == len(same)


def test_the_findings_of_the_laboratory_are_its_laws(lab_study: Path, tmp_path: Path, report: Report) -> None:
    status, out, _ = report(lab_study, "--out", tmp_path / "report", "--json")
    found = json.loads(out)["findings"]
    assert status == 0
    assert "steady has the highest test accuracy" in found[0] and "ahead of fragile" in found[0]
    assert any("phase noise hurts most" in text for text in found)
    kept = next(text for text in found if "kept along phase noise" in text)
    assert "steady up to 0.04" in kept and "fragile up to 0.011" in kept  # 0.05 * 0.96 / 1, 0.05 * 0.92 / 4
    assert any("80 are done, 1 failed" in text for text in found)


def test_runs_that_differ_in_the_seed_alone_are_one_method(tmp_path: Path, report: Report) -> None:
    runs = [make_run(tmp_path / f"{m}{s}", s, m, v + 0.01 * s * len(m)) for m, v in (("chain", 0.5), ("bisect", 0.8))
            for s in range(3)]  # fmt: skip
    status, out, _ = report(*runs, "--out", tmp_path / "both", "--json")
    found = json.loads(out)
    assert status == 0 and "tree bisect has the highest" in found["findings"][0]
    assert "ahead of tree chain by" in found["findings"][0]
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert "6 runs compared" in page and "method.tree" in page


def test_a_report_is_replaced_and_nothing_else_is(tmp_path: Path, report: Report) -> None:
    run = make_run(tmp_path / "run")
    assert report(run)[0] == 0
    (run / "report" / "figures" / "old.pdf").write_text("old")
    assert report(run)[0] == 0
    assert not (run / "report" / "figures" / "old.pdf").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    status, _, err = report(run, "--out", tmp_path / "mine")
    assert status == 2 and "holds something that is no report" in err and "--out" in err
    assert (tmp_path / "mine" / "thesis.tex").exists()
    assert not list(tmp_path.glob("**/.report-*"))


def test_broken_files_are_told_of_in_the_report(own_study: Path, report: Report) -> None:
    done = sorted(p for p in (own_study / "runs").iterdir() if (p / "result.json").exists())
    places = {p: json.loads((p / "result.json").read_text(encoding="utf-8"))["axes"] for p in done}
    clean = [p for p in done if places[p]["phase_noise"] == 0 and places[p]["converter"] is None]
    first = next(p for p in done if list(places[p].values()) == [0, 4, "steady", 0])  # the study's first run
    noisy = [p for p in done if p not in clean and p != first]
    (clean[0] / "run" / "metrics.jsonl").write_bytes(b'{"step": 1}\nnot json\n{"step": 2}\n')
    (clean[1] / "run" / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    (first / "run" / "device.json").write_text("{")
    (noisy[5] / "result.json").write_text('{"status": "do')
    shutil.rmtree(noisy[6])
    status, out, err = report(own_study)
    assert status == 0, err
    page = (own_study / "report" / "index.html").read_text(encoding="utf-8")
    assert (
        "What could not be read" in page and "damaged lines were left out" in page and "result.json is damaged" in page
    )
    assert "device.json is damaged" in page
    assert "are missing" in out


def test_a_run_without_a_summary_is_a_failed_one(tmp_path: Path, report: Report) -> None:
    whole, half = make_run(tmp_path / "a"), make_run(tmp_path / "b", 1)
    (half / "summary.json").write_text("{")
    status, out, err = report(whole, half, "--out", tmp_path / "out")
    assert status == 0 and "summary.json is damaged" in err and "1 failed" in out


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("nothing", ["is no folder", "run folders or study folders"]),
        ("empty", ["neither a run folder", "no run.json", "no study.json"]),
        ("damaged", ["nothing to report on", "run.json is damaged"]),
        ("mixed", ["is a study", "not both at once"]),
        ("other metric", ["cannot be compared", "test accuracy", "test mse"]),
        ("keep", ["--keep", "between 0 and 1, not 95"]),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, lab_study: Path, report: Report, made: str, words: list[str]
) -> None:
    arguments: dict[str, list[Any]] = {
        "nothing": [tmp_path / "not_there"],
        "empty": [tmp_path],
        "damaged": [make_run(tmp_path / "damaged")],
        "mixed": [make_run(tmp_path / "mixed"), lab_study],
        "other metric": [make_run(tmp_path / "one"), make_run(tmp_path / "two")],
        "keep": [make_run(tmp_path / "keep"), "--keep", "95"],
    }
    (tmp_path / "damaged" / "run.json").write_text("{")
    config = tmp_path / "two" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("accuracy", "mse"), encoding="utf-8")
    status, _, err = report(*arguments[made], "--out", tmp_path / "out")
    assert status == 2 and all(word in err for word in words), err
    assert not (tmp_path / "out").exists()


def test_a_study_without_results_is_refused(own_study: Path, report: Report) -> None:
    shutil.rmtree(own_study / "runs")
    status, _, err = report(own_study)
    assert status == 2 and "no run that is done (81 planned)" in err and "--resume" in err
    (own_study / "study.json").write_text("{")
    status, _, err = report(own_study)
    assert status == 2 and "study.json" in err and "damaged" in err


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_what_is_not_installed_is_named(tmp_path: Path, run_python: Any, missing: str) -> None:
    make_run(tmp_path / "run")
    code = f"from hzo_hil.cli import run; raise SystemExit(run(['report', {str(tmp_path / 'run')!r}]))"
    done = run_python(code, without=[missing, "pandas"])
    assert done.returncode == 2 and f"reports need {missing}" in done.stderr and "hzo-hil[report]" in done.stderr


def test_a_run_needs_no_pandas(tmp_path: Path, run_python: Any) -> None:
    make_run(tmp_path / "run")
    code = f"from hzo_hil.cli import run; raise SystemExit(run(['report', {str(tmp_path / 'run')!r}]))"
    done = run_python(code, without=["pandas", "pyarrow"])
    assert done.returncode == 0, done.stderr


def test_two_studies_stand_on_one_page(lab_study: Path, own_study: Path, tmp_path: Path, report: Report) -> None:
    status, out, _ = report(lab_study, own_study, "--out", tmp_path / "two", "--json")
    assert status == 0
    assert (tmp_path / "two" / "1-figures").is_dir() and (tmp_path / "two" / "2-runs.csv").is_file()
    assert json.loads(out)["figures"] % 2 == 0

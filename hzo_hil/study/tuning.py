"""The same number of trials for every method: settings of a study's methods, found by Optuna at a part of the budget.

A study file with a section `tune` says what may be tuned for which method. Trials run at one seed of their own, those
of a method one after another, with the budget's `fraction`; a trial that fails counts as one. What comes out is the
study with the best settings in its bundles. Knows neither how a method works nor how trials are chosen (tree-structured
Parzen estimators).
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from pydantic import Field

from hzo_hil.devices.errors import BadInput, ConfigError, HzoError
from hzo_hil.sections import Section, parse_section
from hzo_hil.streams import stream_key
from hzo_hil.study.planning import plain_config
from hzo_hil.study.processes import thread_variables
from hzo_hil.study.studyfile import RangedSection, StudySection, fields_of, role_of
from hzo_hil.study.target import Target, check_field, target_of
from hzo_hil.yamlfile import with_values

Say = Callable[[str], None]


class SpaceSection(RangedSection):
    """Where a setting is looked for: among `values`, or between `low` and `high`."""

    values: list[Any] | None = Field(default=None, min_length=1)


class TuneSection(Section):
    """How the methods of a study are tuned."""

    trials: int = Field(default=10, ge=1, description="of each method")
    fraction: float = Field(default=0.2, gt=0, le=1, description="of each limit of the budget that a trial may spend")
    seed: int = Field(default=1000, ge=0, description="of the trials' runs, and of the choice of settings")
    metric: str = Field(default="score", description="the number that settings are judged by")
    spaces: dict[str, dict[str, SpaceSection]] = Field(description="by method, dotted field and space")


def tuned_study(
    section: StudySection, trials: int | None = None, say: Say = print, workers: int = 1
) -> tuple[StudySection, list[Any]]:
    """The study with the best settings of each method, and a row for each method of how they were found.

    `workers`: methods tuned at the same time, each in a process of one thread; what is found does not depend on it.
    Raises ConfigError for a section `tune` that does not fit the study, before anything is run.
    """
    tune = parse_section(TuneSection, section.tune or {}, "tune")
    if trials is not None:
        tune = tune.model_copy(update={"trials": trials})
    target, name = target_of(section.target), _method_axis(section)
    base = _base(section, target, tune)
    better = _better(section, target, tune.metric)
    bundles: dict[str, dict[str, Any]] = dict(section.axes[name].values)  # type: ignore[arg-type]
    if unknown := sorted(set(tune.spaces) - set(bundles)):
        raise ConfigError(f"tune.spaces names {', '.join(unknown)}, and axis {name!r} has {', '.join(bundles)}")
    for method in tune.spaces:  # every mistake before the first trial
        _start(target, base, method, bundles[method], tune.spaces[method])
    _optuna()
    context = multiprocessing.get_context("spawn")
    rows = []
    with ProcessPoolExecutor(min(workers, len(tune.spaces)), mp_context=context) as pool, thread_variables(1):
        waiting = [
            pool.submit(_tuned, section.target, with_values(base, bundles[method]), method, tune, better)
            for method in tune.spaces
        ]
        try:
            for found in waiting:
                row = found.result()
                rows.append(row)
                say(_told(row))
                if row["best"] is not None:
                    bundles[row["method"]] = {**bundles[row["method"]], **row["settings"]}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    axis = section.axes[name].model_copy(update={"values": bundles})
    return section.model_copy(update={"axes": {**section.axes, name: axis}, "tune": None}), rows


def _method_axis(section: StudySection) -> str:
    found = [n for n, axis in section.axes.items() if role_of(n, axis) == "method" and isinstance(axis.values, dict)]
    if len(found) != 1:
        raise ConfigError(f"tuning needs one axis of methods whose values are bundles; the study has {len(found)}")
    return found[0]


def _base(section: StudySection, target: Target, tune: TuneSection) -> dict[str, Any]:
    """The configuration that trials share: a seed of their own, a part of the budget."""
    seeds = [f for n, axis in section.axes.items() if role_of(n, axis) == "seed" for f in fields_of(n, axis)]
    taken = [v for n, axis in section.axes.items() if role_of(n, axis) == "seed" for v in (axis.values or [])]
    if tune.seed in taken:
        raise ConfigError(f"tune.seed {tune.seed} is a seed of the study: methods would be tuned to what judges them")
    config = plain_config(target.check(with_values(section.config or {}, section.set, "set"), False))
    budget = config.get("budget") or {}
    limited = {f"budget.{n}": tune.fraction * limit for n, limit in budget.items() if limit is not None}
    if not limited:
        raise ConfigError(
            "tuning takes a part of the budget, and the study has none: give set: {budget.max_queries: N}"
        )
    whole = {n: int(v) if isinstance(budget[n.partition(".")[2]], int) else v for n, v in limited.items()}
    return with_values(config, {**dict.fromkeys(seeds, tune.seed), **whole})


def _better(section: StudySection, target: Target, metric: str) -> str:
    known = {**target.metrics, **{n: m.model_dump(exclude_none=True) for n, m in section.metrics.items()}}
    better = known.get(metric, {}).get("better")
    if better not in ("higher", "lower"):
        raise ConfigError(f"tune.metric {metric!r}: which is better is not known; choose one of {', '.join(known)}")
    return str(better)


def _start(
    target: Target, base: Mapping[str, Any], method: str, bundle: Mapping[str, Any], spaces: Mapping[str, SpaceSection]
) -> None:
    """Raise ConfigError where a field of a space does not exist, or its ends are no configuration."""
    config = with_values(base, bundle)
    try:
        known = target.known(target.check(config, False))
        for field, space in spaces.items():
            check_field(field, known)
            for value in space.values or (space.low, space.high):
                target.check(with_values(config, {field: value}), False)
    except ConfigError as error:
        raise ConfigError(f"tune.spaces.{method}: {error}") from None


def _told(row: Mapping[str, Any]) -> str:
    best = "every trial failed" if row["best"] is None else f"{row['best']:.4g} with {row['settings']}"
    return f"{row['method']:<20}{row['trials'] - row['failed']:>4} of {row['trials']} trials  {best}"


def _tuned(path: str, config: Mapping[str, Any], method: str, tune: TuneSection, better: str) -> dict[str, Any]:
    target, spaces, optuna = target_of(path), tune.spaces[method], _optuna()
    sampler = optuna.samplers.TPESampler(seed=stream_key(tune.seed, "tuning", method) % 2**32)
    study = optuna.create_study(direction="maximize" if better == "higher" else "minimize", sampler=sampler)
    errors: list[str] = []
    for _ in range(tune.trials):
        trial = study.ask()
        settings = {field: _suggested(trial, field, space) for field, space in spaces.items()}
        try:
            found = _number(target, with_values(config, settings), tune.metric)
        except HzoError as error:  # diverged, most of the time
            errors.append(str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, found)
    done = study.get_trials(states=(optuna.trial.TrialState.COMPLETE,))
    best = study.best_trial if done else None
    return {
        "method": method,
        "trials": tune.trials,
        "failed": len(errors),
        "errors": sorted(set(errors)),
        "best": None if best is None else best.value,
        "settings": {} if best is None else dict(best.params),
    }


def _suggested(trial: Any, field: str, space: SpaceSection) -> Any:
    if space.values is not None:
        return trial.suggest_categorical(field, space.values)
    return trial.suggest_float(field, space.low, space.high, log=space.scale == "log")


def _number(target: Target, config: dict[str, Any], metric: str) -> float:
    """What a trial reached. It leaves no run folder behind."""
    with tempfile.TemporaryDirectory() as place:
        here = {"where": {**(config.get("where") or {}), "run_dir": str(Path(place) / "run")}}
        numbers = target.numbers(target.check({**config, **here}, False))
    found = numbers.get(metric)
    if found is None:
        raise BadInput(f"the trial gave no {metric!r}, but {', '.join(numbers)}")
    return float(found)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise BadInput("tuning needs Optuna: pip install 'hzo-hil[baselines]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna

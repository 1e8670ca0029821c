"""Measuring the twins of a module node by node, once, before it is trained: where biases are too large to be followed.

Each stage whose leaf rule is a learned twin is asked with unit inputs at the twin's own questions (for a mesh two
settings a shifter, see `simulators.nodewise`) and at random settings; the first give a start in closed form, all that
is known is then fitted to the second. Explicit: `training` does it before the first step, your own loop where you call
it. Purpose `calibration` in the ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from hzo_hil.devices.errors import BadInput
from hzo_hil.ledger import Account
from hzo_hil.network import Stage
from hzo_hil.parameters import settled
from hzo_hil.scheduler import calls, rows_per_call
from hzo_hil.single import ask_alone
from hzo_hil.streams import generator, stream_key
from hzo_hil.updates.fitting import fit
from hzo_hil.updates.learned import LearnedTwin

if TYPE_CHECKING:
    from hzo_hil.module import Opaque

Array = NDArray[Any]
ITERATIONS = 70


def learn_twins(module: Opaque) -> dict[int, float]:
    """Measure every stage that still waits for it; by stage (0-based), what its twin leaves unexplained, relative.

    Raises BadInput where a stage cannot be measured so.
    """
    found = {}
    for k, rule in enumerate(module.rules):
        if isinstance(rule, LearnedTwin) and rule.nodewise and not rule.measured_nodewise:
            with module.dispatch.abandoned_on_error():
                found[k] = _learn(module, k, rule)
            rule.measured_nodewise = True
            rule.forget()
    return found


def cost_of_learning(module: Opaque) -> Account:
    """What `learn_twins` will ask, as the ledger counts it; bytes apart."""
    spent = Account()
    for k, rule in enumerate(module.rules):
        if not (isinstance(rule, LearnedTwin) and rule.nodewise and not rule.measured_nodewise):
            continue
        stage, capabilities = module.network.stages[k], module.network.stages[k].device.capabilities
        settings = len(_questions(module, k, rule)) + rule.settings
        repeats = module.resolved.leaf_repeats
        each = calls(stage.in_width, rows_per_call(capabilities, stage.in_width, repeats, 1))
        queries = settings * stage.in_width * repeats
        seconds = settings * (capabilities.settling_s + each * capabilities.latency_s) + queries * capabilities.query_s
        spent.add(Account(queries, queries, settings * each, settings, 0, seconds))
    return spent


def _questions(module: Opaque, k: int, rule: LearnedTwin) -> Array:
    """Settings `[settings, values]` for the start, as they are realised."""
    stage = module.network.stages[k]
    rng = generator(module.seed, "nodewise", module.name, k)
    base = rng.uniform(0, 1, sum(s.size for s in stage.block_specs.values())) * _period(stage)
    try:
        wanted = rule.twin.questions(_realised(stage, rule, base))
    except ValueError as error:
        raise BadInput(f"stage {stage.label}: {error}. Use nodewise: false, or leaf: shift") from error
    return np.stack([_realised(stage, rule, w) for w in wanted])


def _learn(module: Opaque, k: int, rule: LearnedTwin) -> float:
    stage = module.network.stages[k]
    _, high = module.network.limits(k)
    strength = min(1.0, float(high))
    inputs = np.eye(stage.in_width) * strength

    def asked(settings: Array, first: int) -> Array:
        answers = []
        for number, commanded in enumerate(settings, start=first):
            key = stream_key(module.seed, "nodewise queries", module.name, k, number)
            values = rule.twin.named(commanded)
            answers.append(
                ask_alone(
                    module, k, values, inputs, tile=None, key=key, tenant=("nodewise", number), purpose="calibration"
                )
            )
        return np.stack(answers)

    questions = _questions(module, k, rule)
    rule.twin.start(questions, asked(questions, 0) / strength)
    rng = generator(module.seed, "nodewise settings", module.name, k)
    drawn = rng.uniform(0, 1, (rule.settings, questions.shape[1])) * _period(stage)
    settings = np.stack([_realised(stage, rule, c) for c in drawn])
    answers = torch.as_tensor(asked(settings, len(questions)))
    commanded, lights = torch.as_tensor(settings.T.copy()), torch.as_tensor(inputs)
    left = fit(rule.twin, commanded, lights, answers, stage.device.capabilities.read_noise or 0.0, ITERATIONS)
    return left / float(answers.square().mean().sqrt())


def _period(stage: Stage) -> float:
    return max(s.period for s in stage.block_specs.values())


def _realised(stage: Stage, rule: LearnedTwin, commanded: Array) -> Array:
    """The codes that a setting becomes."""
    dtype, where = stage.device.capabilities.dtype, f"stage {stage.label}"
    values = rule.twin.named(commanded)
    codes = {n: settled(stage.block_specs[n], v, dtype, where) for n, v in values.items()}
    found: Array = rule.twin.commanded(codes).numpy()
    return found

"""What taps and the tree cost: the same chip with and without inner boundaries that can be read within one query.

Without taps a forward pass asks stage by stage. Counts come from the forecast, which equals the ledger of a real step
to the last query; this script checks that it does.
"""

import torch

import hzo_hil
from hzo_hil.forecast import forecast
from hzo_hil.simulators.twins import Twin

BATCH = 8
physics = {"layers": 4, "ports": 8, "activation": "tanh"}

print(f"{'taps':<6}{'tree':<8}{'forward queries':>16}{'probe queries':>15}{'probe evaluations':>19}{'calls':>7}")
for taps in (True, False):
    for tree in ("chain", "bisect", "direct"):
        chip = hzo_hil.open_device({"kind": "onn", "preset": "calibrated_chip", "options": physics, "taps": taps})
        stages = [hzo_hil.Stage(chip, k, twin=Twin(ideal)) for k, ideal in enumerate(chip.models)]
        onn = hzo_hil.Opaque(stages, tree=tree, probes="hadamard")
        plan = forecast(onn.network, onn.resolved, onn.rules, BATCH).purposes
        forward, probes = plan["forward"], plan["probes"]
        calls = forward.calls + probes.calls
        print(
            f"{taps!s:<6}{tree:<8}{forward.queries:>16,}{probes.queries:>15,}{probes.stage_evaluations:>19,}{calls:>7}"
        )

        (onn(torch.rand(BATCH, 8)) ** 2).sum().backward()
        spent = onn.ledger.accounts
        assert (spent["forward"].queries, spent["probes"].queries) == (forward.queries, probes.queries)
        assert spent["probes"].stage_evaluations == probes.stage_evaluations

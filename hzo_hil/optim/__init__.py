"""Loss-only optimisers: `torch.optim.Optimizer` classes that need a closure and no gradient.

    optimizer = SPSA(model.parameters(), lr=0.05)
    loss = optimizer.step(lambda: criterion(model(x), y))

One method a file, on a small shared base; they know nothing of devices, plans or trainers. `docs/optimisers.md` has the
equations, settings and sources.
"""

from hzo_hil.optim.base import LossOnly
from hzo_hil.optim.cge import CGE
from hzo_hil.optim.deepzero import DeepZero
from hzo_hil.optim.descent import Descent
from hzo_hil.optim.grasp import layer_fractions
from hzo_hil.optim.reuse import FeatureReuse
from hzo_hil.optim.spsa import RGE, SPSA
from hzo_hil.optim.walk import statistics_kept
from hzo_hil.optim.zosah import ZOSAH

__all__ = [
    "CGE",
    "RGE",
    "SPSA",
    "ZOSAH",
    "DeepZero",
    "Descent",
    "FeatureReuse",
    "LossOnly",
    "layer_fractions",
    "statistics_kept",
]

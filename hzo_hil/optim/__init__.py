"""Loss-only optimisers: `torch.optim.Optimizer` classes that need a closure and no gradient.

    optimizer = SPSA(model.parameters(), lr=0.05)
    loss = optimizer.step(lambda: criterion(model(x), y))

One method a file, on a small shared base; they know nothing of devices, plans or trainers. `docs/optimisers.md` has the
equations, settings and sources.
"""

from hzo_hil.optim.base import LossOnly
from hzo_hil.optim.cge import CGE
from hzo_hil.optim.descent import Descent
from hzo_hil.optim.evolution import Evolution
from hzo_hil.optim.flops import FLOPS
from hzo_hil.optim.hizoo import HiZOO
from hzo_hil.optim.lpp import LPP
from hzo_hil.optim.mezo import MeZO
from hzo_hil.optim.mgd import MGD
from hzo_hil.optim.pattern import Nevergrad, PatternSearch
from hzo_hil.optim.quzo import QuZO
from hzo_hil.optim.sparse_descent import SparseCoordinateDescent
from hzo_hil.optim.spsa import RGE, SPSA
from hzo_hil.optim.subzero import SubZero

__all__ = [
    "CGE",
    "FLOPS",
    "LPP",
    "MGD",
    "RGE",
    "SPSA",
    "Descent",
    "Evolution",
    "HiZOO",
    "LossOnly",
    "MeZO",
    "Nevergrad",
    "PatternSearch",
    "QuZO",
    "SparseCoordinateDescent",
    "SubZero",
]

"""Searches of nevergrad, pattern search among them. It needs the extra `baselines`.

What is asked is w + lr x, x the method's own vector. Methods by their names in nevergrad's registry: `OnePlusOne`,
`CMA`, `DE`, `TBPSA` (for noise), `NelderMead`, `DSbase` (direct search along coordinates). Its other direct searches
(`DSproba`, `DS3p`) draw from NumPy's global state, so runs with them cannot be resumed.

Source: Rapin and Teytaud, "Nevergrad, a gradient-free optimization platform" (2018).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.searched import Ask, Searched
from hzo_hil.optim.settings import COUNT

FOREVER = 10**9
"""A budget for direct searches, which insist on one."""


class Nevergrad(Searched):
    """`asks`: losses in a step; afterwards the parameters are what the method recommends. `budget`: losses in all,
    which some methods adapt to; None: unknown.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        method: str = "OnePlusOne",
        asks: int = 1,
        budget: int | None = None,
        seed: int = 0,
    ) -> None:
        where = type(self).__name__
        COUNT.check(where, "asks", asks)
        if budget is not None:
            COUNT.check(where, "budget", budget)
        if method not in _library().optimizers.registry:
            raise BadInput(f"{where}: unknown method {method!r}: nevergrad.optimizers.registry has the names")
        self.method = method
        self.asks = asks
        self.budget = FOREVER if budget is None and method.startswith("DS") else budget
        super().__init__(params, lr, seed)

    @property
    def queries_per_step(self) -> int:
        return self.asks

    def _begin(self, at: Flat, start: Tensor, spread: float | Tensor) -> Any:
        library = _library()
        space = library.p.Array(init=start.double().cpu().numpy())
        space.set_mutation(sigma=spread.double().cpu().numpy() if isinstance(spread, Tensor) else spread)
        space.random_state = np.random.RandomState(self.state["seed"] % 2**32)
        return library.optimizers.registry[self.method](space, budget=self.budget, num_workers=1)

    def _generation(self, search: Any, ask: Ask) -> Tensor:
        for _ in range(self.asks):
            candidate = search.ask()
            search.tell(candidate, ask(torch.from_numpy(candidate.value)))
        return torch.from_numpy(search.provide_recommendation().value)


class PatternSearch(Nevergrad):
    """Direct search along the coordinates: try +-step in each, double or halve the step.

    Once the step is 1e-6 of `lr` it has converged; nevergrad warns and asks at random from there on, in vain.
    """

    def __init__(self, params: Any, lr: float = 0.1, asks: int = 1, budget: int = FOREVER, seed: int = 0) -> None:
        super().__init__(params, lr, "DSbase", asks, budget, seed)


def _library() -> Any:
    try:
        import nevergrad
    except ImportError:
        raise BadInput("nevergrad is not installed: pip install 'hzo-hil[baselines]'") from None
    return nevergrad

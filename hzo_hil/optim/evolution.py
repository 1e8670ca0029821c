"""Evolution strategies of evotorch. It needs the extra `baselines`.

A step is one generation. Methods by their names in `evotorch.algorithms`: `SNES` (separable natural evolution
strategy), `XNES`, `CEM`, `PGPE`, `CMAES`. The parameters hold the mean from which the generation was drawn: its losses
move the mean at the next step.

Source: Toklu et al., "EvoTorch: scalable evolutionary computation in Python" (2023); SNES: Schaul et al., "High
dimensions and heavy tails for natural evolution strategies" (2011).
"""

from __future__ import annotations

import inspect
import logging
import math
from typing import Any

import torch
from torch import Tensor

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.searched import Ask, Searched
from hzo_hil.optim.settings import COUNT, choose

METHODS = ("SNES", "XNES", "CEM", "PGPE", "CMAES")


class Evolution(Searched):
    """`population`: losses in a step; None: 4 + 3 log d. `options`: passed on to the method, by evotorch's names (`CEM`
    needs `parenthood_ratio`; `PGPE` `center_learning_rate` and `stdev_learning_rate`).
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.1,
        method: str = "SNES",
        population: int | None = None,
        options: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        self.method = choose("Evolution", "method", method, METHODS)
        if population is not None:
            COUNT.check("Evolution", "population", population)
        self.population = population
        self.options = options or {}
        self._check_options(getattr(_library().algorithms, method))
        super().__init__(params, lr, seed)

    @property
    def queries_per_step(self) -> int:
        return self.population or 4 + math.floor(3 * math.log(Flat(self.param_groups).size))

    def _check_options(self, made: Any) -> None:
        """Names that the method does not have, or must be given: refused before anything is asked."""
        ours = {"stdev_init": 0.0, "center_init": None, "popsize": 0}
        try:
            inspect.signature(made).bind(None, **(ours | self.options))
        except TypeError as error:
            raise BadInput(f"Evolution: evotorch refuses the options of {self.method}: {error}") from error

    def _begin(self, at: Flat, start: Tensor, spread: float | Tensor) -> Any:
        library = _library()
        problem = library.Problem(
            "min",
            self._asked,
            solution_length=at.size,
            initial_bounds=(-1.0, 1.0),  # demanded, and not used: the search begins at `start`
            dtype=at.dtype,
            eval_dtype=torch.float64,
            vectorized=True,  # a whole generation in one call: less of evotorch's own time for each loss
            device=at.device,
            seed=self.state["seed"] % 2**63,
        )
        method = getattr(library.algorithms, self.method)
        settings = {"stdev_init": spread, "center_init": start, "popsize": self.queries_per_step} | self.options
        try:
            return method(problem, **settings)
        except (TypeError, ValueError) as error:
            raise BadInput(f"Evolution: evotorch refuses the options of {self.method}: {error}") from error

    def _asked(self, population: Tensor) -> Tensor:
        """Losses [population] of solutions [population, size]."""
        solutions = population.as_subclass(Tensor)
        losses = [self._ask(solution) for solution in solutions]
        return torch.tensor(losses, dtype=torch.float64, device=solutions.device)

    def _generation(self, search: Any, ask: Ask) -> Tensor:
        self._ask = ask
        search.step()
        return search.status["center"].as_subclass(Tensor).clone()


def _library() -> Any:
    try:
        import evotorch
        import evotorch.algorithms
    except ImportError:
        raise BadInput("evotorch is not installed: pip install 'hzo-hil[baselines]'") from None
    logging.getLogger("evotorch").setLevel(logging.WARNING)  # it reports each problem it is given
    return evotorch

"""What all loss-only methods share: a step that asks a closure for losses, moves the parameters, and undoes itself on
any error.

A step runs without gradients and calls the closure `queries_per_step` times; each call returns the loss of the
parameters as they are then, on the same minibatch. Randomness is keyed by seed and step: no draw depends on another
step's, and a state dict holds no generator. State is kept under names, not per parameter: `state["step"]`,
`state["queries"]` (loss evaluations so far, lost steps included), `state["seed"]` and each method's own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from hzo_hil.devices.errors import BadInput
from hzo_hil.optim.flat import Flat
from hzo_hil.optim.oracle import Closure, Oracle
from hzo_hil.optim.settings import Bound
from hzo_hil.streams import stream_key


class LossOnly(Optimizer):
    """`bounds`: of the settings that groups hold. Subclasses say how a step moves in `_moved`."""

    bounds: ClassVar[dict[str, Bound]] = {}
    tier: ClassVar[str] = "loss"
    """What the method is told (the tiers of `docs/methods.md`): the loss alone, or a twin as well."""
    state: dict[Any, Any]  # type: ignore[assignment]

    def __init__(self, params: Any, defaults: dict[str, Any], seed: int = 0) -> None:
        super().__init__(params, defaults)
        self.state.update(method=type(self).__name__, step=0, queries=0, seed=seed)
        Flat(self.param_groups)  # says now what is wrong with the parameters

    @property
    def queries_per_step(self) -> int:
        """Loss evaluations in one step; where `at_most`, the most it may take."""
        raise NotImplementedError

    @property
    def at_most(self) -> bool:
        """Whether a step may ask fewer than `queries_per_step`."""
        return False

    @property
    def queries_before(self) -> int:
        """Loss evaluations that `prepare` still has to ask before the first step."""
        return 0

    def prepare(self, closure: Closure) -> None:
        """What a method asks once, before its first step, on a minibatch of its own; parameters stay as they are."""

    def _moved(self, at: Flat, w: Tensor, oracle: Oracle) -> tuple[Tensor, float]:
        """From the parameters `w` [size]: where to go, and the step's loss.

        State and `w` itself may change only after the last evaluation, so that a lost step has touched nothing.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> float:  # type: ignore[override]
        """One step. Returns the loss at the parameters before it or, where none was asked there, the mean loss around.

        Raises `BadInput` for a loss that is no finite number, and whatever the closure raises; the parameters are then
        bit for bit as before, and the next step draws what this one would have drawn.
        """
        at = self._flat()
        found, loss = self._asking(at, closure, lambda w, oracle: self._moved(at, w, oracle))
        at.write(found)
        self.state["step"] += 1
        return loss

    def _asking(self, at: Flat, closure: Closure | None, use: Any) -> Any:
        """What `use(w, oracle)` returns. Evaluations are counted; on any error the parameters are put back."""
        if closure is None:
            raise BadInput(
                f"{type(self).__name__}.step needs a closure: a function without arguments that returns the loss of the"
                " present parameters"
            )
        oracle = Oracle(at, closure, self.state["step"], self.queries_per_step)
        w = at.read()
        try:
            return use(w, oracle)
        except BaseException:
            at.write(w)
            raise
        finally:
            self.state["queries"] += oracle.count

    def _flat(self) -> Flat:
        at = Flat(self.param_groups)
        if self.state.setdefault("size", at.size) != at.size:
            raise BadInput(
                f"{type(self).__name__} began with {self.state['size']:,} parameters and now has {at.size:,}: its state"
                " no longer fits. Construct a new optimiser after adding, freezing or releasing parameters"
            )
        return at

    def _generator(self, at: Flat, purpose: str, turn: int | None = None) -> torch.Generator:
        """Of a purpose's stream on the parameters' device (devices draw different numbers). `turn`: this step."""
        key = stream_key(self.state["seed"], purpose, self.state["step"] if turn is None else turn)
        return torch.Generator(at.device).manual_seed(key % 2**63)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        for name, bound in self.bounds.items():
            bound.check(type(self).__name__, name, self.param_groups[-1][name])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as the optimiser that was saved: its seed, step, counts and vectors, moved to this one's device."""
        saved = state_dict.get("state", {}).get("method", "another optimiser")
        if saved != self.state["method"]:
            raise BadInput(f"this state was saved by {saved}: {type(self).__name__} cannot go on from it")
        super().load_state_dict(state_dict)
        device = Flat(self.param_groups).device
        for name, value in self.state.items():
            if isinstance(value, Tensor):  # a copy: torch hands over what it was given where no parameter is the key
                self.state[name] = value.detach().to(device, copy=True)

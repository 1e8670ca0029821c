"""Feature reuse: a perturbed layer changes nothing before it, so a forward pass restarts from what entered that layer.

Knows the order in which a model runs, read off `nn.Sequential` and `Residual` at any depth; every other module is run
as a whole. Knows no loss, no optimiser.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from hzo_hil.devices.errors import BadInput
from hzo_hil.layers import Residual

Place = tuple[str, ...]  # names of children from the model down, e.g. ("3", "body", "0")


class Feature(NamedTuple):
    tensor: Tensor
    version: int  # torch counts changes in place: a feature that was written over is no longer what entered

    @staticmethod
    def of(tensor: Tensor) -> Feature:
        return Feature(tensor, tensor._version)

    def unchanged(self, place: Place) -> Tensor:
        if self.tensor._version != self.version:
            raise BadInput(
                f"the feature kept at {'.'.join(place) or 'the input'} was changed in place after the unperturbed pass,"
                " so it cannot be reused. Likely a module with inplace=True at the head of a block, or inputs refilled"
                " between evaluations: make it out of place, or train without feature reuse"
            )
        return self.tensor


class FeatureReuse(nn.Module):
    """The same model, able to restart from the layer whose parameter is perturbed (DeepZero, fig. 2 and 5).

    Within `keep()` a forward pass stores the input of each module that has parameters: the memory of a backward pass.
    Within `perturbed(parameter)` it runs only that module and what follows, bit for bit as the whole model would.
    A parameter of several modules restarts from the smallest module around all of them; one the model does not have,
    from its inputs. Outside both, it is the model. What differs from call to call (dropout) makes differences of
    losses meaningless, with or without reuse.

    >>> import torch
    >>> model = FeatureReuse(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    >>> x = torch.ones(5, 3)
    >>> with model.keep():
    ...     whole = model(x)
    >>> with model.perturbed(model.model[2].weight):
    ...     torch.equal(model(x), whole)  # ran the last layer only
    True
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._place = _places(model)
        self._restarts = set(self._place.values())
        self._inputs: dict[Place, Feature] = {}
        self._branches: dict[Place, Feature] = {}  # what a residual sum adds to the branch that is run again
        self._keeping = False
        self._start: Place | None = None

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Forget all features; store those of the forward pass run within."""
        self.forget()
        self._keeping = True
        try:
            yield
        finally:
            self._keeping = False

    @contextmanager
    def perturbed(self, parameter: Tensor) -> Iterator[None]:
        """Forward passes within restart from the module of `parameter`, the only one that changed since `keep()`."""
        if () not in self._inputs:
            raise BadInput("no features are kept: run the unperturbed model within keep() first")
        self._start = self._place.get(id(parameter), ())
        try:
            yield
        finally:
            self._start = None

    def forget(self) -> None:
        """Free the stored features."""
        self._inputs.clear()
        self._branches.clear()

    def forward(self, inputs: Tensor) -> Tensor:
        if self._keeping:
            if () in self._inputs:
                raise BadInput("features of one batch are kept a step, and the closure ran the model on a second one")
            self._inputs[()] = Feature.of(inputs)
            return self._run(self.model, (), inputs)
        if self._start is None:
            outputs: Tensor = self.model(inputs)
            return outputs
        if self._inputs[()].unchanged(()) is not inputs:
            raise BadInput(
                "features were kept of other inputs than the closure gives now: it must run the model on the same"
                " tensor in every evaluation of a step (one batch, moved and cast outside the closure)"
            )
        return self._resume(self.model, (), self._start)

    def _run(self, module: nn.Module, place: Place, inputs: Tensor) -> Tensor:
        """The whole module, storing on the way."""
        if place in self._restarts:
            self._inputs[place] = Feature.of(inputs)
        if _in_order(module):
            for name, child in _children(module):
                inputs = self._run(child, (*place, name), inputs)
            return inputs
        if _is_sum(module):
            skip = self._run(module.get_submodule("skip"), (*place, "skip"), inputs)
            body = self._run(module.get_submodule("body"), (*place, "body"), inputs)
            self._branches |= {(*place, "skip"): Feature.of(body), (*place, "body"): Feature.of(skip)}
            return skip + body
        outputs: Tensor = module(inputs)
        return outputs

    def _resume(self, module: nn.Module, place: Place, below: Place) -> Tensor:
        """The module's output, run again from its descendant `below` on."""
        if not below:
            outputs: Tensor = module(self._inputs[place].unchanged(place))
            return outputs
        inner = (*place, below[0])
        found = self._resume(module.get_submodule(below[0]), inner, below[1:])
        if _is_sum(module):
            other = self._branches[inner].unchanged(inner)
            return found + other if below[0] == "skip" else other + found
        names = [name for name, _ in _children(module)]
        for _, child in _children(module)[names.index(below[0]) + 1 :]:
            found = child(found)
        return found


def _places(model: nn.Module) -> dict[int, Place]:
    """From which module a pass restarts when a parameter moves, by the parameter's id."""
    found: dict[int, Place] = {}

    def visit(module: nn.Module, place: Place) -> None:
        if _in_order(module) or _is_sum(module):
            for name, child in _children(module):
                visit(child, (*place, name))
            return
        for parameter in module.parameters():
            before = found.get(id(parameter))
            found[id(parameter)] = place if before is None else _common(before, place)

    visit(model, ())
    return found


def _in_order(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward  # a subclass with a forward of its own is run as a whole


def _is_sum(module: nn.Module) -> bool:
    return type(module).forward is Residual.forward


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Children by name; unlike `named_children`, one that stands twice is run twice."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _common(one: Place, other: Place) -> Place:
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    return one[:shared]

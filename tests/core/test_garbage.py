"""What a backward pass held is let go at its end, not when the collector comes: on images that is gigabytes."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from hzo_hil import Opaque, Plan
from hzo_hil.backward import Backward
from tests.core.nets import affine_opaque, inputs, loss_of


def opaque(**options: Any) -> Opaque:
    return affine_opaque([4, 5, 5, 3], options.pop("activation", "tanh"), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"plan": Plan("chain")},
        {"plan": Plan("bisect", "hadamard")},
        {"activation": "identity"},  # Jacobians shared by the batch
        {"memory": "recompute"},
        {"leaf": "probing"},
        {"credit": "feedback"},
        {"credit": "align"},
        {"credit": "difference"},
        {"credit": "activity", "probes": "rademacher:1"},
        {"credit": "twin"},
    ],
    ids=str,
)
def test_a_pass_leaves_no_cycle(options, monkeypatch):
    made: list[weakref.ref[Backward]] = []
    begin = Backward.__init__

    def noted(self: Backward, *arguments: Any) -> None:
        made.append(weakref.ref(self))
        begin(self, *arguments)

    monkeypatch.setattr(Backward, "__init__", noted)
    module = opaque(**dict(options))
    loss_of(module(inputs(6, 4))).backward()  # what torch loads on its first use keeps the frames it came from
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):
            loss_of(module(inputs(6, 4))).backward()
        assert [ref() for ref in made] == [None, None, None]
    finally:
        gc.enable()

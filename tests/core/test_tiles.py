"""A large matrix on a small core is the same matrix; so is a small one on a large core."""

from __future__ import annotations

import math

import pytest
import torch

from hzo_hil import Opaque, Stage, Tiles
from hzo_hil.devices.errors import BadInput
from hzo_hil.devices.fake import FakeDevice
from tests.core.nets import Affine, differing, gradients, inputs, spent_and_predicted, worst

ROWS = 3


def tiled(out: int, width: int, core: tuple[int, int], leaf: str = "delta", *, bias: bool = False, **options) -> Opaque:
    """`out` x `width` on a core of (out, in) values; a tanh on a device of its own behind it."""
    device = FakeDevice.mlp(
        [core[1], core[0]], "identity", dtype="float64", bias=bias, virtual_time=True, settling_s=0.5
    )
    stage = Stage(device, 0, leaf=leaf, twin=Affine("identity"), tiles=Tiles(width, out))
    return Opaque([stage], **options).double()


def whole(module: Opaque) -> torch.Tensor:
    """The matrix that the blocks of the first stage make up."""
    stage = module.network.stages[0]
    blocks = module.stages[0].weight
    rows, columns, *_ = blocks.shape
    lines = [torch.cat([blocks[r, c] for c in range(columns)], dim=1) for r in range(rows)]
    return torch.cat(lines, dim=0)[: stage.out_width, : stage.in_width]


@pytest.mark.parametrize("leaf", ["delta", "autograd"])
@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize(
    ("out", "width", "core"), [(50, 70, (16, 16)), (50, 70, (9, 20)), (5, 7, (5, 7)), (3, 2, (4, 6)), (9, 4, (4, 4))]
)
def test_blocks_equal_the_whole_matrix(out, width, core, probes, leaf):
    module = tiled(out, width, core, leaf, probes=probes)
    x = inputs(ROWS, width)
    parameters = list(module.parameters())
    torch.testing.assert_close(module(x), x @ whole(module).T, rtol=1e-9, atol=1e-12)
    found = gradients(module, parameters, x)
    assert worst(found, gradients(lambda x: x @ whole(module).T, parameters, x)) < 1e-7


def test_values_outside_the_matrix_stay_without_gradient():
    module = tiled(3, 2, (4, 6))
    module(inputs(ROWS, 2)).sum().backward()
    (blocks,) = module.parameters()
    assert blocks.grad[0, 0, :3, :2].abs().min() > 0
    assert not blocks.grad[0, 0, 3:].any() and not blocks.grad[0, 0, :, 2:].any()


@pytest.mark.parametrize(("out", "width", "core"), [(50, 70, (16, 16)), (50, 70, (9, 20))])
def test_every_block_is_written_once_a_pass_and_counted(out, width, core):
    module = tiled(out, width, core)
    blocks = math.ceil(out / core[0]) * math.ceil(width / core[1])
    x = inputs(ROWS, width)
    spent, predicted = spent_and_predicted(module, x)
    assert differing(spent, predicted) == []
    assert spent["forward"].writes == blocks
    # The block that the forward left is the last; the probes begin with the first.
    assert spent["probes"].writes == blocks
    assert spent["forward"].queries == ROWS * blocks
    assert spent["probes"].queries == 2 * width * blocks  # blocks are linear: once for all rows
    assert spent["forward"].device_seconds == pytest.approx(0.5 * blocks)


def test_tiles_between_other_stages():
    """Untiled, tiled and untiled stages; one block smaller than its core takes part in long segments."""
    first, last = (FakeDevice.mlp(w, "tanh", dtype="float64") for w in ([4, 7], [6, 3]))
    for core, trees in (((4, 4), ["chain"]), ((8, 8), ["chain", "direct"])):
        middle = FakeDevice.mlp([core[1], core[0]], "identity", dtype="float64", bias=False)
        for tree in trees:
            module = Opaque(
                [
                    Stage(first, 0, twin=Affine(), initial=dict(first.read(0))),
                    Stage(middle, 0, tiles=Tiles(7, 6)),
                    Stage(last, 0, twin=Affine(), initial=dict(last.read(0))),
                ],
                tree=tree,
            ).double()
            parameters = list(module.parameters())

            def on_host(x, module=module):
                one, _, three = (dict(s.named_parameters()) for s in module.stages)
                blocks = module.stages[1].weight
                matrix = torch.cat([torch.cat(list(row), dim=1) for row in blocks], dim=0)[:6, :7]
                return Affine()(Affine()(x, **one) @ matrix.T, **three)

            x = inputs(ROWS, 4)
            assert worst(gradients(module, parameters, x), gradients(on_host, parameters, x)) < 1e-7


def test_biases_of_blocks_in_a_row_add_up():
    module = tiled(5, 6, (4, 4), bias=True)
    with torch.no_grad():
        module.stages[0].bias.normal_(generator=torch.Generator().manual_seed(0))
    biases = module.stages[0].bias
    x = inputs(ROWS, 6)

    def on_host(x):
        return x @ whole(module).T + biases.sum(1).flatten()[:5]

    parameters = list(module.parameters())
    assert worst(gradients(module, parameters, x), gradients(on_host, parameters, x)) < 1e-7


def test_a_nonlinear_core_is_refused_where_its_answers_would_be_added():
    device = FakeDevice.mlp([4, 4], "tanh", dtype="float64")
    with pytest.raises(
        BadInput, match=r"stage 'layer1': blocks are added up after read-out, so a tiled stage must be linear"
    ):
        Opaque([Stage(device, 0, tiles=Tiles(8, 4))])
    # One column of blocks: nothing is added, and a curved core serves.
    module = Opaque([Stage(device, 0, tiles=Tiles(4, 8), twin=Affine())]).double()
    parameters = list(module.parameters())

    def on_host(x):
        weight, bias = (dict(module.stages[0].named_parameters())[n] for n in ("weight", "bias"))
        return torch.cat([Affine()(x, weight[r, 0], bias[r, 0]) for r in range(2)], dim=1)

    x = inputs(ROWS, 4)
    assert worst(gradients(module, parameters, x), gradients(on_host, parameters, x)) < 1e-7


def test_longer_segments_over_tiles_are_refused_and_no_tree_picks_the_chain():
    core = FakeDevice.mlp([4, 4], "identity", dtype="float64")
    stages = [Stage(core, 0, tiles=Tiles(6, 6)) for _ in range(3)]
    assert Opaque(stages).resolved.tree.name == "chain"
    with pytest.raises(BadInput, match=r"tree 'direct' asks stages 2\.\.3 in one go"):
        Opaque(stages, tree="direct")


@pytest.mark.parametrize("widths", [(0, 4), (4, -1)])
def test_tiles_without_width_are_refused(widths):
    with pytest.raises(BadInput, match="widths must be at least 1"):
        Tiles(*widths)

"""However signed activations meet positive-only ports, the gradient is that of the signed device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hzo_hil import Codec, Opaque, Stage
from hzo_hil.coded import CodedTwin
from hzo_hil.devices.api import BoundarySpec, ParameterSpec, StageSpec
from hzo_hil.devices.errors import BadInput, CapabilityError
from hzo_hil.devices.fake import FakeDevice, FakeStage
from tests.core.nets import Affine, gradients, inputs, worst

WIDTHS = (3, 4, 4, 2)
POSITIVE = BoundarySpec(low=0.0, high=10.0)

OFFSET = Codec(gain=0.5, offset=5.0)
PAIR = Codec(gain=2.0, form="pair")
TWO_PASS = Codec(gain=2.0, form="two_pass")
PLAIN = Codec()

# Name: how activations are driven, how they are read.
FORMS = {
    "plain": (PLAIN, PLAIN),
    "offset": (OFFSET, OFFSET),
    "pair": (PAIR, PAIR),
    "pair in, offset out": (PAIR, OFFSET),
    "offset in, difference of detectors out": (OFFSET, PAIR),
    "two_pass": (TWO_PASS, OFFSET),
    "two_pass, difference of detectors": (TWO_PASS, PAIR),
    "falling": (Codec(gain=-0.5, offset=5.0), Codec(gain=-3.0, offset=1.0)),
}


def from_ports(codec: Codec, ports: np.ndarray) -> np.ndarray:
    """What a lab's wiring makes of driven ports: the signed value they stand for."""
    values = (ports - codec.offset) / codec.gain
    return values[:, 0::2] - values[:, 1::2] if codec.form == "pair" else values


def to_ports(codec: Codec, values: np.ndarray) -> np.ndarray:
    """Two detectors a value share a background that their difference takes away."""
    if codec.form == "pair":
        lit = np.stack([np.maximum(values, 0) + 0.25, np.maximum(-values, 0) + 0.25], axis=-1)
        values = lit.reshape(len(values), -1)
    return codec.offset + codec.gain * values


def stage(width: int, out: int, drive: Codec, read: Codec, curved: bool, seed: int) -> FakeStage:
    curve = np.tanh if curved else (lambda z: z)
    rng = np.random.default_rng(seed)
    initial = {"weight": rng.normal(size=(out, width)), "bias": rng.normal(size=out)}
    if drive.form == "two_pass" or not curved:
        del initial["bias"]  # a constant goes when one answer is subtracted from the other
    spec = StageSpec(
        f"layer{seed}", width * drive.ports, out * read.ports,
        tuple(ParameterSpec(n, v.shape) for n, v in initial.items()), linear=not curved,
    )  # fmt: skip

    def run(ports, parameters):
        return to_ports(read, curve(from_ports(drive, ports) @ parameters["weight"].T + parameters.get("bias", 0)))

    return FakeStage(spec, run, initial)


def networks(form: str, probes: str, tree: str) -> tuple[Opaque, Opaque]:
    """The network through the codec, one device a stage, and the same on a signed device."""
    drive, read = FORMS[form]
    made = []
    for codecs in ((drive, read), (PLAIN, PLAIN)):
        stages = []
        for k, (width, out) in enumerate(zip(WIDTHS, WIDTHS[1:], strict=False)):
            curved = drive.form != "two_pass"
            fake = stage(width, out, *codecs, curved, k)
            bounds = (BoundarySpec() if codecs[0] is PLAIN else POSITIVE, BoundarySpec())
            device = FakeDevice.functions([fake], dtype="float64", boundaries=bounds)
            twin = Affine("tanh" if curved else "identity")
            stages.append(Stage(device, 0, twin=twin, initial=fake.initial, codec_in=codecs[0], codec_out=codecs[1]))
        made.append(Opaque(stages, tree=tree, probes=probes).double())
    return made[0], made[1]


@pytest.mark.parametrize("tree", ["chain", "direct"])
@pytest.mark.parametrize("probes", ["coordinate", "hadamard"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_signed_devices_gradient(form, probes, tree):
    if tree == "direct" and FORMS[form][0].form == "two_pass":
        with pytest.raises(BadInput, match=r"need several queries each \(tiles, two_pass\)\. Use tree='chain'"):
            networks(form, probes, tree)
        return
    coded, signed = networks(form, probes, tree)
    x = inputs(5, WIDTHS[0])
    torch.testing.assert_close(coded(x), signed(x), rtol=1e-9, atol=1e-12)
    found = gradients(coded, list(coded.parameters()), x)
    assert worst(found, gradients(signed, list(signed.parameters()), x)) < 1e-7
    assert coded.ledger.events["one_sided"] == coded.ledger.events["clipped:1"] == 0


def test_two_passes_cost_twice_the_queries():
    coded, signed = networks("two_pass", "coordinate", "chain")
    for module in (coded, signed):
        module(inputs(5, WIDTHS[0])).sum().backward()
    for purpose in ("forward", "probes"):
        assert coded.ledger.accounts[purpose].queries == 2 * signed.ledger.accounts[purpose].queries


@pytest.mark.parametrize("form", ["offset", "pair"])
def test_parameter_probing_through_a_codec(form):
    drive, read = FORMS[form]
    fake = stage(3, 2, drive, read, True, 0)
    device = FakeDevice.functions([fake], dtype="float64", boundaries=(POSITIVE, BoundarySpec()))
    module = Opaque([Stage(device, 0, initial=fake.initial, codec_in=drive, codec_out=read)]).double()
    x = inputs(6, 3)
    parameters = list(module.parameters())
    expected = gradients(lambda x: Affine()(x, *parameters), parameters, x)
    assert worst(gradients(module, parameters, x), expected) < 2e-4


def test_a_diagonal_stage_read_by_pairs_only_is_not_diagonal_in_activations():
    """Two driven ports answer for one value: what a probe of all moves at once could not be told apart."""
    spec = StageSpec("square", 4, 4, structure="diagonal")
    device = FakeDevice.functions([(spec, lambda p, _: p**2)], dtype="float64", boundaries=(POSITIVE, BoundarySpec()))
    single = Stage(device, 0, codec_in=Codec(form="pair"))
    both = Stage(device, 0, codec_in=Codec(form="pair"), codec_out=Codec(form="pair"))
    assert (single.structure, both.structure) == ("dense", "diagonal")
    x = inputs(5, 2)
    Opaque([single])(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach(), rtol=1e-6, atol=1e-6)
    x.grad = None
    Opaque([both])(x).sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach().abs(), rtol=1e-6, atol=1e-6)


signed_values = st.lists(st.floats(-2, 2), min_size=1, max_size=6).map(lambda v: np.array([v]))


@given(
    values=signed_values,
    gain=st.floats(0.1, 4),
    offset=st.floats(-2, 2),
    form=st.sampled_from(["plain", "pair", "two_pass"]),
)
def test_decoding_undoes_encoding(values, gain, offset, form):
    codec = Codec(gain, offset, form)
    answers = [s * codec.decode(codec.encode(values, s), constant=len(codec.passes) == 1) for s in codec.passes]
    np.testing.assert_allclose(sum(answers), values, atol=1e-9)
    if form != "plain":
        assert all((codec.encode(values, s) >= offset).all() for s in codec.passes)


@given(gain=st.floats(0.1, 4), offset=st.floats(0, 0.9), form=st.sampled_from(["plain", "pair", "two_pass"]))
def test_limits_are_what_the_device_takes(gain, offset, form):
    codec = Codec(gain, offset, form)
    low, high = codec.limits(0.0, 1.0)
    for end in (low, high):
        for sign in codec.passes:
            ports = codec.encode(np.array([[end]]), sign)
            assert ports.min() >= -1e-9 and ports.max() <= 1 + 1e-9
    assert codec.encode(np.array([[high]])).max() == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Codec(gain=0), r"codec gain 0 and offset 0\.0 must be finite, the gain not 0"),
        (lambda: Codec(offset=np.inf), r"must be finite"),
        (lambda: Codec(form="triple"), r"codec form 'triple' is not one of plain, pair, two_pass"),
        (lambda: Codec(gain=-1, form="pair"), r"needs a positive gain: its ports take positive values"),
        (lambda: Codec(form="pair").limits(0.5, 1), r"sends 0\.0 for zero, below the device's lowest input 0\.5"),
        (
            lambda: Codec(offset=1, form="pair").limits(0, 1),
            r"at or above the device's highest input 1: nothing could be",
        ),
    ],
)
def test_codecs_that_cannot_work_are_refused(make, words):
    with pytest.raises(BadInput, match=words):
        make()


def test_codecs_that_do_not_suit_the_stage_are_refused():
    device = FakeDevice.mlp([3, 4], "tanh")
    with pytest.raises(BadInput, match=r"a two_pass codec subtracts answers, which is right for linear stages only"):
        Opaque([Stage(device, 0, codec_in=Codec(form="two_pass"))])
    with pytest.raises(CapabilityError, match=r"3 inputs cannot be read as pairs of ports"):
        Opaque([Stage(device, 0, codec_in=Codec(form="pair"))])
    with pytest.raises(BadInput, match=r"the delta rule needs activations in device units \(no codec; a plain gain"):
        Opaque([Stage(device, 0, leaf="delta", codec_in=Codec(gain=2))])


@pytest.mark.parametrize("form", ["plain", "pair", "two_pass"])
def test_a_twin_behind_codecs_is_the_stage_in_activations(form: Any) -> None:
    """The coded twin's value and gradient against the codec's own arithmetic and finite differences."""
    rng = np.random.default_rng(0)
    codec_in = Codec(0.5, 0.1, form)
    codec_out = Codec(2.0, 0.3 if form == "plain" else 0.0, "plain" if form == "two_pass" else form)
    ports = 6 if form == "pair" else 3
    weight = torch.as_tensor(rng.normal(size=(4, ports)))
    twin = CodedTwin(Affine("identity"), codec_in, codec_out, 0.0, 1.0)
    a = rng.uniform(-0.9, 0.9, size=(5, 3))
    if form == "plain":
        a = np.abs(a)
    expected = sum(
        sign * codec_out.decode(codec_in.encode(a, sign) @ weight.numpy().T, len(codec_in.passes) == 1)
        for sign in codec_in.passes
    )
    inputs = torch.as_tensor(a, dtype=torch.float64).requires_grad_()
    outputs = twin(inputs, weight=weight)
    np.testing.assert_allclose(outputs.detach().numpy(), expected, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: twin(x, weight=weight), (inputs,))


def test_a_coded_twin_is_cut_where_the_device_is() -> None:
    twin = CodedTwin(Affine("identity"), Codec(), Codec(), 0.0, 1.0)
    outputs = twin(torch.tensor([[-1.0, 0.5, 3.0]]), weight=torch.eye(3))
    assert outputs.tolist() == [[0.0, 0.5, 1.0]]

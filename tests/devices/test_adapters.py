"""Adapters: a callable, a simulated SCPI instrument (pyvisa-sim) and QCoDeS parameters as devices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hzo_hil.devices.adapters.function import FunctionDevice
from hzo_hil.devices.adapters.one_stage import OneStage
from hzo_hil.devices.adapters.qcodes import QcodesDevice
from hzo_hil.devices.adapters.visa import VisaDevice
from hzo_hil.devices.api import Device, ParameterSpec, Segment
from hzo_hil.devices.errors import BadInput, BadReply, CapabilityError, ConfigError, DeviceError, LinkLost

WHOLE = Segment(0, 1)
ROWS = np.array([[0.1, 0.2, 0.3], [-0.4, 0.5, 0.0]], dtype=np.float32)


# --- functions -----------------------------------------------------------------------------------------------------


def mix(x, weight):
    return np.tanh(x @ weight.T)


def made(**options) -> FunctionDevice:
    return FunctionDevice(mix, 3, 2, {"weight": ((2, 3), -1.0, 1.0)}, low=-1.0, high=1.0, **options)


def test_a_function_with_parameters_is_a_device():
    device = made()
    assert isinstance(device, Device)
    caps = device.capabilities
    assert caps.identity == "mix" and caps.stages[0].parameters == (ParameterSpec("weight", (2, 3), -1.0, 1.0),)
    weight = np.linspace(-1, 1, 6).reshape(2, 3).astype(np.float32)
    device.write(0, {"weight": weight})
    outputs = device.run(WHOLE, ROWS).outputs
    assert outputs.dtype == np.float32 and outputs.flags.c_contiguous
    assert np.array_equal(outputs, np.tanh(ROWS @ weight.T))
    assert np.array_equal(device.read(0)["weight"], weight)


def test_where_changes_only_what_it_names():
    device = made()
    device.write(0, {"weight": np.full((2, 3), 0.5)}, where={"weight": np.array([1, 5])})
    assert np.array_equal(device.read(0)["weight"], [[0, 0.5, 0], [0, 0, 0.5]])


def test_a_function_of_one_row_and_one_without_parameters():
    rowwise = FunctionDevice(lambda x: float(x.sum()), 3, 1, batch=False, identity="sum")
    assert np.allclose(rowwise.run(WHOLE, ROWS).outputs, ROWS.sum(axis=1, keepdims=True))
    plain = FunctionDevice(np.sin, 3, 3, structure="diagonal", dtype="float64")
    assert plain.capabilities.identity == "sin"
    assert np.array_equal(plain.run(WHOLE, ROWS.astype(float)).outputs, np.sin(ROWS.astype(float)))


def test_programming_once_a_write_and_parking():
    held, parked = {}, []
    device = FunctionDevice(
        lambda x: x * held["gain"], 3, 3, {"gain": (3, 0.5, 2.0)}, program=held.update, park=lambda: parked.append(1)
    )
    assert np.array_equal(device.read(0)["gain"], [0.5, 0.5, 0.5])
    device.write(0, {"gain": np.array([1.0, 2.0, 0.5])})
    assert np.allclose(device.run(WHOLE, ROWS).outputs, ROWS * [1.0, 2.0, 0.5])
    device.park()
    assert parked == [1] and not hasattr(made(), "park")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.zeros((2, 3)), r"f answered float64 \[2, 3\], declared were real numbers \[2, 2\]"),
        (None, "f answered NoneType"),
        (np.zeros((2, 2), complex), "complex128"),
    ],
)
def test_wrong_answers_of_a_function_are_named(answer, words):
    device = FunctionDevice(lambda x: answer, 3, 2, identity="bench")
    with pytest.raises(BadReply, match=words) as error:
        device.run(WHOLE, ROWS)
    assert "'bench'" in str(error.value) and "batch=False" in str(error.value)


def test_bad_input_is_refused_before_the_function_sees_it():
    calls = []
    device = FunctionDevice(lambda x: calls.append(1), 3, 2, {"w": (2, -1.0, 1.0)}, low=0.0, high=1.0, max_batch=4)
    for inputs, words in (
        (np.zeros((2, 4)), r"inputs of shape \(2, 4\), needs \[batch, 3\]"),
        (np.zeros((5, 3)), "5 rows in one call, max_batch is 4"),
        (np.full((1, 3), np.nan), "not finite"),
        (np.full((1, 3), 1.5), r"1.5..1.5 leave the declared range \[0, 1\]"),
    ):
        with pytest.raises(BadInput, match=words):
            device.run(WHOLE, inputs)
    with pytest.raises(CapabilityError, match="runs from boundary 0 to 1, not 0 to 2"):
        device.run(Segment(0, 2), ROWS)
    for parameters, words in (
        ({}, r"got \[\], needs \['w'\]"),
        ({"w": np.zeros(3)}, r"has shape \(3,\), declared \(2,\)"),
        ({"w": np.full(2, 2.0)}, "leave the declared range"),
    ):
        with pytest.raises(BadInput, match=words):
            device.write(0, parameters)
    with pytest.raises(BadInput, match="one stage, number 0, not 1"):
        device.read(1)
    assert calls == [] and np.array_equal(device.read(0)["w"], [0, 0])


def test_what_is_no_function_or_parameter_is_refused():
    with pytest.raises(CapabilityError, match="made of a callable"):
        FunctionDevice(3, 1, 1)
    with pytest.raises(CapabilityError, match=r"give \(shape, low, high\)"):
        FunctionDevice(mix, 3, 2, {"weight": "2x3"})


def test_a_function_is_trained():
    torch = pytest.importorskip("torch")
    import hzo_hil

    torch.manual_seed(0)
    target = np.random.default_rng(1).uniform(-1, 1, (2, 3))
    x = torch.rand(32, 3) * 2 - 1
    wanted = torch.as_tensor(np.tanh(x.numpy() @ target.T)).float()
    model = hzo_hil.Opaque(made())
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        loss = torch.nn.functional.mse_loss(model(x), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


# --- packages that are not there -----------------------------------------------------------------------------------


def test_missing_packages_name_their_extra(run_python, tmp_path):
    (tmp_path / "station.yaml").write_text("instruments: {}\n", encoding="utf-8")
    code = f"""
from hzo_hil.devices.adapters.visa import VisaDevice
from hzo_hil.devices.adapters.qcodes import QcodesDevice
from hzo_hil.devices.adapters.function import FunctionDevice
from hzo_hil.devices.errors import ConfigError
device = VisaDevice("GPIB0::1::INSTR", 1, 1, drive="V {{value}}", read="V?")
for action in (device.open, lambda: QcodesDevice(["a.b"], ["a.c"], station={str(tmp_path / "station.yaml")!r})):
    try:
        action()
    except ConfigError as error:
        print(error)
"""
    done = run_python(code, without=("torch", "pyvisa", "qcodes"))
    assert done.returncode == 0, done.stderr
    visa, qcodes = done.stdout.splitlines()
    assert "needs the package pyvisa" in visa and "pip install 'hzo-hil[visa]'" in visa
    assert "needs the package qcodes" in qcodes and "pip install 'hzo-hil[qcodes]'" in qcodes


def test_nothing_is_imported_before_it_is_used(run_python):
    code = """
import sys, hzo_hil.devices.adapters.visa, hzo_hil.devices.adapters.qcodes, hzo_hil.devices.adapters.function
print([name for name in ("pyvisa", "qcodes", "torch") if name in sys.modules])
"""
    assert run_python(code).stdout.strip() == "[]"


# --- SCPI ------------------------------------------------------------------------------------------------------------

INSTRUMENT = """
spec: "1.0"
devices:
  bench:
    eom:
      TCPIP INSTR: {q: "\\n", r: "\\n"}
    error:
      error_queue:
        - q: "SYST:ERR?"
          default: '0,"No error"'
          command_error: '-113,"Undefined header"'
          query_error: '-400,"Query error"'
    dialogues:
      - {q: "*IDN?", r: "ACME,BENCH,7,1.0"}
      - {q: "*RST"}
      - {q: "OUTP OFF"}
      - {q: "TRIG"}
      - {q: "ALL?", r: "1.5,-2.5"}
      - {q: "SHORT?", r: "1.5"}
      - {q: "WORDS?", r: "overload"}
      - {q: "BLOCK?", r: "#14ABCD"}
    channels:
      out:
        ids: [1, 2]
        properties:
          volt:
            default: 0.0
            getter: {q: "VOLT{ch_id}?", r: "{:.6f}"}
            setter: {q: "VOLT{ch_id} {:.6f}"}
            specs: {min: -5, max: 5, type: float}
          bias:
            default: 0.25
            getter: {q: "BIAS{ch_id}?", r: "{:.6f}"}
            setter: {q: "BIAS{ch_id} {:.6f}"}
            specs: {min: -1, max: 1, type: float}
resources:
  TCPIP0::bench::inst0::INSTR: {device: bench}
"""
BENCH = "TCPIP0::bench::inst0::INSTR"


@pytest.fixture
def bench(tmp_path):
    """`bench(**changes)`: an open VisaDevice that reads back what it drives."""
    pytest.importorskip("pyvisa", reason="the extra 'visa' is not installed")
    pytest.importorskip("pyvisa_sim", reason="pyvisa-sim, the simulated instrument, is not installed")
    (tmp_path / "bench.yaml").write_text(INSTRUMENT, encoding="utf-8")
    opened: list[VisaDevice] = []

    def make(**changes) -> VisaDevice:
        options = {
            "drive": "VOLT{channel} {value:.6f}",
            "read": "VOLT{channel}?",
            "parameters": {"bias": (2, -1.0, 1.0)},
            "set_parameter": "BIAS{channel} {value:.6f}",
            "options": {"read_termination": "\n", "write_termination": "\n"},
            "backend": f"{tmp_path / 'bench.yaml'}@sim",
            "timeout_s": 0.2,
        } | changes
        device = VisaDevice(BENCH, 2, 2, **options)
        opened.append(device)
        device.open()
        return device

    yield make
    for device in opened:
        device.close()


def test_an_instrument_is_driven_read_and_set(bench):
    device = bench(get_parameter="BIAS{channel}?", before_read="TRIG", on_open=["*RST"], settle_s=0.001)
    assert isinstance(device, Device)
    rows = np.array([[0.5, -1.25], [2.0, 3.0]])
    assert np.array_equal(device.run(WHOLE, rows).outputs, rows)
    assert np.array_equal(device.read(0)["bias"], [0.25, 0.25])
    device.write(0, {"bias": np.array([0.5, -0.125])})
    assert np.array_equal(device.read(0)["bias"], [0.5, -0.125])
    device.write(0, {"bias": np.array([0.75, 0.75])}, where={"bias": np.array([1])})
    assert np.array_equal(device.read(0)["bias"], [0.5, 0.75])
    assert device.snapshot()["idn"] == "ACME,BENCH,7,1.0"
    assert device.health().ok


def test_all_outputs_in_one_answer_and_in_a_block(bench):
    assert np.array_equal(bench(read="ALL?").run(WHOLE, np.zeros((1, 2))).outputs, [[1.5, -2.5]])
    block = bench(read="BLOCK?", read_binary="H")
    assert np.array_equal(block.run(WHOLE, np.zeros((1, 2))).outputs, [[0x4241, 0x4443]])


def test_the_error_queue_becomes_a_device_error_and_is_emptied(bench):
    device = bench(before_read="NONSENSE")
    with pytest.raises(DeviceError, match=r'reports: -113,"Undefined header"'):
        device.run(WHOLE, np.zeros((1, 2)))
    assert device.health().ok
    device = bench(drive="VOLT{channel} {value:.6f}")
    with pytest.raises(DeviceError, match="-113"):
        device.run(WHOLE, np.full((1, 2), 7.0))


def test_parking_sends_the_commands_of_the_safe_state(bench):
    device = bench(on_park=["OUTP OFF", "VOLT1 0.0"])
    device.run(WHOLE, np.ones((1, 2)))
    device.park()
    assert device._port.query("VOLT1?").strip() == "0.000000"
    assert not hasattr(bench(), "park")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"read": "WORDS?"}, BadReply, "'WORDS\\?' was answered 'overload', which is no number"),
        ({"read": "SHORT?"}, BadReply, "was answered 1 values, expected 2"),
        ({"read": "*RST", "error_query": ""}, LinkLost, r"RST.*VI_ERROR_TMO.*Is the command right"),
    ],
)
def test_answers_that_make_no_sense_are_named(bench, changes, kind, words):
    with pytest.raises(kind, match=words):
        bench(**changes).run(WHOLE, np.zeros((1, 2)))


def test_a_resource_that_is_not_there_is_a_lost_link(bench):
    device = bench()
    device._where = ("NOWHERE", device._where[1])
    device.close()
    with pytest.raises(DeviceError, match="is not open"):
        device.run(WHOLE, np.zeros((1, 2)))
    with pytest.raises(LinkLost, match="VISA resource 'NOWHERE' cannot be opened"):
        device.open()


def test_templates_are_tried_when_the_device_is_made():
    for changes, words in (
        ({"drive": "VOLT{chan} {value}"}, "KeyError.*known fields: value, values, index, channel"),
        ({"parameters": {"w": (2, 0, 1)}}, r"set_parameter: one template for each of the parameters \['w'\]"),
        ({"parameters": {"w": (2, 0, 1)}, "set_parameter": {"v": "x"}}, "set_parameter"),
    ):
        with pytest.raises(ConfigError, match=words):
            VisaDevice(BENCH, 2, 2, **({"drive": "V {value}", "read": "V?"} | changes))


# --- QCoDeS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def knobs():
    """Four settable parameters with ranges, and two that are computed from them."""
    pytest.importorskip("qcodes", reason="the extra 'qcodes' is not installed")
    from qcodes.parameters import ManualParameter, Parameter
    from qcodes.validators import Ints, Numbers

    x = [ManualParameter(f"x{i}", initial_value=0.0, vals=Numbers(-1 - i, 2.0)) for i in range(2)]
    w = [ManualParameter(f"w{i}", initial_value=0.0, vals=Numbers(-0.5, 0.5 + i)) for i in range(2)]
    step = ManualParameter("step", initial_value=0, vals=Ints(0, 255))
    y = [Parameter(f"y{i}", get_cmd=lambda i=i: x[i]() * w[i]()) for i in range(2)]
    return {"x": x, "w": w, "y": y, "step": step}


def test_qcodes_parameters_are_a_device(knobs):
    device = QcodesDevice(knobs["x"], knobs["y"], {"gain": knobs["w"]}, identity="cryostat", weights_held=True)
    assert isinstance(device, Device)
    caps = device.capabilities
    assert (caps.boundaries[0].low, caps.boundaries[0].high) == (-1.0, 2.0)
    assert caps.stages[0].parameters == (ParameterSpec("gain", (2,), -0.5, 0.5),)
    device.write(0, {"gain": np.array([0.5, -0.25])})
    assert np.array_equal(device.read(0)["gain"], [0.5, -0.25])
    rows = np.array([[1.0, 2.0], [-1.0, 0.5]])
    assert np.array_equal(device.run(WHOLE, rows).outputs, rows * [0.5, -0.25])
    assert device.snapshot()["values"]["x0"] == -1.0 and device.health().ok
    with pytest.raises(BadInput, match="leave the declared range"):
        device.write(0, {"gain": np.array([0.7, 0.0])})


def test_only_what_changed_is_set(knobs):
    counted = []
    original = knobs["w"][0].set
    knobs["w"][0].set = lambda value: (counted.append(value), original(value))
    device = QcodesDevice(knobs["x"], knobs["y"], {"gain": knobs["w"]})
    for value in (0.25, 0.25, 0.5):
        device.write(0, {"gain": np.array([value, 0.0])})
    assert counted == [0.25, 0.5]


def test_whole_number_knobs_matrices_and_parking(knobs):
    device = QcodesDevice(
        knobs["x"], knobs["y"], {"m": [knobs["w"], knobs["w"]], "code": [knobs["step"]]}, park={knobs["x"][0]: 0.0}
    )
    shapes = {p.name: (p.shape, p.low, p.high) for p in device.capabilities.stages[0].parameters}
    assert shapes == {"m": ((2, 2), -0.5, 0.5), "code": ((1,), 0.0, 255.0)}
    device.write(0, {"m": np.zeros((2, 2)), "code": np.array([17.0])})
    assert knobs["step"]() == 17
    device.run(WHOLE, np.ones((1, 2)))
    device.park()
    assert knobs["x"][0]() == 0.0 and knobs["x"][1]() == 1.0


def test_what_an_instrument_raises_is_a_device_error(knobs):
    from qcodes.parameters import Parameter

    broken = Parameter("broken", get_cmd=lambda: 1 / 0)
    wordy = Parameter("wordy", get_cmd=lambda: "open loop")
    for output, words in ((broken, "broken: ZeroDivisionError"), (wordy, "wordy gave 'open loop', which is no number")):
        device = QcodesDevice(knobs["x"], [output])
        with pytest.raises(DeviceError, match=words):
            device.run(WHOLE, np.zeros((1, 2)))
        assert not device.health().ok


def test_parameters_that_cannot_serve_are_refused(knobs):
    from qcodes.parameters import ManualParameter
    from qcodes.validators import Numbers

    with pytest.raises(CapabilityError, match="y0 cannot be set"):
        QcodesDevice([knobs["y"][0]], knobs["y"])
    with pytest.raises(CapabilityError, match="no range in common"):
        QcodesDevice([*knobs["x"], ManualParameter("far", vals=Numbers(5, 6))], knobs["y"])
    with pytest.raises(CapabilityError, match="is no QCoDeS parameter"):
        QcodesDevice([3], knobs["y"])
    with pytest.raises(CapabilityError, match="3 parameters do not fill"):
        QcodesDevice(knobs["x"], knobs["y"], {"m": [knobs["w"], knobs["w"][:1]]})
    with pytest.raises(ConfigError, match="name the station"):
        QcodesDevice(["dac.ch1"], knobs["y"])


def test_parameters_by_name_come_from_a_station_file(tmp_path):
    pytest.importorskip("qcodes", reason="the extra 'qcodes' is not installed")
    from qcodes.instrument import Instrument

    path = Path(tmp_path) / "station.yaml"
    path.write_text(
        "instruments:\n  dac:\n    type: qcodes.instrument_drivers.mock_instruments.DummyInstrument\n"
        "    init: {gates: [ch1, ch2]}\n",
        encoding="utf-8",
    )
    try:
        device = QcodesDevice(["dac.ch1"], ["dac.ch1"], {"bias": ["dac.ch2"]}, station=path)
        assert np.array_equal(device.run(WHOLE, np.array([[0.5]])).outputs, [[0.5]])
        device.write(0, {"bias": np.array([0.25])})
        assert device._weights["bias"][0]() == 0.25
        with pytest.raises(ConfigError, match="has no parameter 'dac.ch9'"):
            QcodesDevice(["dac.ch9"], ["dac.ch1"], station=device._station)
        with pytest.raises(ConfigError, match="does not load .*already, give the Station itself"):
            QcodesDevice(["dac.ch1"], ["dac.ch1"], station=path)
        with pytest.raises(ConfigError, match="no QCoDeS station file"):
            QcodesDevice(["dac.ch1"], ["dac.ch1"], station=tmp_path / "none.yaml")
    finally:
        Instrument.close_all()


def test_the_base_answers_nothing_by_itself():
    with pytest.raises(NotImplementedError):
        OneStage("bare", 1, 1).run(WHOLE, np.zeros((1, 1)))

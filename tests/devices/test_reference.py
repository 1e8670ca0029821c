"""The reference devices: one file each, without hzo_hil, driven over real sockets and pushed off the happy path."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import zlib
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from hzo_hil.devices.api import Device, Query, Segment
from hzo_hil.devices.errors import BadInput, Busy, DeviceRebooted, LinkLost
from hzo_hil.devices.manifest import from_json
from hzo_hil.devices.pool import Pool
from hzo_hil.devices.remote import RemoteDevice

FOLDER = Path(__file__).resolve().parents[2] / "devices" / "reference"
WHOLE = Segment(0, 1)
WEIGHT = np.array([[0.5, -1.0, 0.25], [1.5, 0.0, -2.0]], np.float32)
ROWS = np.random.default_rng(0).uniform(-1, 1, (37, 3)).astype(np.float32)
WANTED = np.tanh(ROWS @ WEIGHT.T)
KINDS = {"zmq": "zmq_device.py", "tcp": "tcp_device.py"}
ALLOWED = {"atexit", "json", "struct", "sys", "time", "numpy", "zmq", "socket", "zlib", "select"}

# A process in which this package cannot be imported, wherever it is installed.
ALONE = """
import runpy, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hzo_hil": raise ModuleNotFoundError(f"no {name} on a lab PC")
sys.meta_path.insert(0, Blocked())
try:
    import hzo_hil
except ModuleNotFoundError:
    print("alone", flush=True)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextmanager
def served(kind: str, folder: Path, change: dict[str, str] | None = None):
    """The URL of a copy of the file, with texts in it replaced, run by a Python without hzo_hil."""
    text = (FOLDER / KINDS[kind]).read_text(encoding="utf-8")
    for old, new in (change or {}).items():
        assert old in text
        text = text.replace(old, new)
    copy = folder / KINDS[kind]
    copy.write_text(text, encoding="utf-8")
    where = ["tcp://127.0.0.1:*"] if kind == "zmq" else ["127.0.0.1", "0"]
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", ALONE, str(copy), *where], cwd=folder, stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "alone\n"
        words = process.stdout.readline().split()
        assert words[0] == "serving"
        process.url = f"zmq+{words[-1]}" if kind == "zmq" else f"serial+tcp://{words[-1]}"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def host(url: str, **options):
    device = RemoteDevice(url, **({"patience_s": 5.0} | options))
    try:
        yield device
    finally:
        device.close()


@pytest.fixture(params=list(KINDS))
def kind(request) -> str:
    return request.param


@pytest.fixture
def url(kind, tmp_path):
    with served(kind, tmp_path) as process:
        yield process.url


def code_lines(text: str) -> int:
    """Lines that are not blank, comment or docstring."""
    skipped: set[int] = set()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            skipped |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and n not in skipped for n, line in lines)


def test_the_files_import_nothing_but_numpy_and_their_transport(kind):
    text = (FOLDER / KINDS[kind]).read_text(encoding="utf-8")
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    assert names <= ALLOWED
    # Made to be copied: it is to be read in one sitting, and the place for f(x) is near its top.
    assert code_lines(text) <= {"zmq": 140, "tcp": 170}[kind]
    assert max(map(len, text.splitlines())) <= 110
    assert text.index("# ---- yours") < text.index("def respond(") < text.index("# ---- HZO")


def test_a_host_drives_it(url):
    with host(url) as device:
        assert isinstance(device, Device)
        stage = device.capabilities.stages[0]
        assert (stage.in_width, stage.out_width, stage.parameters[0].shape) == (3, 2, (2, 3))
        device.write(0, {"weight": WEIGHT})
        assert np.array_equal(device.read(0)["weight"], WEIGHT)
        assert np.allclose(device.run(WHOLE, ROWS).outputs, WANTED, atol=1e-6)
        assert device.health().ok and device.snapshot()
        tickets = {device.submit(Query(WHOLE, ROWS[n : n + 1])): n for n in range(device.window)}
        found = {}
        while len(found) < len(tickets):
            found |= dict(device.poll(1.0))
        for ticket, n in tickets.items():
            assert np.allclose(found[ticket].outputs, WANTED[n : n + 1], atol=1e-6)


def test_bad_input_is_refused_and_it_goes_on(url):
    with host(url) as device:
        device.write(0, {"weight": WEIGHT})
        for inputs in (np.full((1, 3), np.nan), np.full((1, 3), 2.0), np.zeros((2, 4))):
            with pytest.raises(BadInput):
                device.run(WHOLE, inputs.astype(np.float32))
        for values in (np.full((2, 3), 3.0), np.zeros((3, 2)), np.full((2, 3), np.nan)):
            with pytest.raises(BadInput):
                device.write(0, {"weight": values.astype(np.float32)})
        with pytest.raises(BadInput):
            device.run(Segment(0, 2), ROWS)
        device.write(0, {"weight": WEIGHT})
        assert np.allclose(device.run(WHOLE, ROWS).outputs, WANTED, atol=1e-6)


def test_after_parking_nothing_runs_before_the_next_write(url):
    with host(url) as device:
        device.write(0, {"weight": WEIGHT})
        device.run(WHOLE, ROWS)
        device.park()
        with pytest.raises(DeviceRebooted):
            device.run(WHOLE, ROWS)
        device.write(0, {"weight": WEIGHT})
        assert np.allclose(device.run(WHOLE, ROWS).outputs, WANTED, atol=1e-6)


def test_what_the_users_code_raises_is_told(kind, tmp_path):
    change = {"return np.tanh(": "raise OSError('laser interlock')\n    return np.tanh("}
    with served(kind, tmp_path, change) as process, host(process.url) as device:
        device.write(0, {"weight": WEIGHT})
        with pytest.raises(Exception, match="OSError: laser interlock"):
            device.run(WHOLE, ROWS)
        assert device.health().ok


def test_wrong_shapes_of_the_users_code_are_told(kind, tmp_path):
    with served(kind, tmp_path, {".T)": ".T)[:, :1]"}) as process, host(process.url) as device:
        device.write(0, {"weight": WEIGHT})
        with pytest.raises(Exception, match=r"respond\(\) gave \(1, 1\) for 1 rows"):
            device.run(WHOLE, ROWS[:1])


def test_silence_parks_it_and_its_log_says_so(kind, tmp_path):
    with served(kind, tmp_path, {"PARK_AFTER_S = 30.0": "PARK_AFTER_S = 0.3"}) as process:
        device = RemoteDevice(process.url, ping_s=60.0)
        device.write(0, {"weight": WEIGHT})
        assert process.stdout.readline().startswith("parked: no host for 0.3 s")
        with pytest.raises(DeviceRebooted):
            device.run(WHOLE, ROWS)
        device.write(0, {"weight": WEIGHT})
        assert np.allclose(device.run(WHOLE, ROWS).outputs, WANTED, atol=1e-6)
        device.close()


def test_a_restart_is_noticed_and_healed_by_writing_again(kind, tmp_path):
    with served(kind, tmp_path) as process:
        device = RemoteDevice(process.url, patience_s=10.0)
        device.write(0, {"weight": WEIGHT})
        device.run(WHOLE, ROWS)
        address = process.url.rpartition("//")[2]
    fixed = {"zmq": ["tcp://" + address], "tcp": address.split(":")}[kind]
    again = subprocess.Popen([sys.executable, str(tmp_path / KINDS[kind]), *fixed], stdout=subprocess.PIPE)
    try:
        with pytest.raises(DeviceRebooted):
            device.run(WHOLE, ROWS)
        device.write(0, {"weight": WEIGHT})
        assert np.allclose(device.run(WHOLE, ROWS).outputs, WANTED, atol=1e-6)
        device.close()
    finally:
        again.kill()
        again.wait()
        assert again.stdout is not None
        again.stdout.close()


def test_a_second_host_is_told_that_it_is_busy_unless_it_takes_over(tmp_path):
    with served("zmq", tmp_path) as process, host(process.url) as first:
        first.write(0, {"weight": WEIGHT})
        with pytest.raises(Busy, match="in use"):
            RemoteDevice(process.url, connect_s=1.0).open()
        with host(process.url, takeover=True) as second:
            second.write(0, {"weight": WEIGHT})
            assert np.allclose(second.run(WHOLE, ROWS).outputs, WANTED, atol=1e-6)


def test_the_conformance_kit_certifies_it(url):
    conformance = pytest.importorskip("hzo_hil.devices.conformance")
    report = conformance.check(lambda: RemoteDevice(url), quick=True)
    bad = [f"{r.name}: {r.detail}" for r in report.rows if r.outcome == "fail"]
    assert report.passed, "\n".join(bad)


def test_a_bare_environment_is_enough(tmp_path, kind):
    """With the package's own folder on no path at all: -I and -S leave the standard library, one folder adds numpy,
    zmq."""
    site = tmp_path / "site"
    site.mkdir()
    for name in ("numpy", "zmq"):
        found = importlib.util.find_spec(name)
        assert found is not None and found.origin is not None
        source = Path(found.origin).parent
        for extra in [source, *source.parent.glob(f"{'pyzmq' if name == 'zmq' else name}.libs")]:
            try:
                os.symlink(extra, site / extra.name, target_is_directory=True)
            except OSError:
                pytest.skip("this system lets no test make links")
    shutil.copy(FOLDER / KINDS[kind], tmp_path)
    code = f"import sys; sys.path.append({str(site)!r}); import importlib.util as u; print(u.find_spec('hzo_hil'));"
    code += f"import runpy; print(sorted(runpy.run_path({KINDS[kind]!r}))[-1])"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "None"


def test_a_pool_of_three_survives_two_that_are_killed(tmp_path):
    """Real processes, really killed while queries are in flight: every answer comes, from the one that is left."""
    change = {'"longest_call_s": 2.0': '"longest_call_s": 0.2'}
    with ExitStack() as stack:
        processes = []
        for number in range(3):
            (tmp_path / str(number)).mkdir()
            named = change | {'"reference-zmq"': f'"chip-{number}"'}
            processes.append(stack.enter_context(served("zmq", tmp_path / str(number), named)))
        pool = Pool([RemoteDevice(p.url, patience_s=1.0) for p in processes], retry_s=60.0)
        pool.open()
        pool.write(0, {"weight": WEIGHT})
        asked, found = {}, {}
        while len(found) < 600:
            while len(asked) - len(found) < pool.window and len(asked) < 600:
                asked[pool.submit(Query(WHOLE, ROWS))] = None
            found |= dict(pool.poll(1.0))
            if len(processes) == 3 and len(found) > 200:
                processes.pop().kill()
                processes.pop().kill()
        assert pool.in_use == ["chip-0"] and pool.counters["moved"] > 0
        assert all(np.allclose(reply.outputs, WANTED, atol=1e-6) for reply in found.values())
        pool.write(0, {"weight": -WEIGHT})
        assert np.allclose(pool.run(WHOLE, ROWS).outputs, -WANTED, atol=1e-6)
        pool.close()


# --- byte by byte ----------------------------------------------------------------------------------------------------


def loaded(kind: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reference_{kind}", FOLDER / KINDS[kind])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def flat(frames) -> list[bytes]:
    return [bytes(f) if isinstance(f, bytes) else np.ascontiguousarray(f).tobytes() for f in frames]


class ZmqTalk:
    """Raw HZO/1 messages, made here and not by the package."""

    def __init__(self) -> None:
        self.module = loaded("zmq")
        self.device = self.module.Device()
        self.ask(1, 0, {"ping_s": 1.0})

    def ask(self, kind, seq, meta=None, array=None, role=0, version=0, session=7):
        head = struct.pack("<4sBBHQQII", b"HZO\x01", kind, 0, array is not None, session, seq, version, 0)
        frames = [head, json.dumps(meta).encode() if meta else b"", b""]
        if array is not None:
            dims = array.shape + (0,) * (5 - array.ndim)
            frames[2:] = [struct.pack("<BBHff5I", 1, array.ndim, role, 1.0, 0.0, *dims), array.tobytes()]
        reply = self.device.receive(frames)
        return None if reply is None else flat(reply)

    def code(self, reply) -> str:
        assert reply[0][4] == 192
        return json.loads(reply[1])["code"]


def test_zmq_a_repeated_request_is_answered_and_not_run_again():
    talk = ZmqTalk()
    runs = []
    original = talk.module.respond
    talk.module.respond = lambda x: (runs.append(len(x)), original(x))[1]
    talk.ask(2, 1, {"names": ["weight"], "base": 0}, WEIGHT, version=1)
    first = talk.ask(3, 2, None, ROWS, version=1)
    assert talk.ask(3, 2, None, ROWS, version=1) == first and runs == [37]
    assert np.allclose(np.frombuffer(first[3], "<f4").reshape(-1, 2), WANTED, atol=1e-6)
    for seq in range(3, 3 + 2 * talk.module.CREDIT):
        talk.ask(3, seq, None, ROWS[:1], version=1)
    assert talk.ask(3, 2, None, ROWS, version=1) is None, "answered long ago"
    assert runs == [37] + [1] * 2 * talk.module.CREDIT


def test_zmq_stale_is_told_and_not_kept():
    talk = ZmqTalk()
    assert talk.code(talk.ask(3, 1, None, ROWS, version=5)) == "STALE"
    talk.ask(2, 2, {"names": ["weight"], "base": 0}, WEIGHT, version=5)
    assert talk.ask(3, 1, None, ROWS, version=5)[0][4] == 131
    assert talk.code(talk.ask(2, 3, {"names": ["weight"], "base": 4}, WEIGHT, version=6)) == "STALE"


def test_zmq_a_write_that_fails_parks():
    talk, parked = ZmqTalk(), []
    talk.ask(2, 1, {"names": ["weight"], "base": 0}, WEIGHT, version=1)
    talk.module.park, talk.module.program = lambda: parked.append(1), None
    assert talk.code(talk.ask(2, 2, {"names": ["weight"], "base": 1}, WEIGHT, version=2)) == "DEVICE"
    assert parked == [1] and talk.code(talk.ask(3, 3, None, ROWS, version=1)) == "STALE"


def test_zmq_sessions_end_expire_and_are_taken_over():
    talk = ZmqTalk()
    assert talk.code(talk.ask(5, 1, session=8)) == "SESSION"
    assert talk.code(talk.ask(1, 0, {"ping_s": 1.0}, session=8)) == "BUSY"
    talk.device.heard -= 3.1
    assert talk.ask(1, 0, {"ping_s": 1.0}, session=8)[0][4] == 129
    assert talk.ask(1, 0, {"takeover": True}, session=9)[0][4] == 129
    assert talk.ask(6, 1, session=9) is None
    assert talk.ask(1, 0, {}, session=10)[0][4] == 129
    assert talk.ask(5, 1, session=10)[0][4] == 133


def test_zmq_another_version_and_what_is_no_message():
    talk = ZmqTalk()
    reply = flat(talk.device.receive([struct.pack("<4sBBHQQII", b"HZO\x02", 1, 0, 0, 7, 0, 0, 0), b"", b""]))
    assert talk.code(reply) == "VERSION" and "HZO/2" in json.loads(reply[1])["text"] and b"HZO/1" in reply[1]
    good = flat(
        [
            struct.pack("<4sBBHQQII", b"HZO\x01", 3, 0, 1, 7, 1, 0, 0),
            b"",
            struct.pack("<BBHff5I", 1, 2, 0, 1.0, 0.0, 0, 3, 0, 0, 0),
            b"12",
        ]
    )
    for frames in (
        [],
        [b"x"],
        good[:2],
        good[:3],
        [b"y" * 32, b"", b""],
        [good[0], b"{", *good[2:]],
        good,
        [good[0], b"[]", *good[2:]],
    ):
        assert talk.device.receive(frames) is None
    talk.ask(2, 1, {"names": ["weight"], "base": 0}, WEIGHT, version=1)
    assert all(talk.ask(kind, 2) is None for kind in (0, 8, 128, 255)), "no such message, and nothing is parked"
    assert talk.device.version == 1
    assert talk.ask(1, 0, {"ping_s": 10**400}) is None and talk.ask(1, 0, {"ping_s": "long"}) is None
    assert talk.code(talk.ask(7, 2, {"do": "dance"})) == "INPUT"
    random = np.random.default_rng(0)
    for _ in range(3000):
        frames = [bytearray(f) for f in flat(good)]
        for _ in range(3):
            frame = frames[random.integers(4)]
            if frame:
                frame[random.integers(len(frame))] = random.integers(256)
        talk.device.receive([bytes(f) for f in frames])
    assert talk.ask(5, 99)[0][4] == 133


class TcpTalk:
    def __init__(self) -> None:
        self.module = loaded("tcp")
        self.device = self.module.Device()
        self.boot = self.module.BOOT & 15

    def ask(self, kind, seq=1, offset=0, data=b"", region=0, epoch=1):
        body = struct.pack("<BBBBI", 0x10 | kind, seq, self.boot << 4 | epoch, region, offset) + data
        return self.device.receive(body)

    def write(self, epoch=1, before=0, data=None, offset=0):
        return self.ask(
            2, offset=offset, data=WEIGHT.tobytes() if data is None else data, region=before << 4 | 2, epoch=epoch
        )


def test_tcp_a_repeated_run_is_answered_and_not_run_again():
    talk = TcpTalk()
    talk.write()
    first = talk.ask(3, offset=100, data=ROWS.tobytes())
    assert first[2] == 0 and np.allclose(np.frombuffer(first[8:], "<f4").reshape(-1, 2), WANTED, atol=1e-6)
    assert talk.ask(3, offset=100, data=ROWS.tobytes()) == first and talk.device.runs == 1
    for run_id in range(101, 101 + talk.module.WINDOW):
        talk.ask(3, offset=run_id, data=ROWS[:1].tobytes())
    assert talk.ask(3, offset=100, data=ROWS.tobytes()) is None and talk.device.runs == 9
    talk.ask(1, offset=12345)
    assert talk.ask(3, offset=100, data=ROWS.tobytes())[2] == 0, "a new host's nonce clears what is remembered"


def test_tcp_epochs_and_refusals():
    talk = TcpTalk()
    assert talk.ask(3, data=ROWS.tobytes())[2] == 1, "nothing written: stale"
    assert talk.write(epoch=0)[2] == 1
    assert talk.write(epoch=3, before=2)[2] == 1, "follows an epoch the device does not have"
    assert talk.write(epoch=3)[2] == 0 and talk.write(epoch=3)[2] == 0
    assert talk.ask(3, data=ROWS.tobytes(), epoch=2)[2] == 1
    assert talk.ask(3, offset=1, data=ROWS.tobytes()[:-1], epoch=3)[2] == 2
    assert talk.ask(3, offset=2, data=ROWS.tobytes(), epoch=3, region=1)[2] == 3
    assert talk.ask(3, offset=3, data=np.full(3, 9, "<f4").tobytes(), epoch=3)[2] == 4
    assert talk.write(epoch=4, before=3, offset=8)[2] == 3
    assert talk.write(epoch=4, before=3, data=np.full(1, np.inf, "<f4").tobytes())[2] == 4
    assert talk.ask(4, data=b"\x18\x00", region=2)[8:] == WEIGHT.tobytes()
    assert talk.ask(6, region=1)[2] == 0 and talk.ask(3, offset=9, data=ROWS.tobytes(), epoch=3)[2] == 1
    assert talk.ask(7)[2] == 7 and talk.ask(6, region=2)[2] == 3
    other = talk.device.receive(struct.pack("<BBBBI", 0x21, 1, 0, 0, 0))
    assert other[0] >> 4 == 1 and other[2] == 6
    assert talk.device.receive(struct.pack("<BBBBI", 0x19, 1, 0, 0, 0)) is None, "an echo of our own words"


def test_tcp_cobs_is_the_usual_one():
    cobs = pytest.importorskip("cobs.cobs")
    module, random = loaded("tcp"), np.random.default_rng(0)
    for size in [*range(0, 20), *range(250, 262), 505, 508, 509, 510, 763]:
        for share in (0.0, 0.05, 0.5, 1.0):
            data = bytes((random.integers(1, 256, size) * (random.random(size) >= share)).astype(np.uint8))
            assert cobs.decode(module.cobs(data)) == data and 0 not in module.cobs(data)
            assert module.uncobs(cobs.encode(data)) == data
    for _ in range(2000):
        module.uncobs(random.bytes(int(random.integers(1, 40))))


def test_tcp_noise_on_the_line_is_counted_and_dropped(tmp_path):
    with served("tcp", tmp_path) as process:
        name, _, number = process.url.rpartition("//")[2].partition(":")
        module = loaded("tcp")
        body = struct.pack("<BBBBI", 0x11, 5, 0, 0, 77)
        hello = b"\0" + module.cobs(body + zlib.crc32(body).to_bytes(4, "little")) + b"\0"
        with socket.create_connection((name, int(number)), timeout=5.0) as line:
            line.sendall(b"garbage\0" + b"x" * 5000 + b"\0" + hello[:-4] + b"\xff" + hello[-3:])
            for byte in hello:  # one at a time
                line.sendall(bytes([byte]))
            received = b""
            while received.count(b"\0") < 2:
                received += line.recv(1000)
        reply = module.uncobs(received.strip(b"\0"))
        assert reply[:2] == b"\x19\x05"
        assert struct.unpack_from("<II", reply, 12) == (0, 3), "runs, bad frames"


@pytest.mark.parametrize("kind", list(KINDS))
def test_its_description_is_a_manifest(kind):
    capabilities = from_json(loaded(kind).SPEC)
    assert capabilities.identity == f"reference-{kind}"


def test_nobody_there_is_said_in_words(tmp_path):
    start = time.monotonic()
    with pytest.raises((LinkLost, BadInput)):
        RemoteDevice("zmq+tcp://127.0.0.1:9", connect_s=0.5).open()
    assert time.monotonic() - start < 5.0

"""Pools: the same answers whoever gives them, whatever happens to members; chips that differ are found out."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from hzo_hil.devices.api import (
    BoundarySpec,
    Capabilities,
    ChannelLimit,
    Device,
    ParameterSpec,
    Pipelined,
    Query,
    Reply,
    Segment,
    StageSpec,
)
from hzo_hil.devices.errors import (
    BadInput,
    BadReply,
    BadStep,
    CapabilityError,
    DeviceError,
    DeviceRebooted,
    LinkLost,
)
from hzo_hil.devices.fake import FakeDevice, Script
from hzo_hil.devices.pool import Pool
from hzo_hil.devices.pool_rules import _normal_score, common, unlike

WHOLE = Segment(0, 2)
CHECK = 4
"""Calls a member answers when the pool begins: join_repeats."""


def chip(
    name: str = "a", script: Script | None = None, pipelined: bool = False, seed: int = 0, **options
) -> FakeDevice:
    """Members differ in the parameters they happen to hold, not in kind."""
    return FakeDevice.mlp(
        [3, 4, 2], script=script, seed=seed, pipelined=pipelined, dtype="float64", identity=name, **options
    )


def three(pipelined: bool = False, **scripts: Script) -> list[FakeDevice]:
    return [chip(n, scripts.get(n), pipelined, seed) for seed, n in enumerate("abc")]


def pool_of(members, **options) -> Pool:
    made = Pool(members, **({"retry_s": 0.02, "patience_s": 0.5} | options))
    made.open()
    return made


@pytest.fixture
def pools():
    """`pool_of`, closed afterwards."""
    made: list[Pool] = []

    def make(members, **options) -> Pool:
        made.append(pool_of(members, **options))
        return made[-1]

    yield make
    for pool in made:
        for member in pool._crew.members:
            if hasattr(member.device, "unhang"):
                member.device.unhang()
        pool.close()


def rows(seed: int, count: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3))


def weights(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"weight": random.normal(size=(4, 3)), "bias": random.normal(size=4)}


def expected(seed: int, parameters=None) -> np.ndarray:
    alone = chip()
    if parameters is not None:
        alone.write(0, parameters)
    return alone.run(WHOLE, rows(seed)).outputs


def ask_many(pool: Pool, count: int, within: float = 10.0, size: int = 5) -> list[Reply | Exception]:
    """Answers to queries 0..count-1 of `size` rows, kept in flight as the window allows."""
    asked: dict[int, int] = {}
    found: dict[int, Reply | Exception] = {}
    following, deadline = 0, time.monotonic() + within
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} answers within {within} s"
        while following < count and len(asked) < pool.window:
            asked[pool.submit(Query(WHOLE, rows(following, size)))] = following
            following += 1
        for ticket, result in pool.poll(0.5):
            found[asked.pop(ticket)] = result
    return [found[n] for n in range(count)]


def ask_until(pool: Pool, wanted: list[str], size: int = 5, rounds: int = 20) -> list[Reply | Exception]:
    """Until only these members are in use, however slowly a loaded machine comes to ask the others."""
    found: list[Reply | Exception] = []
    for _ in range(rounds):
        if pool.in_use == wanted:
            break
        found = ask_many(pool, 60, size=size)
        assert all(isinstance(answer, Reply) for answer in found)
    assert pool.in_use == wanted
    return found


def all_right(results, parameters=None) -> bool:
    return all(np.array_equal(r.outputs, expected(n, parameters)) for n, r in enumerate(results))


def wait_for(pool: Pool, wanted: int, within: float = 5.0) -> None:
    deadline = time.monotonic() + within
    while len(pool.in_use) != wanted:
        assert time.monotonic() < deadline, f"{pool.in_use} in use, {pool._crew.why}"
        pool.run(WHOLE, rows(0))


# --- sharing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipelined", [False, True])
def test_answers_are_those_of_one_device_and_all_members_work(pools, pipelined):
    members = three(pipelined, **{n: Script(latency_s=0.002, reorder=True) for n in "abc"})
    pool = pools(members)
    assert isinstance(pool, Device) and isinstance(pool, Pipelined)
    assert pool.window == (24 if pipelined else 6)
    assert all_right(ask_many(pool, 30))
    assert all(len(m.calls) > CHECK for m in members)
    assert sum(len(m.calls) for m in members) == 30 + 3 * CHECK


def test_members_of_both_kinds_share_a_pool(pools):
    members = [chip("a", pipelined=True), chip("b", Script(latency_s=0.001), seed=1)]
    assert all_right(ask_many(pools(members), 20))


def test_each_member_is_called_from_one_thread_of_its_own(pools):
    members = three(**{n: Script(one_thread=True) for n in "abc"})
    pool = pools(members)
    pool.write(0, weights(1))
    assert all_right(ask_many(pool, 12), weights(1))
    threads = [m.threads for m in members]
    assert all(len(t) == 1 for t in threads)
    assert len(set.union(*threads)) == 3 and threading.get_ident() not in set.union(*threads)


def test_three_members_are_three_times_as_fast(pools):
    members = three(**{n: Script(latency_s=0.02) for n in "abc"})
    pool = pools(members)
    pool.run(WHOLE, rows(0))
    start = time.monotonic()
    ask_many(pool, 30)
    # Alone: 0.6 s. Twice the ideal 0.2 s is left to a busy machine.
    assert time.monotonic() - start < 0.4


def test_writes_reach_all_members_at_the_same_time(pools):
    members = three(**{n: Script(write_s=0.1) for n in "abc"})
    pool = pools(members)
    start = time.monotonic()
    pool.write(0, weights(3))
    assert time.monotonic() - start < 0.25
    for member in members:
        assert np.array_equal(member.read(0)["weight"], weights(3)["weight"])
    partial = weights(3)["weight"].copy()
    partial[0, 0] = 9.0
    pool.write(0, weights(3) | {"weight": partial}, where={"weight": np.array([0])})
    assert all(m.writes[-1].where is not None for m in members)
    assert np.array_equal(pool.read(0)["weight"], partial)


def test_what_nobody_wrote_is_taken_from_the_first_member(pools):
    members = three()
    pool = pools(members)
    assert np.array_equal(pool.run(WHOLE, rows(0)).outputs, expected(0))
    for stage in (0, 1):
        for member in members[1:]:
            assert np.array_equal(member.read(stage)["weight"], members[0].read(stage)["weight"])


def test_taps_keys_repeats_and_monitors_pass_through(pools):
    members = [
        FakeDevice.mlp([3, 4, 2], identity=n, taps=True, keyed=True, repeats=True, script=Script(noise=0.1))
        for n in "ab"
    ]
    pool = pools(members)
    inputs, keys = rows(0).astype(np.float32), np.arange(5, dtype=np.uint64)
    one = FakeDevice.mlp([3, 4, 2], taps=True, keyed=True, repeats=True, script=Script(noise=0.1))
    want = one.run(WHOLE, inputs, taps=(1,), repeats=3, keys=keys)
    for _ in range(4):
        got = pool.run(WHOLE, inputs, taps=(1,), repeats=3, keys=keys)
        assert np.array_equal(got.outputs, want.outputs) and np.array_equal(got.taps[1], want.taps[1])


def test_cancel_forgets_everything_and_the_pool_goes_on(pools):
    pool = pools(three(True, **{n: Script(latency_s=0.02) for n in "abc"}))
    for n in range(20):
        pool.submit(Query(WHOLE, rows(n)))
    pool.cancel()
    assert pool.poll(0.05) == []
    assert all_right(ask_many(pool, 8))


def test_the_querys_own_fault_goes_to_the_asker_and_costs_no_member(pools):
    pool = pools(three())
    with pytest.raises(BadInput, match="not finite"):
        pool.run(WHOLE, np.full((1, 3), np.nan))
    with pytest.raises(BadInput, match="needs"):
        pool.write(0, {"weight": np.zeros((4, 3))})
    assert pool.in_use == ["a", "b", "c"]


# --- losing and finding members ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pipelined", "script"),
    [
        (True, Script(lose=range(CHECK + 1, 1000))),
        *(
            (False, Script(fail=dict.fromkeys(range(CHECK + 1, 1000), error)))
            for error in (LinkLost("cable"), DeviceError("laser off"), OSError("usb"))
        ),
    ],
)
def test_queries_of_a_lost_member_are_answered_by_others(pools, caplog, pipelined, script):
    members = three(pipelined, b=script)
    pool = pools(members, retry_s=60.0)
    with caplog.at_level(logging.WARNING, "hzo_hil.link"):
        assert all_right(ask_many(pool, 40))
    assert pool.in_use == ["a", "c"]
    (line,) = caplog.messages
    assert "member 'b' was set aside" in line and "2 of 3 in use" in line
    assert pool.counters["moved"] >= 1
    assert "b: " in pool.health().detail and not pool.health().ok


def test_two_of_three_are_lost_and_every_answer_comes(pools):
    members = three(True, a=Script(lose=range(9, 10**6)), c=Script(lose=range(14, 10**6)))
    pool = pools(members, retry_s=60.0)
    assert all_right(ask_many(pool, 60))
    assert all_right(ask_until(pool, ["b"]))


def test_a_member_joins_again_written_and_checked(pools, caplog):
    members = three(b=Script(lose=[CHECK + 1]))
    pool = pools(members)
    assert all_right(ask_many(pool, 12))
    pool.write(0, weights(8))
    with caplog.at_level(logging.WARNING, "hzo_hil.link"):
        wait_for(pool, 3)
    assert "member 'b' is back; 3 of 3 in use" in caplog.text
    assert np.array_equal(members[1].read(0)["weight"], weights(8)["weight"])
    assert all_right(ask_many(pool, 12), weights(8))
    assert pool.counters["set_aside"] == pool.counters["joined_again"] == 1


def test_parameters_written_while_a_member_comes_back_reach_it(pools):
    members = three(b=Script(lose=[CHECK + 1], write_s=0.05))
    pool = pools(members, retry_s=0.01)
    assert all_right(ask_many(pool, 12))
    for seed in range(30):
        pool.write(0, weights(seed))
        assert all_right(ask_many(pool, 6), weights(seed))
    wait_for(pool, 3)
    assert all_right(ask_many(pool, 12), weights(29))
    assert np.array_equal(members[1].read(0)["weight"], weights(29)["weight"])


def test_a_hung_member_is_noticed_and_its_queries_moved(pools, monkeypatch):
    monkeypatch.setattr("hzo_hil.devices.pool_crew.MARGIN_S", 0.1)
    members = three(b=Script(hang=[CHECK + 1]))
    for member in members:
        member._capabilities = replace(member.capabilities, longest_call_s=0.2)
    pool = pools(members)
    start = time.monotonic()
    assert all_right(ask_many(pool, 12))
    assert 0.2 < time.monotonic() - start < 2.0
    assert pool.in_use == ["a", "c"]
    members[1].unhang()
    wait_for(pool, 3)


def test_a_link_that_says_it_is_lost_is_believed_at_once(pools):
    members = three(True, b=Script(hang=range(CHECK + 1, 10**6)))
    pool = pools(members, retry_s=60.0)
    pool.run(WHOLE, rows(0))
    tickets = {pool.submit(Query(WHOLE, rows(n))): n for n in range(12)}
    found = dict(pool.poll(0.3))
    members[1].state = "lost"
    start = time.monotonic()
    while len(found) < 12:
        found |= dict(pool.poll(1.0))
    assert time.monotonic() - start < 1.0
    assert all(np.array_equal(found[t].outputs, expected(n)) for t, n in tickets.items())


def test_a_reboot_is_healed_inside(pools):
    members = three(True, b=Script(reboot_at=[CHECK + 3]))
    pool = pools(members)
    pool.write(0, weights(2)), pool.write(1, {"weight": np.ones((2, 4)), "bias": np.zeros(2)})
    alone = chip()
    alone.write(0, weights(2)), alone.write(1, {"weight": np.ones((2, 4)), "bias": np.zeros(2)})
    for n, reply in enumerate(ask_many(pool, 40)):
        assert np.array_equal(reply.outputs, alone.run(WHOLE, rows(n)).outputs)
    assert pool.counters["reboots"] >= 1 and pool.counters["set_aside"] == 0
    assert members[1].boots == 1


def test_a_reboot_during_the_check_is_healed_too(pools):
    members = three(b=Script(reboot_at=[2]))
    pool = pools(members)
    assert all_right(ask_many(pool, 6))
    assert pool.counters["reboots"] == 1 and pool.counters["set_aside"] == 0


def test_a_member_that_reboots_at_every_query_is_set_aside(pools):
    members = three(b=Script(reboot_at=range(CHECK + 1, 10**6)))
    pool = pools(members, retry_s=60.0)
    assert all_right(ask_many(pool, 60))
    assert pool.in_use == ["a", "c"] and pool.counters["reboots"] == 4


def test_a_rewrite_respects_the_slew_limit(pools):
    members = [chip(n, Script(reboot_at=[CHECK + 1]), parameter={"slew": 0.5}) for n in "ab"]
    pool = pools(members)
    assert all_right(ask_many(pool, 12))
    assert pool.counters["reboots"] >= 2 and pool.counters["set_aside"] == 0


def test_without_any_member_the_link_is_lost_after_patience(pools):
    members = three(**{n: Script(lose=range(CHECK, 10**6)) for n in "abc"})
    pool = pools(members, patience_s=0.2)
    start = time.monotonic()
    with pytest.raises(LinkLost) as error:
        pool.run(WHOLE, rows(0))
    assert 0.2 <= time.monotonic() - start < 2.0
    text = str(error.value)
    assert text.startswith("no member of the pool is left (a: LinkLost: ") and "; c: " in text
    with pytest.raises(LinkLost, match="no member"):
        pool.write(0, weights(0))


def test_a_pool_that_lost_all_waits_for_the_first_to_come_back(pools):
    members = [chip(n, Script(lose=range(CHECK, CHECK + 3))) for n in "ab"]
    pool = pools(members, patience_s=5.0)
    assert all_right(ask_many(pool, 10))


def test_an_error_that_two_members_report_is_the_querys(pools):
    members = three(**{n: Script(fail={CHECK: DeviceError(f"{n}: overload")}) for n in "abc"})
    pool = pools(members)
    with pytest.raises(DeviceError, match="overload"):
        pool.run(WHOLE, rows(0))
    assert len(pool.in_use) >= 1


def test_a_lost_write_sets_the_member_aside_and_the_rest_go_on(pools):
    members = three(c=Script(lose_write=[0]))
    pool = pools(members, retry_s=60.0)
    pool.write(0, weights(4))
    assert pool.in_use == ["a", "b"]
    assert all_right(ask_many(pool, 6), weights(4))


def test_a_member_that_does_not_open_is_named():
    class Off(FakeDevice):
        def open(self):
            raise LinkLost("nobody answers")

    broken = chip("b")
    broken.__class__ = Off
    pool = Pool([chip("a"), broken])
    with pytest.raises(LinkLost) as error:
        pool.open()
    assert "member 'b' of pool of 2: a, b" in error.value.__notes__[0]
    pool.close()


def test_parked_members_are_written_before_they_are_used_again(pools):
    class Parking(FakeDevice):
        parked = 0

        def park(self):
            self.parked += 1

    members = three()
    for member in members:
        member.__class__ = Parking
    pool = pools(members)
    pool.run(WHOLE, rows(0))
    pool.park()
    assert [m.parked for m in members] == [1, 1, 1]
    assert not hasattr(pool, "maintain")
    pool.write(0, weights(1)), pool.write(1, {"weight": np.ones((2, 4)), "bias": np.zeros(2)})
    pool.run(WHOLE, rows(0))


def test_a_pool_opens_again_after_close():
    pool = pool_of(three())
    assert all_right(ask_many(pool, 4))
    pool.close()
    pool.open()
    assert all_right(ask_many(pool, 4))
    pool.close()
    assert not [t for t in threading.enumerate() if t.name in {f"hzo pool {n}" for n in "abc"}]


# --- do they answer alike? -----------------------------------------------------------------------------------------


class Off(FakeDevice):
    """Answers with an offset on output 1, from call `begin` on."""

    offset, begin = 0.0, 0

    def run(self, segment, inputs, **options):
        reply = super().run(segment, inputs, **options)
        if len(self.calls) > self.begin:
            reply.outputs[:, -1] += self.offset
        return reply


def off_by(offset: float, name: str = "odd", begin: int = 0, script: Script | None = None, seed: int = 7) -> FakeDevice:
    made = chip(name, script, seed=seed)
    made.__class__, made.offset, made.begin = Off, offset, begin
    return made


def test_a_different_chip_is_refused_by_name_and_amount():
    pool = pool_of([chip("a"), chip("b"), off_by(0.02)])
    with pytest.raises(BadInput) as error:
        pool.run(WHOLE, rows(0))
    text = str(error.value)
    assert "member 'odd' answers unlike 'a', by 0.0141 root mean square where noise explains" in text
    assert "most at output 1" in text and ": 0.02)" in text and "once in 1,000,000 checks" in text
    assert "identical=False" in text
    pool.close()


def test_a_difference_within_the_tolerance_is_allowed(pools):
    pool = pools([chip("a"), off_by(0.02)], tolerance=0.02)
    pool.run(WHOLE, rows(0))
    assert len(pool.in_use) == 2


def test_noisy_members_join_and_an_offset_of_twice_their_noise_is_seen(pools):
    """Of 32 rows and 2 outputs, 4 repeats: the offset makes the F ratio 5 +- 0.6, and 2.1 is refused.

    Independent noise (other seeds); the check refuses equal members once in 1e6. Seeded: it happens or it does not.
    """
    noisy = [chip(n, Script(noise=0.05, seed=s), seed=s) for s, n in enumerate("ab")]
    pools(noisy).run(WHOLE, rows(0))
    pool = pool_of([chip("a", Script(noise=0.05, seed=1)), off_by(0.1, script=Script(noise=0.05, seed=2))])
    with pytest.raises(BadInput, match="'odd' answers unlike 'a'"):
        pool.run(WHOLE, rows(0))
    pool.close()


def test_a_member_that_comes_back_different_stays_out(pools, caplog):
    odd = off_by(0.02, begin=CHECK + 2, script=Script(lose=[CHECK + 1]))
    pool = pools([chip("a"), chip("b"), odd])
    with caplog.at_level(logging.WARNING, "hzo_hil.link"):
        deadline = time.monotonic() + 5.0
        while not pool.counters["refused"]:
            assert time.monotonic() < deadline
            assert all_right(ask_many(pool, 6))
    assert "member 'odd' answers unlike 'a'" in caplog.text
    assert pool.in_use == ["a", "b"]


def test_equal_members_are_refused_at_the_stated_rate():
    """2,000 comparisons of equal devices, Gaussian noise: the score is standard normal, so 1 % lie above 2.326.

    The count is then 20 +- 4.4; 6..40 is left only once in about 10,000 seeds.
    """
    random = np.random.default_rng(0)
    above = 0
    for _ in range(2000):
        a, b = random.normal(size=(2, 4, 32, 3))
        apart, noise = b.mean(0) - a.mean(0), (a.var(0, ddof=1) + b.var(0, ddof=1)).mean(0) / 2
        above += _normal_score(float((apart**2 / (noise / 2)).mean()), 96, 576) > 2.326
        assert unlike(a, b, BoundarySpec(), 0.0) is None
    assert 6 <= above <= 40


def test_the_score_is_that_of_the_f_distribution():
    stats = pytest.importorskip("scipy.stats")
    for ratio in (0.7, 1.0, 1.5, 2.0):
        exact = stats.norm.isf(stats.f.sf(ratio, 96, 576))
        assert _normal_score(ratio, 96, 576) == pytest.approx(exact, abs=0.03)


def test_a_converter_step_and_float_rounding_are_no_difference():
    a = np.random.default_rng(0).normal(size=(4, 32, 2))
    a[:] = a[0]
    assert unlike(a, a, BoundarySpec(), 0.0) is None
    assert unlike(a, a * (1 + 3e-7), BoundarySpec(), 0.0) is None
    assert unlike(a, a + 1e-3, BoundarySpec(), 0.0) is not None
    assert unlike(a, a + 1e-3, BoundarySpec(out_step=4e-3), 0.0) is None
    assert unlike(a, np.full_like(a, np.nan), BoundarySpec(), 0.0) is not None


# --- what they have in common ---------------------------------------------------------------------------------------


def caps(name: str, **changes) -> Capabilities:
    parameter = ParameterSpec("w", (2,), **changes.pop("parameter", {"low": -1.0, "high": 1.0}))
    stage = StageSpec("s", 2, 2, (parameter,), **changes.pop("stage", {}))
    boundary = BoundarySpec(**changes.pop("boundary", {}))
    return Capabilities(name, (stage,), (boundary, BoundarySpec()), **changes)


def test_a_pool_can_what_all_its_members_can():
    weak, strong = (ChannelLimit("power", ("w",), high) for high in (1.0, 2.0))
    first = caps("a", boundary={"low": -2.0, "high": 1.0}, taps=True, latency_s=1.0, stage={"limits": (strong,)})
    second = caps(
        "b",
        parameter={"low": -0.5, "high": 2.0, "slew": 0.1},
        boundary={"low": -1.0, "high": 3.0},
        stage={"limits": (weak,)},
        max_batch=64,
        longest_call_s=20.0,
    )
    pool = common([first, second])
    spec, edge = pool.stages[0].parameters[0], pool.boundaries[0]
    assert (spec.low, spec.high, spec.slew, edge.low, edge.high) == (-0.5, 1.0, 0.1, -1.0, 1.0)
    assert (pool.max_batch, pool.taps, pool.latency_s, pool.longest_call_s) == (64, False, 1.0, 20.0)
    assert pool.stages[0].limits == (weak,)
    assert pool.identity == "pool of 2: a, b"


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dtype": "float64"}, "dtype is float32 for 'a' and float64 for 'b'"),
        ({"stage": {"structure": "diagonal"}}, "stage 0: structure is dense for 'a' and diagonal for 'b'"),
        ({"parameter": {"low": 1.5, "high": 2.0}}, r"at least 1.5 for 'b' and at most 1 for 'a'"),
        ({"parameter": {"levels": (0.0, 1.0)}}, r"parameter 'w': levels is None for 'a' and \(0.0, 1.0\) for 'b'"),
    ],
)
def test_contradictions_name_the_members(other, words):
    with pytest.raises(CapabilityError, match=words):
        common([caps("a"), caps("b", **other)])


def test_a_pool_refuses_what_makes_no_sense():
    with pytest.raises(CapabilityError, match="at least one member"):
        Pool([])
    one = chip()
    with pytest.raises(CapabilityError, match="twice"):
        Pool([one, one])
    with pytest.raises(BadInput, match="join_repeats at least 2"):
        Pool([chip()], join_repeats=1)
    same = Pool([chip("a"), chip("a")])
    assert [m.name for m in same._crew.members] == ["a (member 0)", "a (member 1)"]


# --- different chips ------------------------------------------------------------------------------------------------


def different(**scripts: Script) -> list[FakeDevice]:
    made = [off_by(float(k), n, script=scripts.get(n)) for k, n in enumerate("abc")]
    for member in made:
        member.keep_inputs = True
    return made


def test_all_rows_of_a_sample_go_to_its_chip_and_come_back_in_order(pools):
    members = different()
    pool = pools(members, identical=False)
    assert pool.by_sample
    samples = np.array([4, 0, 2, 4, 1, 0, 5])
    inputs = rows(0, 7)
    ticket = pool.submit(Query(WHOLE, inputs, samples=samples))
    ((got, reply),) = pool.poll(5.0)
    base = off_by(0.0)
    base.write(0, members[0].read(0)), base.write(1, members[0].read(1))
    assert got == ticket
    assert np.array_equal(reply.outputs[:, 0], base.run(WHOLE, inputs).outputs[:, 0])
    assert np.allclose(reply.outputs[:, 1] - base.run(WHOLE, inputs).outputs[:, 1], samples % 3)
    assert np.array_equal(members[1].calls[-1].inputs, inputs[samples % 3 == 1])


def test_without_samples_rows_are_dealt_out_by_number(pools):
    pool = pools(different(), identical=False)
    outputs = pool.run(WHOLE, np.zeros((6, 3))).outputs
    assert np.allclose(outputs[:, 1] - outputs[0, 1], [0, 1, 2, 0, 1, 2])


def test_a_lost_chip_ends_the_step_and_later_ones_use_the_rest(pools):
    members = different(b=Script(lose=[0]))
    pool = pools(members, identical=False, retry_s=60.0)
    ticket = pool.submit(Query(WHOLE, rows(0), samples=np.arange(5)))
    ((got, error),) = pool.poll(5.0)
    assert got == ticket and isinstance(error, BadStep)
    assert "chip 'b' of pool of 3: a, b, c was lost within a step" in str(error)
    pool.submit(Query(WHOLE, np.zeros((4, 3)), samples=np.arange(4)))
    ((_, reply),) = pool.poll(5.0)
    assert np.allclose(reply.outputs[:, 1] - reply.outputs[0, 1], [0, 2, 0, 2])


def test_a_chip_comes_back_only_where_a_step_begins(pools):
    members = different(b=Script(lose=[0]))
    pool = pools(members, identical=False)
    pool.submit(Query(WHOLE, rows(0), samples=np.arange(5)))
    assert isinstance(pool.poll(5.0)[0][1], BadStep)
    deadline = time.monotonic() + 5.0
    while not pool._crew._ready and time.monotonic() < deadline:
        pool.run(WHOLE, rows(0))
    assert pool.in_use == ["a", "c"]
    pool.write(0, members[0].read(0))
    assert pool.in_use == ["a", "b", "c"]


def test_a_chip_that_answers_other_shapes_is_named(pools):
    pool = pools(different(b=Script(wrong_shape_at=[0])), identical=False)
    with pytest.raises(BadReply, match=r"member 'b' answered \[2, 1\] at boundary 2, expected \[2, 2\]"):
        pool.run(WHOLE, rows(0))


def test_rebooted_chips_are_healed_in_place(pools):
    members = different(b=Script(reboot_at=[0]))
    pool = pools(members, identical=False)
    pool.submit(Query(WHOLE, np.zeros((6, 3)), samples=np.arange(6)))
    ((_, reply),) = pool.poll(5.0)
    assert np.allclose(reply.outputs[:, 1] - reply.outputs[0, 1], [0, 1, 2, 0, 1, 2])
    assert pool.counters["reboots"] == 1 and not isinstance(reply, DeviceRebooted)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(device) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    from tests.core.nets import affine_opaque, inputs, loss_of

    module = affine_opaque([3, 4, 2], device=device, tree="chain", probes="hadamard", eps=0.05)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05)
    for step in range(4):
        optimiser.zero_grad()
        loss_of(module(inputs(6, 3, seed=step, grad=False))).backward()
        optimiser.step()
    return [p.detach().numpy().copy() for p in module.parameters()]


@pytest.mark.parametrize("pipelined", [False, True])
def test_training_on_a_pool_that_loses_two_gives_the_parameters_of_one_device(pools, pipelined):
    """The host reads first (initial values), so members are opened here as a link would."""
    members = three(
        pipelined, a=Script(reboot_at=[9]), b=Script(lose=range(12, 10**6)), c=Script(lose=range(20, 10**6))
    )
    for member in members:
        member._capabilities = replace(member.capabilities, max_batch=4)
    pool = pools(members, retry_s=60.0, join_rows=4)
    alone = chip()
    alone._capabilities = replace(alone.capabilities, max_batch=4)
    for got, want in zip(trained(pool), trained(alone), strict=True):
        assert np.array_equal(got, want)
    ask_until(pool, ["a"], size=4)
    assert members[0].boots == 1

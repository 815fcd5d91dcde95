from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ferryman.devices.fleet.facts.advice import RULES, Advice, advise
from ferryman.profiler.facts import facts_of
from ferryman.runtime.contracts.facts import Core, DeviceFacts, Interpreter, Sensor
from ferryman.runtime.contracts.record import Unavailable
from tests.support.boards import BOARDS
from tests.unit.profiler.test_facts import TOLD
from tests.unit.profiler.trees import write_tree

NONE = Unavailable(reason="none")


@pytest.fixture
def board(tmp_path):
    def make(name: str, **changes) -> DeviceFacts:
        told = TOLD._replace(machine="x86_64") if name == "x86" else TOLD
        facts = facts_of(write_tree(tmp_path / name, BOARDS[name]), told)
        own = {"kernels": "neon_dot"} if "asimddp" in facts.isa else {}
        return replace(facts, **own | changes)

    return make


def of(facts: DeviceFacts, topic: str) -> list[Advice]:
    return [one for one in advise(facts) if one.topic == topic]


def problems(facts: DeviceFacts) -> list[str]:
    return [one.says for one in advise(facts) if one.level == "problem"]


def test_rules_stand_in_the_order_of_the_report():
    names = [rule.__name__ for rule in RULES]
    assert names == ["userland", "system", "runtimes", "forms", "memory", "disk", "clock", "sensors"]


@pytest.mark.parametrize("name", BOARDS)
def test_a_provisioned_board_has_no_problem_but_a_tflite_interpreter_is_named(board, name):
    facts = board(name)
    assert problems(facts) == []
    (executorch,) = of(facts, "executorch")
    assert executorch.level == "ok"
    (litert,) = of(facts, "ai-edge-litert")
    assert litert.level == "note"
    assert litert.do == "pip install 'ferryman[litert]' in ferryman's environment there"


@pytest.mark.parametrize("name", ["pi 3", "zero 2 w", "pi 4", "jetson-like"])
def test_boards_without_dot_products_are_told_that_int8_gains_less(board, name):
    bytes_, bits = of(board(name), "forms")
    assert bytes_.level == "note"
    assert "no asimddp" in bytes_.because
    assert bits.level == "ok"


@pytest.mark.parametrize("name", ["pi 5", "big.LITTLE"])
def test_boards_with_dot_products_are_told_so(board, name):
    facts = board(name, kernels="neon_dot")
    assert {one.level for one in of(facts, "forms")} == {"ok"}
    assert "ferryman's own operators use neon there" in problems(replace(facts, kernels="neon"))


def test_matrix_products_of_bytes_are_told_as_unused(board):
    facts = board("pi 5", kernels="neon_dot")
    assert any("i8mm" in one.says for one in of(replace(facts, isa=(*facts.isa, "i8mm")), "forms"))


@pytest.mark.parametrize(
    ("isa", "says"),
    [
        (("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_vpopcntdq"), "AVX-512"),
        (("avx512f", "avx2", "fma", "f16c"), "AVX2"),
        ((), "plain x86-64"),
    ],
)
def test_x86_is_told_by_what_the_kernels_are_built_for(board, isa, says):
    (form,) = of(board("x86", isa=isa), "forms")
    assert says in form.says


@pytest.mark.parametrize(
    ("machine", "cores", "do"),
    [
        ("aarch64", NONE, "install the 64-bit image of its system"),
        ("armv7l", (Core(kind="Cortex-A53", count=4, max_mhz=1200.0),), "install the 64-bit image of its system"),
        ("armv7l", (Core(kind="Cortex-A7", count=4, max_mhz=900.0),), "take a device with a 64-bit processor"),
        ("armv6l", NONE, "take a device with a 64-bit processor"),
    ],
)
def test_32_bit_programs_are_not_served_and_it_is_said_what_would_be(board, machine, cores, do):
    (first, *_) = advise(board("pi 3", machine=machine, cores=cores, userland_bits=32))
    assert (first.level, first.do) == ("problem", do)
    assert "32-bit" in first.says


def test_an_emulated_processor_is_told(board):
    assert any("emulated by qemu" in one.says for one in of(board("pi 4", emulated="qemu"), "system"))


def test_another_machine_is_not_served(board):
    (first, *_) = advise(board("pi 3", machine="riscv64"))
    assert "riscv64" in first.says


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"libc": "glibc 2.27"}, "its glibc 2.27 is too old"),
        ({"libc": "musl"}, "its C library is musl: no wheel fits"),
        ({"python": NONE}, "no Python there"),
        ({"python": "3.9.2"}, "its Python 3.9.2 is too old"),
        ({"ferryman": NONE}, "no ferryman there that tells of itself"),
        ({"root_writable": False}, "/var/lib/ferryman cannot be written by who asked"),
        ({"free_bytes": 10**8}, "only 100 MB free at /var/lib/ferryman"),
        ({"clock_synchronized": False}, "its clock is not synchronized"),
        ({"interpreters": ()}, "executorch does not run there"),
    ],
)
def test_what_is_missing_is_a_problem_with_a_reason_and_a_step(board, changes, says):
    found = {one.says: one for one in advise(board("pi 4", **changes)) if one.level == "problem"}
    assert says in found
    assert found[says].because
    assert found[says].do


def test_without_ferryman_interpreters_are_not_guessed_at(board):
    assert of(board("pi 4", ferryman=NONE, interpreters=()), "executorch") == []


def test_one_tflite_interpreter_is_enough(board):
    litert = (*TOLD.interpreters, Interpreter(name="ai-edge-litert", version="2.3.0"))
    assert of(board("pi 4", interpreters=litert), "tflite-runtime") == []


@pytest.mark.parametrize(
    ("changes", "because"),
    [
        ({"python": "3.12.1"}, "no wheels past Python 3.11"),
        ({"libc": "glibc 2.31"}, "want glibc 2.34, found glibc 2.31"),
    ],
)
def test_where_tflite_runtime_has_no_wheel_that_is_said(board, changes, because):
    (found,) = of(board("pi 4", **changes), "tflite-runtime")
    assert because in found.because
    assert found.do == ""


def test_a_small_memory_asks_for_care(board):
    (small,) = of(board("zero 2 w"), "memory")
    assert small.level == "note"
    (large,) = of(board("pi 5"), "memory")
    assert large.level == "ok"


@pytest.mark.parametrize(
    ("name", "hint"), [("pi 5", "/dev/vcio"), ("pi 4", "INA219"), ("x86", "--meter"), ("big.LITTLE", "--meter")]
)
def test_where_energy_cannot_be_measured_it_is_said_how_it_could(board, name, hint):
    first, *_ = of(board(name), "sensors")
    assert first.level == "note"
    assert hint in first.do
    assert "powercap" not in first.do


@pytest.mark.parametrize("why", ["its counters are there, and closed to pi", "energy_uj: Permission denied"])
def test_counters_that_are_closed_are_to_be_opened(board, why):
    rapl = Sensor(name="rapl", measures="energy", available=False, detail=f"RAPL powercap: {why}")
    (first, *_) = of(board("x86", sensors=(rapl,)), "sensors")
    assert "let its user read /sys/class/powercap" in first.do


def test_where_energy_is_measured_the_source_is_named(board):
    first, *_ = of(board("jetson-like"), "sensors")
    assert (first.level, first.says) == ("ok", "energy is measured by hwmon_ina")


MAYBE = st.one_of(st.builds(Unavailable, reason=st.text(max_size=5)), st.text(max_size=12))
NUMBER = st.one_of(st.builds(Unavailable, reason=st.text(max_size=5)), st.integers(0, 1 << 50))
FACTS = st.builds(
    DeviceFacts,
    model=MAYBE,
    soc=MAYBE,
    machine=st.sampled_from(["aarch64", "x86_64", "armv7l", ""]),
    cores=st.one_of(
        st.builds(Unavailable, reason=st.text()),
        st.lists(st.builds(Core, kind=st.text(), count=st.integers(), max_mhz=st.floats()), max_size=2).map(tuple),
    ),
    isa=st.lists(st.sampled_from(["asimd", "asimddp", "avx2", "i8mm"]), max_size=3).map(tuple),
    memory_bytes=NUMBER,
    memory_available_bytes=NUMBER,
    os=MAYBE,
    kernel=st.text(max_size=5),
    libc=st.one_of(MAYBE, st.sampled_from(["glibc 2.36", "glibc", "musl", "bionic"])),
    python=MAYBE,
    ferryman=MAYBE,
    kernels=MAYBE,
    interpreters=st.lists(st.builds(Interpreter, name=st.text(), version=st.text()), max_size=2).map(tuple),
    sensors=st.lists(
        st.builds(
            Sensor,
            name=st.text(),
            measures=st.sampled_from(["energy", "temperature"]),
            available=st.booleans(),
            detail=st.text(),
        ),
        max_size=2,
    ).map(tuple),
    root=st.text(),
    free_bytes=NUMBER,
    root_writable=st.booleans(),
    clock_synchronized=st.booleans(),
)


@given(FACTS)
def test_whatever_the_facts_there_is_advice_and_each_has_a_reason(facts):
    for one in advise(facts):
        assert one.says
        assert one.topic

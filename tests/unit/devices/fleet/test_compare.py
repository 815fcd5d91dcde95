from __future__ import annotations

import contextlib
import os

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ferryman.cli import main
from ferryman.devices.fleet import compare as module
from ferryman.devices.fleet.compare import compare, compare_measurements, read_measurements
from ferryman.devices.fleet.inventory import LocalDevice, SshDevice
from ferryman.runtime.contracts.comparison import Comparison
from ferryman.runtime.contracts.errors import CallerError, LinkError, PackageError
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import decode, encode
from tests.support.measurements import full_measurement, measurement, start
from tests.support.packages import sha256_of, write_tiny_package

KITCHEN = SshDevice(name="kitchen", host="kitchen.lan", user="pi", broker="mqtt://hub.lan")


def of(level_ns: int, count: int = 8, **changes):
    starts = tuple(start([level_ns + number] * 9) for number in range(count))
    return msgspec.structs.replace(measurement(), starts=starts, **changes)


def write(path, *measurements):
    path.write_bytes(b"".join(encode(one) + b"\n" for one in measurements))
    return path


@pytest.fixture
def packages(tmp_path):
    return [write_tiny_package(tmp_path / f"{added}.ferry", added=float(added)) for added in (1, 2, 3)]


# Stored measurements.


def test_json_lines_are_read_and_the_last_of_each_counts(tmp_path):
    path = write(tmp_path / "a.json", of(1), of(2, variant="other"), of(3))
    assert [one.samples_ns[0] for one in read_measurements(path)] == [3, 2]


def test_what_does_not_count_is_named(tmp_path):
    path = write(tmp_path / "a.json", of(1, package_name="first"), of(2), of(3, variant="w"))
    said = []
    read_measurements(path, left_out=said.append)
    assert said == [f"v on i of first 00 in {path}: line 2 holds the same variant and interpreter, and counts"]


@pytest.mark.parametrize("text", ["", "\n\n", "{}", '{"schema":2}\n', "[1]", "nonsense", '{"a":'])
def test_what_holds_no_measurements_is_the_callers_fault(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(CallerError, match="ferryman profile --json"):
        read_measurements(path)


def test_no_such_file_is_the_callers_fault(tmp_path):
    with pytest.raises(CallerError, match="cannot read"):
        read_measurements(tmp_path / "nope.json")


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "a.json"


WHOLE = encode(full_measurement())


@given(st.integers(0, len(WHOLE) - 1), st.integers(0, len(WHOLE) - 1), st.binary(max_size=8))
def test_damaged_records_are_compared_or_refused(damaged, begin, size, put):
    damaged.write_bytes(WHOLE[:begin] + put + WHOLE[begin + size % 20 :])
    with contextlib.suppress(CallerError):
        compare_measurements([[full_measurement()], read_measurements(damaged)], anyway=True)


def test_one_file_is_compared_within_itself_against_its_first():
    one, two, three = of(10**6), of(2 * 10**6, variant="b"), of(10**6, variant="c")
    found = compare_measurements([[one, two, three]])
    assert [(comparison.other.variant, comparison.verdict) for comparison in found] == [("b", "slower"), ("c", "same")]


def test_every_other_file_is_held_against_the_first():
    found = compare_measurements([[of(10**6)], [of(2 * 10**6)], [of(5 * 10**5)]])
    assert [comparison.verdict for comparison in found] == ["slower", "faster"]


def test_what_has_no_partner_is_told_with_whose_it_is():
    said = []
    one, two = of(10**6), of(10**6, variant="b")
    compare_measurements([[one, two], [two], [one, of(1, variant="c")]], left_out=said.append)
    assert said == [
        "v on i of the baseline: it has no partner in other 1",
        "b on i of the baseline: it has no partner in other 2",
        "c on i of other 2: it has no partner in the baseline",
    ]


def test_one_measurement_alone_has_nothing_to_be_compared_with():
    with pytest.raises(CallerError, match="nothing to compare it with"):
        compare_measurements([[of(1)]])


# The command.


def run(*arguments):
    return CliRunner().invoke(main, ["compare", *(str(argument) for argument in arguments)])


@pytest.mark.parametrize(("level_ns", "code"), [(1_000_000, 0), (900_000, 0), (1_100_000, 3), (1_020_000, 4)])
def test_the_exit_code_is_the_verdict(tmp_path, level_ns, code):
    scattered = [start([round(level_ns * (1 + 0.004 * (number % 3 - 1)))] * 9) for number in range(8)]
    other = msgspec.structs.replace(measurement(), starts=tuple(scattered))
    files = write(tmp_path / "old.json", of(1_000_000)), write(tmp_path / "new.json", other)
    result = run(*files)
    assert result.exit_code == code, result.output
    assert "verdict: " in result.output


def test_json_lines_are_whole_comparisons(tmp_path):
    files = write(tmp_path / "old.json", of(10**6)), write(tmp_path / "new.json", of(10**6))
    result = run(*files, "--json", "--margin", "5%")
    (line,) = result.stdout.splitlines()
    found = decode(line.encode(), Comparison)
    assert (found.margin, found.interleaved, found.baseline) == (0.05, False, of(10**6))


@pytest.mark.parametrize("as_json", [False, True])
def test_what_was_left_out_is_in_the_output_and_not_among_json_lines(tmp_path, as_json):
    one, two = of(10**6), of(10**6, variant="b")
    files = write(tmp_path / "old.json", two, one, two), write(tmp_path / "new.json", one)
    result = run(*files, *["--json"] * as_json)
    told = result.stderr if as_json else result.stdout
    assert "left out: b on i of the baseline: it has no partner in the other" in told
    assert "line 3 holds the same variant" in told
    assert not as_json or len(result.stdout.splitlines()) == 1


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_called_empty(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    file = write(tmp_path / "old.json", of(10**6))
    result = run(file, tmp_path / "a.json")
    assert result.exit_code == 2
    assert "a.json is empty" in " ".join(result.output.replace("│", " ").split())


def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    result = run(tmp_path / "fifo")
    assert result.exit_code == 2
    assert "fifo is no file" in " ".join(result.output.replace("│", " ").split())


def test_other_threads_are_compared_only_if_asked_for(tmp_path):
    four = of(10**6, spec=msgspec.structs.replace(measurement().spec, threads=4))
    files = write(tmp_path / "old.json", of(10**6)), write(tmp_path / "new.json", four)
    result = run(*files)
    assert result.exit_code == 1
    assert "threads: 1 against 4" in result.output
    assert run(*files, "--anyway").exit_code == 0


@pytest.mark.parametrize("margin", ["0", "0%", "2", "-1%", "nan", "x", "100%"])
def test_a_margin_that_is_none_is_a_wrong_call(tmp_path, margin):
    file = write(tmp_path / "old.json", of(10**6))
    assert run(file, file, "--margin", margin).exit_code == 2


def test_packages_and_measurements_do_not_mix(tmp_path, packages):
    result = run(write(tmp_path / "old.json", of(10**6)), packages[0])
    assert result.exit_code == 2
    assert "not both" in result.output


def test_a_file_that_is_not_there_is_a_wrong_call(tmp_path):
    assert run(tmp_path / "nope.ferry").exit_code == 2


# Packages, here.


def test_what_is_compared_is_measured_side_by_side_and_once(packages, monkeypatch):
    asked = []

    def profiled(cases, spec, _progress):
        asked.extend((case.manifest.name, case.interpreter) for case in cases)
        return tuple(
            of(10**6 * (1 + number % 3), package_sha256=case.sha256, interpreter=case.interpreter, spec=spec)
            for number, case in enumerate(cases)
        )

    monkeypatch.setattr(module, "profile_cases", profiled)
    monkeypatch.setattr("ferryman.profiler.runner.usable_interpreters", lambda _: {"x": "1", "y": "1"})
    found = compare(packages, LocalDevice(), rounds=8)
    assert asked == [(f"add-{added}", place) for place in ("x", "y") for added in (1, 2, 3)]
    assert [(one.other.package_sha256, one.other.interpreter, round(one.ratios[0].ratio)) for one in found] == [
        (sha256_of(packages[part]), place, part + 1) for part in (1, 2) for place in ("x", "y")
    ]
    assert all(one.interleaved and one.baseline.spec.starts == 8 for one in found)


@pytest.mark.parametrize("rounds", [0, 5, 101])
def test_rounds_that_tell_nothing_are_refused(packages, rounds):
    with pytest.raises(CallerError, match="rounds must be 6 to 100"):
        compare(packages, LocalDevice(), rounds=rounds)


def test_arguments_are_checked_before_anything_runs(packages, tmp_path):
    with pytest.raises(CallerError, match="no package to compare"):
        compare([], LocalDevice())
    with pytest.raises(CallerError, match=r"files in a list, found 'a\.ferry'"):
        compare("a.ferry", LocalDevice())
    with pytest.raises(CallerError, match="margin must be"):
        compare(packages, LocalDevice(), margin=2.0)
    (tmp_path / "bad.ferry").write_bytes(b"nonsense")
    with pytest.raises(PackageError):
        compare([packages[0], tmp_path / "bad.ferry"], LocalDevice())


# Packages, on a device with an agent.


class Kitchen:
    """A device, its two slots and its agent."""

    def __init__(self, serves: str | None) -> None:
        self.slots = [serves]
        self.log: list[str] = []
        self.fails_at = 10**9

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def status(self):
        return Status(device="kitchen", online=True, package_sha256=self.slots[-1])

    def profile(self, sha256, spec, *, timeout_s):
        if len(self.log) >= self.fails_at:
            raise LinkError("gone")
        assert sha256 == self.slots[-1]
        self.log.append(f"profile {sha256[:4]} x{spec.starts}")
        one = of(10**6 * len(self.log), spec.starts, package_sha256=sha256)
        return (one, msgspec.structs.replace(one, variant="b"))

    def push(self, package, device):
        self.slots = [self.slots[-1], sha256_of(package)]
        self.log.append("push")

    def rollback(self, device):
        self.slots = [self.slots[0]]
        self.log.append("rollback")


@pytest.fixture
def kitchen(packages, monkeypatch):
    made = Kitchen(sha256_of(packages[0]))
    monkeypatch.setattr(module, "AgentClient", lambda *_: made)
    monkeypatch.setattr(module, "push", made.push)
    monkeypatch.setattr(module, "rollback", made.rollback)
    return made


def test_two_packages_take_turns_in_the_devices_slots(kitchen, packages):
    found = compare(packages[:2], KITCHEN, rounds=6)
    one, two = (f"profile {sha256_of(package)[:4]} x1" for package in packages[:2])
    assert kitchen.log == [one, "push", two, two, "rollback", one] * 3
    assert [(comparison.baseline.variant, len(comparison.other.starts)) for comparison in found] == [("v", 6), ("b", 6)]
    assert found[0].interleaved
    assert found[0].other.spec.starts == 6
    assert [part.samples[0] for part in found[0].other.starts][:2] == [3_000_000, 4_000_000]


def test_whatever_happens_the_baseline_serves_in_the_end(kitchen, packages):
    kitchen.fails_at = 8
    with pytest.raises(LinkError):
        compare(packages[:2], KITCHEN, rounds=6)
    assert kitchen.log[-1] == "rollback"
    assert kitchen.slots == [sha256_of(packages[0])]


def test_one_package_is_compared_within_itself(kitchen, packages):
    (found,) = compare(packages[:1], KITCHEN, rounds=6)
    assert (found.baseline.variant, found.other.variant) == ("v", "b")
    assert kitchen.log == [f"profile {sha256_of(packages[0])[:4]} x6"]


def test_a_device_that_serves_something_else_is_left_alone(kitchen, packages):
    kitchen.slots = ["99" * 32]
    with pytest.raises(CallerError, match="kitchen serves package 999999999999; push the baseline there first"):
        compare(packages[:2], KITCHEN)
    kitchen.slots = [None]
    with pytest.raises(CallerError, match="kitchen serves nothing"):
        compare(packages[:2], KITCHEN)
    assert kitchen.log == []


def test_a_device_has_room_for_two(kitchen, packages):
    with pytest.raises(CallerError, match="found 3"):
        compare(packages, KITCHEN)

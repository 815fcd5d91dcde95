"""ferryman_runner on this machine: what it computes, measures and refuses."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferryman.runtime import kernels
from ferryman.runtime.contracts.errors import RuntimeFault
from ferryman.runtime.contracts.measurement import Memory
from ferryman.runtime.contracts.tensor import DynamicDim
from ferryman.runtime.sessions.executorch import VERSION, open_session
from tests.support import runner
from tests.support.golden import PTE, SHARED
from tests.support.runner_artifacts import FORMS, make_forms

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(runner.why_not("x86_64")), reason=runner.why_not("x86_64")),
]
REFUSED = {"bfloat16": "package", "integer": "package", "channels_last": "package", "missing": "device"}
GOLDEN = sorted(file.stem for file in PTE.glob("*.pte") if file.stem not in REFUSED)
LINEAR = PTE / "linear.pte"


@pytest.fixture(scope="session")
def forms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forms")
    make_forms(folder)
    return folder


@pytest.fixture
def x(tmp_path):
    file = tmp_path / "x"
    file.write_bytes(np.ones(4, np.float32).tobytes())
    return file


def some_inputs(signature, rows=None):
    """Of every input; `rows`: the first size of those that vary."""
    random = np.random.default_rng(0)
    made = []
    for spec in signature.inputs:
        sizes = [size.max if isinstance(size, DynamicDim) else size for size in spec.shape]
        if rows is not None:
            sizes[0] = rows
        floats = spec.dtype.startswith("float")
        made.append((random.standard_normal(sizes) if floats else random.integers(0, 4, sizes)).astype(spec.dtype))
    return made


def same_as_python(artifact, folder, *, entry=None, threads=1, rows=None):
    with open_session(artifact, threads=threads, entry=entry) as session:
        inputs = some_inputs(session.signature, rows)
        wanted = session.run(inputs)
    words = ["--threads", str(threads), *(["--entry", entry] if entry else [])]
    found = runner.run(artifact, inputs, folder, *words, outputs=len(wanted))
    for one, other in zip(wanted, found, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_artifacts_answer_as_in_python(name, tmp_path):
    same_as_python(PTE / f"{name}.pte", tmp_path)


@pytest.mark.parametrize("rows", [1, 5])
def test_sizes_that_vary(rows, tmp_path):
    same_as_python(PTE / "dynamic.pte", tmp_path, rows=rows)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_as_in_python(forms, form, threads, tmp_path):
    same_as_python(forms / f"{form}.pte", tmp_path, threads=threads)


@pytest.mark.parametrize(("name", "entry"), [("two", "large"), ("two", "small"), ("scaled", None), ("static", None)])
def test_shared_weights_answer_as_in_python(name, entry, tmp_path):
    same_as_python(SHARED / f"{name}.pte", tmp_path, entry=entry)


def test_weights_are_packed_once_where_layers_share_them(tmp_path):
    (tmp_path / "x").write_bytes(bytes(2 * 32 * 4))
    short = ("--input", tmp_path / "x", "--seconds", "0", "--warmup-s", "0")
    assert runner.ask("profile", SHARED / "two.pte", "--entry", "large", *short)["packed_once"]
    assert not runner.ask("profile", SHARED / "scaled.pte", *short)["packed_once"]


@pytest.mark.parametrize("name", REFUSED)
def test_what_python_refuses_is_refused(name, tmp_path):
    with pytest.raises(RuntimeFault), open_session(PTE / f"{name}.pte", threads=1) as session:
        session.run(some_inputs(session.signature))
    found = runner.ask("describe", PTE / f"{name}.pte", check=False)
    assert found["error"]["party"] == REFUSED[name], found


def test_facts():
    found = runner.ask("facts")
    assert found["executorch"] == VERSION
    assert (found["kernels_version"], found["kernels_isa"]) == (kernels.VERSION, kernels.isa())
    assert (found["machine"], found["cores"]) == (os.uname().machine, os.cpu_count())
    told = subprocess.run([*runner.command("x86_64"), "--version"], capture_output=True, text=True, check=True).stdout
    assert told == f"ferryman_runner {found['runner']}\n"


def test_describe():
    found = runner.ask("describe", PTE / "dynamic.pte")
    assert found["inputs"][1] == {"dtype": "int64", "shape": [8, 4], "dynamic": True}
    with open_session(PTE / "dynamic.pte", threads=1) as session:
        assert found["planned_bytes"] == session.planned_bytes()
    assert runner.ask("describe", SHARED / "two.pte")["entries"] == ["large", "small"]
    assert runner.ask("describe", SHARED / "two.pte", "--entry", "small")["entry"] == "small"


def test_profile(x):
    found = runner.ask("profile", LINEAR, "--input", x, "--warmup-s", "0.05", "--seconds", "0.2", "--threads", "2")
    samples = found["samples_ns"]
    assert len(samples) >= 30 and min(samples) > 0 and len(found["warmup_ns"]) >= 3  # noqa: PT018
    span_ns = found["ended_monotonic_ns"] - found["started_monotonic_ns"]
    assert sum(samples) <= span_ns and 0.2e9 <= span_ns < 600e9  # noqa: PT018
    assert found["open_ns"] > 0 and found["first_run_ns"] > 0 and found["threads"] == 2  # noqa: PT018
    phases = {
        name: msgspec.convert(phase | {"type": "memory"}, Memory) for name, phase in found["memory"]["phases"].items()
    }
    assert list(phases) == ["before", "opened", "first_run", "after"]
    for name, phase in phases.items():
        assert found["memory"][f"{name}_bytes"] == phase.rss_bytes >= phase.uss_bytes > 0
    assert found["memory"]["peak_bytes"] >= max(phase.rss_bytes for phase in phases.values())
    for state in (found["state_before"], found["state_after"]):
        assert set(state) == {"clocks", "zones"}
        for part in state.values():
            assert isinstance(part, list) or part["unavailable"]
    assert "stopped" not in found


def test_numbers_of_runs(x):
    def runs(*words):
        return len(runner.ask("profile", LINEAR, "--input", x, "--warmup-s", "0", *words)["samples_ns"])

    assert runs("--seconds", "0") == 30
    assert runs("--seconds", "0", "--runs-min", "7") == 7
    assert runs("--seconds", "60", "--runs-max", "11") == 11
    assert runs("--seconds", "0.1", "--window", "--runs-max", "2") > 2


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_profile_with_what_was_measured(x, number):
    command = [*runner.command("x86_64"), "profile", LINEAR, "--input", x, "--warmup-s", "0", "--seconds", "0.3"]
    command += ["--runs-min", "1000000"]
    # What is ignored where tests run (nohup) the runner ignores as well.
    with subprocess.Popen(["env", "--default-signal", *command], stdout=subprocess.PIPE) as process:
        status = Path(f"/proc/{process.pid}/status")
        while not catches(status.read_text(), number):
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    found = runner.answer(subprocess.CompletedProcess(command, process.returncode, output, b""))
    assert found.get("stopped") == number.name or "stopped" in found["error"]["message"]


def catches(status, number):
    (mask,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return int(mask, 16) >> (number - 1) & 1


def test_nothing_goes_on_for_longer_than_allowed(x):
    many = [*runner.command("x86_64"), "profile", LINEAR, "--input", x, "--seconds", "0.5", "--limit-s", "4"]
    with subprocess.Popen(many, stdout=subprocess.PIPE) as process:  # whose output nobody reads
        assert process.wait(60) == 1
        process.stdout.close()


def test_outputs_that_cannot_be_written(x, tmp_path):
    def error(output, **options):
        return runner.ask("run", LINEAR, "--input", x, "--output", output, check=False, **options)["error"]

    assert error("/dev/full")["party"] == "device"
    assert "No space left" in error("/dev/full")["message"]
    small = tmp_path / "small"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8, 8))  # noqa: E731
    assert error(small, preexec_fn=limit)["party"] == "device"
    assert not small.exists()
    assert error(tmp_path / "none" / "out")["party"] == "caller"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert error(pipe)["party"] == "caller"
    copy = tmp_path / "copy.pte"
    copy.write_bytes(LINEAR.read_bytes())
    assert "overwrite" in runner.ask("run", copy, "--input", x, "--output", copy, check=False)["error"]["message"]
    assert copy.read_bytes() == LINEAR.read_bytes()


@pytest.mark.parametrize("how", ["exec >&-", "exec >/dev/full", "exec 0<&- 1>&- 2>&-"])
def test_a_closed_or_full_standard_output(how, x, tmp_path):
    script = f'{how}; exec "$@"'
    words = ["run", LINEAR, "--input", x, "--output", tmp_path / "out"]
    done = subprocess.run(
        ["sh", "-c", script, "sh", *runner.command("x86_64"), *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 1
    assert "standard output" in done.stderr or "2>&-" in how
    assert (tmp_path / "out").stat().st_size == 16


WRONG = {
    "no such file": ("run", LINEAR, "--input", "/none", "--output", "{out}"),
    "directory": ("run", LINEAR, "--input", "/tmp", "--output", "{out}"),
    "device": ("run", LINEAR, "--input", "/dev/zero", "--output", "{out}"),
    "no input": ("run", LINEAR, "--output", "{out}"),
    "no output": ("run", LINEAR, "--input", "{x}"),
    "two outputs": ("run", LINEAR, "--input", "{x}", "--output", "{out}", "{out}"),
    "sizes": ("run", LINEAR, "--input", "{x}:4", "--output", "{out}"),
    "too large": ("run", PTE / "dynamic.pte", "--input", "{x}:9x4", "{x}:9x4", "{x}:9", "--output", "{out}", "a", "b"),
    "overflow": ("run", LINEAR, "--input", "{x}:99999999999x4", "--output", "{out}"),
    "bytes": ("run", PTE / "same.pte", "--input", "{x}", "--output", "{out}", "{out}", "{out}"),
    "entry": ("run", LINEAR, "--entry", "none", "--input", "{x}", "--output", "{out}"),
    "threads": ("run", LINEAR, "--threads", "0", "--input", "{x}", "--output", "{out}"),
    "samples": ("profile", LINEAR, "--input", "{x}", "--runs-max", "1000001"),
    "seconds": ("profile", LINEAR, "--input", "{x}", "--seconds", "nan"),
    "order": ("profile", LINEAR, "--input", "{x}", "--runs-min", "9", "--runs-max", "3"),
    "artifact": ("run", "/dev/zero", "--input", "{x}", "--output", "{out}"),
    "nothing": (),
    "unknown": ("measure",),
    "more": ("facts", "all"),
}


@pytest.mark.parametrize("words", WRONG.values(), ids=WRONG)
def test_the_caller_is_told(words, x, tmp_path):
    filled = [str(word).format(x=x, out=tmp_path / "out") for word in words]
    assert runner.ask(*filled, check=False)["error"]["party"] == "caller"
    assert not (tmp_path / "out").exists()


def test_an_instruction_set_that_is_not_there():
    assert "scalar" in runner.ask("facts", env={"FERRYMAN_KERNELS_ISA": "none"}, check=False)["error"]["message"]
    assert runner.ask("facts", env={"FERRYMAN_KERNELS_ISA": "scalar"})["kernels_isa"] == "scalar"


def said(command):
    """Its answer; None: a signal ended it, as ExecuTorch does on some damaged files."""
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    return None if done.returncode < 0 else runner.answer(done)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_truncated_artifact_is_the_packages_fault(tmp_path, data):
    whole = data.draw(st.sampled_from([*PTE.glob("*.pte"), *SHARED.glob("*.pte")])).read_bytes()
    broken = tmp_path / "broken.pte"
    broken.write_bytes(whole[: data.draw(st.integers(0, len(whole) // 2))])
    assert runner.ask("describe", broken, check=False)["error"]["party"] == "package"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_an_altered_artifact_never_hangs(tmp_path, x, data):
    whole = bytearray(data.draw(st.sampled_from(sorted(PTE.glob("*.pte")))).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.sampled_from([0, 1, 127, 128, 255]))
    broken = tmp_path / "broken.pte"
    broken.write_bytes(whole)
    said([*runner.command("x86_64"), "run", broken, "--input", x, "--output", tmp_path / "out", "--limit-s", "5"])


COMMANDS = ("facts", "describe", "run", "profile", "--help", "--version", "")
OPTIONS = ("--entry", "--input", "--output", "--threads", "--window", "--runs-min", "--runs-max")
VALUES = ("forward", "-", "--", "-1", "1", "1e9", "{x}", "{x}:1x4", "{out}", "/", "x:", ":", ":1", "9" * 30)
WORDS = st.one_of(
    st.sampled_from((*COMMANDS, *OPTIONS, *VALUES, str(LINEAR), str(PTE / "scalar.pte"))),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORDS, max_size=9))
def test_any_words_get_an_answer(tmp_path, x, words):
    filled = [word.replace("{x}", str(x)).replace("{out}", str(tmp_path / "out")) for word in words]
    quick = ["--limit-s", "20"] if filled[:1] != ["facts"] else []
    timing = ["--seconds", "0.01", "--warmup-s", "0"] if filled[:1] == ["profile"] else []
    done = subprocess.run(
        [*runner.command("x86_64"), *filled, *quick, *timing],
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    if done.stdout.startswith(b"ferryman_runner"):  # --help, --version
        assert done.returncode == 0
    else:
        runner.answer(done)


def test_bytes_that_are_no_text_are_escaped():
    done = subprocess.run(
        [*runner.command("x86_64"), b'\xff"\\\n\xed\xa0\x80\xf0\x9f\x98\x80'], capture_output=True, check=False
    )
    assert '�"\\\n���\U0001f600' in json.loads(done.stdout)["error"]["message"]

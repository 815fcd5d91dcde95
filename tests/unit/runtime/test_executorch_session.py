from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ferryman.runtime import kernels
from ferryman.runtime.contracts.errors import CallerError, RuntimeFault
from ferryman.runtime.contracts.tensor import DynamicDim
from ferryman.runtime.session import installed, open_session
from ferryman.runtime.sessions import executorch

MODELS = Path(__file__).parents[2] / "golden" / "pte"


def model(name, *, threads=1, etdump=False):
    return executorch.open_session(MODELS / f"{name}.pte", threads=threads, etdump=etdump)


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


def dynamic_inputs(batch):
    return [ones(batch, 4), ones(batch, 4, dtype="int64"), ones(batch, dtype="bool")]


def test_the_front_door_finds_it():
    assert installed("executorch") == {"executorch": "1.5.1"}
    with open_session(MODELS / "linear.pte", "executorch") as session:
        assert (session.interpreter, session.version) == ("executorch", "1.5.1")


def test_a_delegated_model_computes_what_eager_does():
    with model("linear") as session:
        (out,) = session.run([np.array([[1, 2, 3, 4]], "float32")])
    np.testing.assert_array_equal(out, [[6, 6, 6, 6]])  # weights 0.5, bias 1


def test_lists_will_do_for_arrays():
    with model("linear") as session:
        (out,) = session.run([[[1, 2, 3, 4]]])
    np.testing.assert_array_equal(out, [[6, 6, 6, 6]])


def test_each_call_sees_its_own_inputs_and_leaves_earlier_outputs_alone():
    with model("linear") as session:
        first = session.run([ones(1, 4)])[0]
        second = session.run([ones(1, 4) * 2])[0]
    np.testing.assert_array_equal(first, ones(1, 4) * 3)
    np.testing.assert_array_equal(second, ones(1, 4) * 5)
    assert first.flags.writeable


def test_several_inputs_and_outputs_of_other_dtypes():
    with model("dynamic") as session:
        floats, ints, bools = session.run(dynamic_inputs(3))
    np.testing.assert_array_equal(floats, ones(3, 4) * 4)
    np.testing.assert_array_equal(ints, ones(3, 4, dtype="int64") * 2)
    np.testing.assert_array_equal(bools, [False] * 3)
    assert (floats.dtype, ints.dtype, bools.dtype) == ("float32", "int64", "bool")


def test_every_dtype_goes_in_and_comes_out():
    dtypes = ("uint8", "int8", "int16", "int32", "float16", "float64")
    with model("dtypes") as session:
        assert tuple(spec.dtype for spec in session.signature.inputs) == dtypes
        outputs = session.run([ones(2, dtype=dtype) for dtype in dtypes])
    assert tuple(out.dtype.name for out in outputs) == dtypes
    for out in outputs:
        np.testing.assert_array_equal(out, [2, 2])


def test_dynamic_sizes_go_up_and_down_within_bounds():
    with model("dynamic") as session:
        spec = session.signature.inputs[0]
        assert spec.shape[0] == DynamicDim(symbol="input_0_0", min=1, max=8)
        for batch in (8, 1, 5, 8, 2):
            outputs = session.run(dynamic_inputs(batch))
            assert [out.shape for out in outputs] == [(batch, 4), (batch, 4), (batch,)]
            np.testing.assert_array_equal(outputs[0], ones(batch, 4) * 4)


def test_over_the_bounds_is_the_callers_error_and_does_no_harm():
    with model("dynamic") as session:
        with pytest.raises(CallerError, match=r"1\.\.8.*found shape \[9, 4\]"):
            session.run(dynamic_inputs(9))
        assert session.run(dynamic_inputs(2))[0].shape == (2, 4)


def test_sizes_that_disagree_are_executorchs_error_and_do_no_harm():
    with model("dynamic") as session:
        with pytest.raises(RuntimeFault, match=r"Error::"):
            session.run([ones(3, 3), ones(2, 4, dtype="int64"), ones(2, dtype="bool")])
        np.testing.assert_array_equal(session.run(dynamic_inputs(2))[0], ones(2, 4) * 4)


def test_inputs_that_are_strided_read_only_or_narrower_work():
    with model("linear") as session:
        strided = np.ones((1, 8), "float32")[:, ::2]
        frozen = np.frombuffer(ones(1, 4).tobytes(), "float32").reshape(1, 4)
        for array in (strided, frozen):
            np.testing.assert_array_equal(session.run([array])[0], ones(1, 4) * 3)
    with model("embedding") as session:
        assert session.run([np.zeros(2, "int32")])[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "expected 1 inputs"),
        ([ones(1, 4)] * 2, "expected 1 inputs"),
        ([ones(2, 4)], r"found shape \[2, 4\]"),
        ([ones(4)], r"found shape \[4\]"),
        ([ones(1, 4, dtype="float64")], "found dtype float64"),
    ],
)
def test_wrong_inputs_are_the_callers_error(inputs, message):
    with model("linear") as session, pytest.raises(CallerError, match=message):
        session.run(inputs)


def test_inputs_and_outputs_left_out_of_the_memory_plan():
    with model("unplanned") as session:
        for factor in (2, 3):
            total, product = session.run([ones(3, 4) * factor, ones(3, 4) * 2])
            np.testing.assert_array_equal(total, ones(3, 4) * (factor + 2))
            np.testing.assert_array_equal(product, ones(3, 4) * (factor * 2))


def test_outputs_that_are_an_input_or_a_constant_or_have_no_dimensions():
    with model("same") as session:
        same, constant, more = session.run([ones(3, 4) * 7])
    np.testing.assert_array_equal(same, ones(3, 4) * 7)
    np.testing.assert_array_equal(constant, [0, 1, 2])
    np.testing.assert_array_equal(more, ones(3, 4) * 8)
    with model("scalar") as session:
        (total,) = session.run([ones(3, 4)])
    assert (total.shape, total) == ((), 12)


def test_an_output_that_a_branch_moves():
    with model("branch") as session:
        for value, expected in ((7, 8), (-7, -14), (7, 8)):
            np.testing.assert_array_equal(session.run([ones(3, 4) * value])[0], ones(3, 4) * expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("integer", "input 1 is of kind Int, and only tensors"),
        ("channels_last", "input 0 is not in default dimension order"),
        ("bfloat16", "found ExecuTorch's dtype number 15"),
        ("missing", r"Error::OperatorMissing[\s\S]*ferryman_test::twice.out"),
        ("no_such_file", r"Error::AccessFailed[\s\S]*No such file"),
    ],
)
def test_artifacts_that_cannot_be_carried_say_why(name, message):
    with pytest.raises(RuntimeFault, match=message) as caught:
        model(name)
    assert f"{name}.pte" in str(caught.value)


def test_a_kernel_that_refuses_is_an_error_with_its_words_and_does_no_harm():
    with model("embedding") as session:
        with pytest.raises(RuntimeFault, match=r"Error::InvalidArgument[\s\S]*Index 4000 out of range"):
            session.run([np.array([0, 4000])])
        assert session.run([np.array([0, 3])])[0].shape == (2, 4)


@pytest.mark.parametrize("name", ["linear", "dynamic", "branch"])
def test_truncated_files_are_refused(name, tmp_path):
    whole = (MODELS / f"{name}.pte").read_bytes()
    path = tmp_path / "cut.pte"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(RuntimeFault, match="Error::"):
            executorch.open_session(path, threads=1)


def test_a_fatal_check_inside_executorch_is_an_error_and_not_the_end_of_the_process(tmp_path):
    data = bytearray((MODELS / "branch.pte").read_bytes())
    path = tmp_path / "altered.pte"
    data[840] ^= 1  # which value the branch looks at: now it is not a truth value
    path.write_bytes(data)
    with executorch.open_session(path, threads=1) as session:
        with pytest.raises(RuntimeFault, match=r"fatal check[\s\S]*EValue is not a Bool"):
            session.run([ones(3, 4)])
        with pytest.raises(RuntimeFault, match="open it again"):
            session.run([ones(3, 4)])
    test_an_output_that_a_branch_moves()


def test_log_lines_reach_logging(caplog):
    with caplog.at_level(logging.DEBUG, "ferryman.executorch"), pytest.raises(RuntimeFault):
        model("missing")
    assert ("ferryman.executorch", logging.ERROR) in {(r.name, r.levelno) for r in caplog.records}
    assert any("Missing operator" in record.message for record in caplog.records)


def test_first_use_writes_nothing_to_stderr():
    code = (
        "import sys; from pathlib import Path; from ferryman.runtime.sessions.executorch import open_session;"
        "open_session(Path(sys.argv[1]), threads=2).close();"
        "assert not {'torch', 'executorch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, MODELS / "linear.pte"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_sessions_share_a_thread_pool_of_one_size():
    with model("linear", threads=2) as two, model("linear", threads=1) as one, model("linear", threads=2) as other:
        results = [session.run([ones(1, 4)])[0] for session in (two, one, other)]
        with pytest.raises(CallerError, match="hold it at 2 threads"):
            model("linear", threads=3)
    for result in results:
        np.testing.assert_array_equal(result, ones(1, 4) * 3)
    with model("linear", threads=3) as three:
        np.testing.assert_array_equal(three.run([ones(1, 4)])[0], ones(1, 4) * 3)


def test_threads_below_one_are_the_callers_error():
    with pytest.raises(CallerError, match="at least 1, found 0"):
        model("linear", threads=0)


def test_closing_twice_does_nothing_and_use_after_it_is_an_error():
    session = model("linear", etdump=True)
    session.close()
    session.close()
    with pytest.raises(CallerError, match="closed"):
        session.run([ones(1, 4)])
    with pytest.raises(CallerError, match="closed"):
        session.etdump()


def test_etdump_holds_the_runs_since_the_last_call():
    with model("linear", etdump=True) as session:
        sizes = []
        for runs in (1, 5, 1):
            for _ in range(runs):
                session.run([ones(1, 4)])
            dump = session.etdump()
            assert dump[8:12] == b"ED00"  # the identifier of the format, after the size
            sizes.append(len(dump))
        assert sizes[1] > sizes[0]
        assert sizes[2] < sizes[1]


def test_etdump_without_the_switch_or_a_run_is_an_error():
    with model("linear") as session, pytest.raises(RuntimeFault, match="without etdump"):
        session.etdump()


def resident_kib():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    raise AssertionError


def growth_kib(step, times):
    for _ in range(times // 10):
        step()
    before = resident_kib()
    for _ in range(times):
        step()
    return resident_kib() - before


def test_hundred_thousand_runs_leave_no_memory_behind():
    with model("linear") as session:
        x = ones(1, 4)
        assert growth_kib(lambda: session.run([x]), 100_000) < 512


def test_opening_failing_and_profiling_leave_no_memory_behind(monkeypatch):
    monkeypatch.setattr(executorch._log, "propagate", False)  # pytest keeps what is logged

    def cycle():
        with model("dynamic", etdump=True) as session:
            session.run(dynamic_inputs(2))
            session.etdump()
            with pytest.raises(RuntimeFault):
                session.run([ones(3, 3), ones(2, 4, dtype="int64"), ones(2, dtype="bool")])
        with pytest.raises(RuntimeFault):
            model("missing")

    assert growth_kib(cycle, 500) < 1024


def test_an_instruction_set_that_is_not_here_is_the_callers_fault():
    code = "from ferryman.runtime.sessions import executorch; executorch.load()"
    environment = os.environ | {kernels.ISA: "sve9"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "CallerError: FERRYMAN_KERNELS_ISA is 'sve9'" in done.stderr

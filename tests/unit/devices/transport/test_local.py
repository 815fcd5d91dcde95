from __future__ import annotations

import sys

import pytest

from ferryman.devices.transport.base import CHUNK_BYTES, OUTPUT_MAX_BYTES
from ferryman.devices.transport.local import LocalTransport
from ferryman.runtime.contracts.errors import DeviceError, RequestTimeout


def test_put_copies_and_counts(tmp_path):
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * (CHUNK_BYTES // 128))
    seen = []
    with LocalTransport() as transport:
        transport.put(source, str(tmp_path / "target"), lambda *step: seen.append(step))
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert seen == [(done, 2 * CHUNK_BYTES) for done in (0, CHUNK_BYTES, 2 * CHUNK_BYTES)]


def test_a_folder_that_is_not_there_is_the_devices_fault(tmp_path):
    (tmp_path / "source").touch()
    with pytest.raises(DeviceError, match="no/target"):
        LocalTransport().put(tmp_path / "source", str(tmp_path / "no" / "target"), lambda _done, _total: None)


def test_run_returns_what_the_program_said():
    ended = LocalTransport().run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout_s=10)
    assert (ended.exit_status, ended.stdout, ended.stderr) == (3, b"out\n", b"err\n")
    assert LocalTransport().run(["no-such-program"], timeout_s=10).exit_status == 127


def test_a_program_that_takes_too_long_is_ended():
    with pytest.raises(RequestTimeout, match="sleep on this machine"):
        LocalTransport().run(["sleep", "30"], timeout_s=0.1)


@pytest.mark.parametrize("command", ["yes", "yes >&2"])
def test_a_program_that_says_too_much_is_the_devices_fault(command):
    with pytest.raises(DeviceError, match=r"`sh` on this machine said more than 4,194,304 bytes"):
        LocalTransport().run(["sh", "-c", command], timeout_s=60)


def test_a_program_may_say_much_on_both_ends():
    code = f"import sys; sys.stderr.write('e' * {OUTPUT_MAX_BYTES}); sys.stdout.write('o' * {OUTPUT_MAX_BYTES})"
    ended = LocalTransport().run([sys.executable, "-c", code], timeout_s=60)
    assert (len(ended.stdout), len(ended.stderr)) == (OUTPUT_MAX_BYTES, OUTPUT_MAX_BYTES)

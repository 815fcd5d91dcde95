from __future__ import annotations

import errno
import fcntl
import gc
import os
import time
from pathlib import Path

import pytest

from ferryman.runtime import cache as caches
from ferryman.runtime.cache import Cache, Kept, alone_in, keep, memory
from ferryman.runtime.contracts.errors import RuntimeFault
from tests.support.disk import small_disk

VERSION = "runtime 1.0"
PACKED = os.urandom(10_000)


class Runtime:
    """Packs an artifact: its bytes, and PACKED."""

    def __init__(self, artifact):
        self.artifact = artifact
        self.fills = 0

    def __call__(self, path):
        self.fills += 1
        write(path, self.artifact.read_bytes() + PACKED)
        return True


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "model.pte"
    path.write_bytes(b"model 1")
    return path


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def runtime(artifact):
    return Runtime(artifact)


@pytest.fixture(autouse=True)
def long_ago(monkeypatch):
    """Have files count as changed long ago: when they were is nothing that one could set."""
    monkeypatch.setattr(caches, "_RACY_NS", 0)


def write(path, data):
    """As a runtime does, into the very file."""
    with Path(path).open("r+b") as file:
        file.write(data)


def use(folder, artifact, runtime, *, sha256=None, version=VERSION, shared=False):
    """What became of it, and the packed bytes."""
    kept = keep(Cache(folder, sha256), artifact, version, runtime, shared=shared)
    if kept is None:
        return "off", None
    try:
        return kept.use, Path(kept.path).read_bytes()
    finally:
        os.close(kept.descriptor)


def files(folder):
    return sorted(path for path in folder.iterdir() if path.suffix == ".packed")


def test_packed_weights_are_found_again(folder, artifact, runtime):
    assert use(folder, artifact, runtime) == ("built", b"model 1" + PACKED)
    assert use(folder, artifact, runtime) == ("warm", b"model 1" + PACKED)
    assert runtime.fills == 1
    assert [path.suffix for path in folder.iterdir()] == [".packed"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_the_same_path_with_another_model_of_the_same_size_and_time(folder, artifact, runtime):
    use(folder, artifact, runtime)
    times = artifact.stat()
    artifact.write_bytes(b"model 2")
    os.utime(artifact, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert artifact.stat().st_mtime_ns == times.st_mtime_ns
    assert use(folder, artifact, runtime) == ("built", b"model 2" + PACKED)


def test_the_same_path_with_another_file_moved_there(folder, artifact, runtime, tmp_path):
    use(folder, artifact, runtime)
    times = artifact.stat()
    other = tmp_path / "other"
    other.write_bytes(b"model 3")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(artifact)
    assert use(folder, artifact, runtime) == ("built", b"model 3" + PACKED)


def test_an_artifact_changed_a_moment_ago_is_not_trusted(folder, artifact, runtime, monkeypatch):
    monkeypatch.setattr(caches, "_RACY_NS", 2_000_000_000)
    artifact.write_bytes(b"model 4")
    assert use(folder, artifact, runtime) == ("off", None)
    assert not folder.exists()
    future = time.time_ns() + 10**12
    os.utime(artifact, ns=(future, future))
    assert use(folder, artifact, runtime) == ("off", None)
    assert use(folder, artifact, runtime, sha256="ab" * 32)[0] == "built"  # whoever knows the hash has just read it


def test_an_artifact_changed_while_it_is_packed(folder, artifact, runtime):
    def slow(path):
        artifact.write_bytes(b"model 5")
        return runtime(path)

    assert use(folder, artifact, slow) == ("off", None)
    assert files(folder) == []


def test_an_artifact_changed_after_it_was_looked_up(folder, artifact, runtime):
    kept = keep(Cache(folder), artifact, VERSION, runtime)
    assert caches.is_of(kept, artifact)
    artifact.write_bytes(b"model 6")
    assert not caches.is_of(kept, artifact)
    os.close(kept.descriptor)


def test_a_known_hash_finds_them_wherever_the_file_is(folder, artifact, runtime, tmp_path):
    moved = tmp_path / "moved"
    use(folder, artifact, runtime, sha256="ab" * 32)
    artifact.rename(moved)
    assert use(folder, moved, runtime, sha256="ab" * 32)[0] == "warm"
    assert use(folder, moved, Runtime(moved), sha256="cd" * 32)[0] == "built"


def test_another_runtime_or_processor_packs_anew(folder, artifact, runtime, monkeypatch, tmp_path):
    use(folder, artifact, runtime)
    assert use(folder, artifact, runtime, version="runtime 1.1")[0] == "built"
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags: sse2 avx2\ncpu MHz: 2000\n")
    monkeypatch.setattr(caches, "CPUINFO", cpuinfo)
    assert use(folder, artifact, runtime)[0] == "built"
    cpuinfo.write_text("processor: 0\nflags: sse2 avx2\ncpu MHz: 3000\n")
    assert use(folder, artifact, runtime)[0] == "warm"
    cpuinfo.write_text("processor: 0\nflags: sse2\ncpu MHz: 3000\n")
    assert use(folder, artifact, runtime)[0] == "built"
    monkeypatch.setattr(caches, "processor", lambda: 7)  # of which the kernel knows nothing
    assert use(folder, artifact, runtime)[0] == "built"
    assert runtime.fills == 5


@pytest.mark.parametrize("at", [0, 5, -1])
def test_one_flipped_bit_is_noticed(folder, artifact, runtime, at, caplog):
    use(folder, artifact, runtime)
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert use(folder, artifact, runtime) == ("built", b"model 1" + PACKED)
    assert use(folder, artifact, runtime)[0] == "warm"
    assert "damaged" in caplog.text


@pytest.mark.parametrize("length", [0, 1, 4096, 10_006])
def test_a_file_cut_short_or_grown_is_noticed(folder, artifact, runtime, length):
    use(folder, artifact, runtime)
    (path,) = files(folder)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:length])
    assert use(folder, artifact, runtime) == ("built", b"model 1" + PACKED)
    (path,) = files(folder)
    with path.open("ab") as file:
        file.write(b"\0")
    assert use(folder, artifact, runtime) == ("built", b"model 1" + PACKED)


def test_what_others_may_write_is_not_trusted(folder, artifact, runtime):
    use(folder, artifact, runtime)
    (path,) = files(folder)
    path.chmod(0o666)
    assert use(folder, artifact, runtime)[0] == "built"
    (path,) = files(folder)
    target = folder / "elsewhere"
    path.rename(target)
    path.symlink_to(target)
    assert use(folder, artifact, runtime)[0] == "built"


def test_a_folder_in_the_place_of_a_file(folder, artifact, runtime):
    use(folder, artifact, runtime)
    (path,) = files(folder)
    path.unlink()
    path.mkdir()
    assert use(folder, artifact, runtime)[0] in ("memory", "off")


def test_a_pipe_in_the_place_of_a_file(folder, artifact, runtime):
    use(folder, artifact, runtime)
    (path,) = files(folder)
    path.unlink()
    os.mkfifo(path)  # opening it would wait for a writer
    assert use(folder, artifact, runtime)[0] == "built"


def test_answers_that_differ_are_remembered(folder, artifact, runtime):
    def differs(path):
        runtime(path)
        return False

    assert use(folder, artifact, differs) == ("off", None)
    assert [path.suffix for path in folder.iterdir()] == [".none"]
    assert use(folder, artifact, differs) == ("off", None)
    assert runtime.fills == 1
    assert use(folder, artifact, runtime, version="runtime 1.1")[0] == "built"


def test_shared_weights_that_cannot_be_kept_are_packed_once_in_memory(folder, artifact, runtime, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    assert use(tmp_path / "file" / "cache", artifact, runtime, shared=True) == ("memory", b"")
    monkeypatch.setattr(caches, "_RACY_NS", 2_000_000_000)
    artifact.touch()
    assert use(folder, artifact, runtime, shared=True) == ("memory", b"")


def test_shared_weights_with_which_answers_differ_are_not_packed_once(folder, artifact):
    for _ in range(2):
        assert use(folder, artifact, lambda _: False, shared=True) == ("off", None)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "no"), RuntimeFault("no"), ValueError("no")])
def test_a_runtime_that_fails_leaves_nothing(folder, artifact, error, caplog):
    def fails(_):
        raise error

    gc.collect()  # what other tests left
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert use(folder, artifact, fails) == ("off", None)
    assert list(folder.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert "are not kept" in caplog.text


def test_a_full_disk(tmp_path, artifact, caplog):
    """What was packed is used, from memory; nothing half-written stays."""

    def large(path):
        write(path, bytes(2 << 20))
        return True

    with small_disk(tmp_path / "disk") as disk:
        use_, packed = use(disk / "cache", artifact, large)
        assert (use_, len(packed)) == ("memory", 2 << 20)
        assert list((disk / "cache").iterdir()) == []
        assert "cannot be written" in caplog.text
        (disk / "filler").write_bytes(bytes((1 << 20) - 8192))
        artifact.write_bytes(bytes(1 << 16))
        assert use(disk / "cache", artifact, large) == ("off", None)
        assert "little room" in caplog.text


def test_a_device_with_little_memory(folder, artifact, runtime, monkeypatch, tmp_path, caplog):
    """Packing must not bring on the kernel's killer, which would come at the next start again."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  1000 kB\nMemAvailable:     64 kB\n")
    monkeypatch.setattr(caches, "_MEMINFO", meminfo)
    assert use(folder, artifact, runtime)[0] == "built"
    artifact.write_bytes(bytes(17 << 10))
    assert use(folder, artifact, runtime) == ("off", None)
    assert "little memory" in caplog.text


def test_a_folder_that_cannot_be_written(tmp_path, artifact, runtime, caplog):
    (tmp_path / "file").write_text("no folder")
    assert use(tmp_path / "file" / "cache", artifact, runtime) == ("off", None)
    assert "not kept" in caplog.text
    assert runtime.fills == 0
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    if os.geteuid() == 0:
        assert use(folder, artifact, runtime)[0] == "built"
    else:
        assert use(folder, artifact, runtime) == ("off", None)


def test_those_not_used_for_longest_are_swept(folder, artifact, runtime, monkeypatch):
    monkeypatch.setattr(caches, "_FILES_MAX", 3)
    for number in range(3):
        assert use(folder, artifact, runtime, version=f"runtime {number}")[0] == "built"
        (newest,) = set(files(folder)) - {path for path in files(folder) if path.stat().st_mtime < 1000}
        os.utime(newest, (number, number))
    assert use(folder, artifact, runtime, version="runtime 0")[0] == "warm"  # used now
    assert use(folder, artifact, runtime, version="runtime 3")[0] == "built"
    assert len(files(folder)) == 3
    assert use(folder, artifact, runtime, version="runtime 0")[0] == "warm"
    assert use(folder, artifact, runtime, version="runtime 1")[0] == "built"


def test_bytes_are_bounded_too(folder, artifact, runtime, monkeypatch):
    monkeypatch.setattr(caches, "_BYTES_MAX", 15_000)
    for number in range(3):
        use(folder, artifact, runtime, version=f"runtime {number}")
    assert len(files(folder)) == 1
    assert use(folder, artifact, runtime, version="runtime 2")[0] == "warm"


def test_what_dead_writers_left_goes_and_what_living_ones_write_stays(folder, artifact, runtime):
    folder.mkdir()
    dead, living, foreign = folder / ".a.part", folder / ".b.part", folder / "notes.txt"
    for path in (dead, living, foreign):
        path.write_text("x")
    with living.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        use(folder, artifact, runtime)
    assert not dead.exists()
    assert living.exists()
    assert foreign.exists()


def test_nothing_stays_locked(folder, artifact, runtime):
    """ExecuTorch takes a lock for a writer."""
    for _ in range(2):
        kept = keep(Cache(folder), artifact, VERSION, runtime)
        with Path(kept.path).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(kept.descriptor)


def test_only_one_is_alone_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "_LOCK_S", 0.05)
    with alone_in(tmp_path), pytest.raises(BlockingIOError), alone_in(tmp_path):
        pytest.fail("two at once")
    with alone_in(tmp_path):
        pass


def test_a_file_in_memory():
    kept = memory()
    assert kept == Kept(kept.descriptor, "memory")
    assert os.fstat(kept.descriptor).st_size == 0
    os.close(kept.descriptor)

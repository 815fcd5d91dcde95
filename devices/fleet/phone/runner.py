"""The native runner: what runs artifacts where there is no Python; its bundle, and what it is asked."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import shlex
import struct
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ferryman.devices.fleet.phone.phone import COMMAND_S, Phone
from ferryman.devices.fleet.phone.store import PhoneStore
from ferryman.devices.transport.base import CompletedCommand, Progress
from ferryman.runtime.contracts.errors import CallerError, DeviceError, RuntimeCrash, WireError, from_wire
from ferryman.runtime.contracts.measurement import Count, Int64, Memory
from ferryman.runtime.contracts.numbers import Bytes, Size, Small, Took, Version
from ferryman.runtime.contracts.record import Record, Unavailable, decode
from ferryman.runtime.isolated import describe_end

VARIABLE = "FERRYMAN_RUNNER"
PROGRAM = "ferryman_runner"
ABIS = {"aarch64": "arm64-v8a", "x86_64": "x86_64"}
"""Machine, as the kernel and file names call it -> as Android does."""
_MACHINES = {183: "aarch64", 62: "x86_64"}
"""e_machine of an ELF header (System V ABI)."""
_ELF = struct.Struct("<4s14xH")
_CLOCK = re.compile(r"\d{1,12}\.\d{6}", re.ASCII)
_BUNDLE_MAX_BYTES = 256 << 20
_HASH_CHARS = 16
_OUTPUT_MAX_BYTES = 32 << 20
"""A million durations."""
_MARGIN_S = 5.0
"""A runner ends itself, in its own words, before nobody waits for it any more."""
R = TypeVar("R", bound=Record)


class RunnerFacts(Record):
    """What the runner says of itself and the phone."""

    runner: Version
    """Of ferryman it was built from."""
    executorch: Version
    kernels_version: Small
    """Of ferryman's own operators."""
    kernels_isa: Version
    machine: Version
    cores: Small


class Output(Record):
    """One of a run."""

    dtype: str
    shape: tuple[Size, ...]


class Ran(Record):
    """Answer to `run`."""

    open_ns: Took
    run_ns: Took
    outputs: tuple[Output, ...]


class Phase(Record):
    """Memory of the runner's process at the end of a phase; or why there is none."""

    rss_bytes: Bytes = 0
    pss_bytes: Bytes = 0
    uss_bytes: Bytes = 0
    peak_rss_bytes: Bytes = 0
    anonymous_bytes: Bytes = 0
    file_bytes: Bytes = 0
    unavailable: str = ""

    def memory(self) -> Memory | Unavailable:
        """As measurements have it."""
        if self.unavailable:
            return Unavailable(reason=self.unavailable)
        return Memory(
            rss_bytes=self.rss_bytes,
            pss_bytes=self.pss_bytes,
            uss_bytes=self.uss_bytes,
            peak_rss_bytes=self.peak_rss_bytes,
            anonymous_bytes=self.anonymous_bytes,
            file_bytes=self.file_bytes,
        )


class Phases(Record):
    """Before the artifact is opened, after that, after the first run, and after the last."""

    before: Phase
    opened: Phase
    first_run: Phase
    after: Phase


class Held(Record):
    """What the process held."""

    phases: Phases


class Profiled(Record):
    """Answer to `profile`."""

    open_ns: Took
    first_run_ns: Took
    warmup_ns: tuple[Took, ...]
    samples_ns: tuple[Took, ...]
    started_boottime_ns: Count
    ended_boottime_ns: Count
    memory: Held
    packed_once: bool = False


class Described(Record):
    """Answer to `describe`; of more, what is used here."""

    entries: tuple[str, ...]
    planned_bytes: Int64
    """For activations; negative where ExecuTorch does not tell."""


@dataclass(frozen=True)
class Bundle:
    """A runner for one machine, unpacked here."""

    folder: Path
    files: dict[str, int]
    """Path within it -> bytes."""
    hashes: dict[str, str]
    machine: str

    @property
    def name(self) -> str:
        """The same for the same files."""
        told = "".join(f"{path} {self.hashes[path]}\n" for path in sorted(self.files))
        return hashlib.sha256(told.encode()).hexdigest()[:_HASH_CHARS]


def find_bundle(named: Path | None, machine: str) -> Path:
    """The file that is named, that FERRYMAN_RUNNER names, or that `make` leaves in dist.

    Raises:
        CallerError: there is none; the message says how to make one.
    """
    said = named or (Path(found) if (found := os.environ.get(VARIABLE)) else None)
    path = said or Path("dist") / f"ferryman-runner-{machine}.tar.gz"
    if not path.is_file():
        where = f"{path}" if said else f"neither --runner nor {VARIABLE} names one, and {path} is not there"
        raise CallerError(f"no runner for the phone: {where}; make it in a clone: make runner-{machine}")
    return path


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Bundle]:
    """A bundle's files in a temporary folder.

    Raises:
        CallerError: it is no bundle.
    """
    with tempfile.TemporaryDirectory(prefix="ferryman-runner-") as temporary:
        folder = Path(temporary)
        try:
            with tarfile.open(path, "r:gz") as archive:
                members = archive.getmembers()
                if sum(member.size for member in members) > _BUNDLE_MAX_BYTES:
                    raise CallerError(f"{path} unpacks to more than a runner takes; make it again")
                archive.extractall(folder, members, filter="data")
        except (OSError, EOFError, tarfile.TarError) as error:
            raise CallerError(f"{path} is no runner that `make runner-aarch64` makes: {error}") from error
        top = next((one for one in sorted(folder.iterdir()) if (one / PROGRAM).is_file()), None)
        if top is None:
            raise CallerError(f"{path} holds no {PROGRAM} in a folder; make it again")
        yield _bundle(path, top)


def _bundle(path: Path, top: Path) -> Bundle:
    files, hashes, machines = {}, {}, set()
    for file in sorted(top.rglob("*")):
        if not file.is_file():  # links are followed: a phone gets copies
            continue
        data = file.read_bytes()
        name = file.relative_to(top).as_posix()
        if not PurePosixPath(name).name.replace("+", "").replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise CallerError(f"{path} holds a file {name!r}, which no runner does")
        files[name], hashes[name] = len(data), hashlib.sha256(data).hexdigest()
        if len(data) >= _ELF.size and data.startswith(b"\x7fELF"):
            machines.add(_ELF.unpack(data[: _ELF.size])[1])
    known = {_MACHINES.get(machine, str(machine)) for machine in machines}
    if len(known) != 1 or not known <= ABIS.keys():
        raise CallerError(
            f"{path} is for {', '.join(sorted(known)) or 'no machine'}; one of {', '.join(ABIS)} is needed"
        )
    return Bundle(top, files, hashes, known.pop())


def install_runner(store: PhoneStore, bundle: Bundle, progress: Progress = lambda _done, _total: None) -> Runner:
    """Bring the runner of this version to the phone, unless it is there.

    Raises:
        DeviceError: the phone is of another machine, has no room, or does not run it.
    """
    phone, folder = store.phone, f"runner/{bundle.name}"
    if store.hashes(folder) != bundle.hashes:
        store.check_space("a", sum(bundle.files.values()))
        store.upload(bundle.folder, bundle.files, "runner", progress)
        store.lock.do(f'rm -rf "$R/{folder}" && mv "$R/{store.incoming}/runner" "$R/{folder}" && sync')
        if store.hashes(folder) != bundle.hashes:
            raise DeviceError(f"{phone.name}: the runner is not on the phone as it was sent; do it again")
    return Runner(phone, folder)


def remove_others(store: PhoneStore, bundle: Bundle) -> None:
    """Remove runners of other versions."""
    store.lock.do(f'cd "$R/runner" && for F in *; do [ "$F" = {bundle.name} ] || rm -rf "./$F"; done')


class Runner:
    """The program on the phone; paths are relative to the root."""

    def __init__(self, phone: Phone, folder: str) -> None:
        self._phone = phone
        self._program = f'"$R/{folder}/{PROGRAM}"'

    def facts(self) -> RunnerFacts:
        """What it says of itself.

        Raises:
            DeviceError: it does not run here.
        """
        return self._ask("facts", RunnerFacts, COMMAND_S)

    def describe(self, artifact: str, entry: str | None) -> Described:
        """What an artifact holds."""
        return self._ask(f'describe "$R"/{shlex.quote(artifact)}{_entry(entry)}', Described, COMMAND_S)

    def run(
        self, artifact: str, entry: str | None, inputs: Sequence[tuple[str, Sequence[int]]], outputs: Sequence[str]
    ) -> Ran:
        """One inference; inputs are files with their shapes.

        Raises: see `profile`.
        """
        written = "".join(f' --output "$R"/{shlex.quote(path)}' for path in outputs)
        return self._ask(f"{_with('run', artifact, entry, inputs)}{written}", Ran, COMMAND_S)

    def profile(
        self,
        artifact: str,
        entry: str | None,
        inputs: Sequence[tuple[str, Sequence[int]]],
        options: str,
        *,
        timeout_s: float,
    ) -> Profiled:
        """A fresh process, and its runs.

        Raises:
            PackageError, CallerError, DeviceError: the runner's own.
            RuntimeCrash: it died.
            LinkError: nobody knows.
        """
        return self._ask(f"{_with('profile', artifact, entry, inputs)} {options}", Profiled, timeout_s)

    def profile_timed(
        self,
        artifact: str,
        entry: str | None,
        inputs: Sequence[tuple[str, Sequence[int]]],
        options: str,
        *,
        timeout_s: float,
    ) -> tuple[Profiled, int]:
        """See `profile`; also the nanoseconds of the whole process, by the clock of mksh."""
        words = f"{_with('profile', artifact, entry, inputs)} {options}"
        done = self._do(words, timeout_s, before="echo $EPOCHREALTIME; ", after="; E=$?; echo $EPOCHREALTIME; exit $E")
        begun, _, rest = done.stdout.partition(b"\n")
        answer, _, ended = rest.rstrip(b"\n").rpartition(b"\n")
        times = [_CLOCK.fullmatch(time.decode(errors="replace")) for time in (begun, ended)]
        if done.exit_status == 0 and None in times:
            raise DeviceError(f"{self._phone.name}: its shell is not mksh, for it tells no time")
        took_us = int(ended.replace(b".", b"")) - int(begun.replace(b".", b"")) if None not in times else 0
        return self._answer(words, replace(done, stdout=answer), Profiled), max(took_us, 0) * 1000

    def _ask(self, words: str, kind: type[R], timeout_s: float) -> R:
        return self._answer(words, self._do(words, timeout_s), kind)

    def _do(self, words: str, timeout_s: float, before: str = "", after: str = "") -> CompletedCommand:
        limit = "" if words == "facts" else f" --limit-s {math.ceil(timeout_s)}"
        return self._phone.ask(
            f"{before}{self._program} {words}{limit}{after}",
            timeout_s=timeout_s + _MARGIN_S,
            output_max_bytes=_OUTPUT_MAX_BYTES,
        )

    def _answer(self, words: str, done: CompletedCommand, kind: type[R]) -> R:
        name = f"{self._phone.name}: {PROGRAM} {words.partition(' ')[0]}"
        if done.exit_status < 0:
            last = done.stderr.decode(errors="replace").strip()[-300:]
            raise RuntimeCrash(
                f"{name} {describe_end(done.exit_status)}" + (f"; its last words: {last}" if last else "")
            )
        try:
            if done.exit_status == 0:
                return decode(done.stdout, kind)
            failed = from_wire(decode(done.stdout, _Failed).error)
        except ValueError as error:
            if done.exit_status:
                raise self._phone.refusal(done) from None
            raise DeviceError(f"{name} did not answer as a runner of this version: {error}") from error
        raise type(failed)(f"{name}: {failed}")


class _Failed(Record):
    error: WireError


def _entry(entry: str | None) -> str:
    return "" if entry is None else f" --entry {shlex.quote(entry)}"


def _with(command: str, artifact: str, entry: str | None, inputs: Sequence[tuple[str, Sequence[int]]]) -> str:
    given = "".join(
        f' --input "$R"/{shlex.quote(path)}:{"x".join(map(str, shape))}'
        if shape
        else f' --input "$R"/{shlex.quote(path)}'
        for path, shape in inputs
    )
    return f'{command} "$R"/{shlex.quote(artifact)}{_entry(entry)}{given}'

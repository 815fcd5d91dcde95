"""A session in a process of its own: a crash, a hang or a leak in an interpreter stays there."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal, TypeVar

from msgspec.structs import replace

from ferryman.runtime.alive import beat
from ferryman.runtime.closing import Closing
from ferryman.runtime.contracts.errors import CallerError, DeviceError, RuntimeCrash, RuntimeFault, from_wire
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.contracts.measurement import Memory
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.contracts.tensor import Array, pack, to_tensors, unpack
from ferryman.runtime.session import as_array, interpreters_of
from ferryman.runtime.worker import LENGTH_BYTES, Answer, Failed, Open, Opened, Question, Ran, Run

A = TypeVar("A", Opened, Ran)
CLOSED = "the session is closed; open it again"
_STDERR_TAIL_BYTES = 2000
_CHUNK_BYTES = 1 << 20
_POLL_MAX_S = 1.0
"""How often who waits shows that it goes on."""
_DEATH_S = 5.0
"""Between closing its pipes and being gone; a worker that takes longer is ended."""


class IsolatedSession(Closing):
    """Implements `Session` over a worker process."""

    def __init__(
        self,
        artifact: Path | str,
        runtime: RuntimeName,
        *,
        interpreter: str | None = None,
        threads: int = 1,
        entry: str | None = None,
        cache: Path | str | None = None,
        sha256: str | None = None,
        python: Path | None = None,
        timeout_s: float = 120.0,
    ) -> None:
        """Start the worker and load the artifact.

        Args:
            artifact: a `.pte` or `.tflite` file.
            runtime: which of the two.
            interpreter: see `open_session`.
            threads: see `open_session`.
            entry: see `open_session`.
            cache: see `open_session`.
            sha256: see `open_session`.
            python: of another environment that has ferryman and the interpreter; None: this one.
            timeout_s: bounds each call; a worker that takes longer is killed.

        Raises:
            CallerError: see `open_session`.
            RuntimeFault: the interpreter refuses the artifact, or takes longer than `timeout_s`.
            RuntimeCrash: it died loading it.
            DeviceError: no such interpreter there, or `python` cannot be started.
        """
        interpreters_of(runtime)
        artifact = Path(artifact)
        self.timeout_s = timeout_s
        self._lost = self._closed = False
        self._name = f"{interpreter or runtime} on {artifact.name}"
        self._stderr = _scratch()
        try:
            self._process = subprocess.Popen(
                [str(python or sys.executable), "-P", "-m", "ferryman.runtime.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
            )
        except OSError as error:
            self._stderr.close()
            raise DeviceError(f"{python or sys.executable} cannot be started: {error.strerror}") from error
        try:
            os.set_blocking(self._pipe("stdin"), False)  # a worker that hangs reads nothing
            self._question = Open(
                artifact=str(artifact.absolute()),
                runtime=runtime,
                interpreter=interpreter,
                threads=threads,
                entry=entry,
                cache=None if cache is None else str(Path(cache).absolute()),
                sha256=sha256,
            )
            self._open(self._question)
        except BaseException:
            self.close()
            raise
        self.memory_after: Memory | Unavailable = Unavailable(reason="not run yet")
        self.last_run_ns = 0

    @property
    def entry(self) -> str | None:
        """What is run, as it was asked for."""
        return self._question.entry

    def switch(self, entry: str | None) -> None:
        """Run another entry of the same artifact from now on, in the same process.

        Raises: as opening it did; the session is then of no use any more.
        """
        if self._closed:
            raise CallerError(CLOSED)
        self._question = replace(self._question, entry=entry)
        self._open(self._question)

    def _open(self, question: Open) -> None:
        opened = self._ask(question, Opened)
        self.interpreter = opened.interpreter
        self.version = opened.version
        self.cache = opened.cache
        self.signature = opened.signature
        self.load_ns = opened.load_ns
        self.memory_before = opened.memory_before

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """See `Session.run`; also RuntimeCrash when the worker dies."""
        if self._closed:
            raise CallerError(CLOSED)
        specs = self.signature.inputs
        if len(inputs) == len(specs):  # else the worker says so
            inputs = [as_array(one, spec) for one, spec in zip(inputs, specs, strict=True)]
        ran = self._ask(Run(inputs=to_tensors(inputs)), Ran)
        self.last_run_ns = ran.duration_ns
        self.memory_after = ran.memory_after
        return [tensor.to_array() for tensor in ran.outputs]

    def close(self) -> None:
        """End the worker."""
        self._closed = True
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            if pipe:
                with suppress(BrokenPipeError):  # the worker died with a request half sent
                    pipe.close()

    def kill(self) -> None:
        """End the worker at once; may be called from another thread, where `run` then raises RuntimeCrash."""
        self._process.kill()

    def _ask(self, question: Open | Run, kind: type[A]) -> A:
        if self._lost:
            raise RuntimeCrash(self._describe_death())
        deadline = time.monotonic() + self.timeout_s
        try:
            data = pack(Question(body=question))
            self._write(len(data).to_bytes(LENGTH_BYTES, "little"), deadline)
            self._write(data, deadline)
            length = int.from_bytes(self._read(LENGTH_BYTES, deadline), "little")
            answer = unpack(self._read(length, deadline), Answer).body
        except (BrokenPipeError, EOFError):
            raise RuntimeCrash(self._describe_death()) from None
        except ValueError as error:
            self._abandon()
            raise RuntimeCrash(f"the process that ran {self._name} answered no record: {error}") from error
        except BaseException:  # its next answer would not be to the next question
            self._abandon()
            raise
        if isinstance(answer, Failed):
            raise from_wire(answer.error)
        if not isinstance(answer, kind):
            raise RuntimeCrash(f"{self._name}: the worker answered {type(answer).__name__} instead of {kind.__name__}")
        return answer

    def _abandon(self) -> None:
        """End the worker and hear no more of it: an answer may be in the pipe already."""
        self._lost = True
        self._process.kill()

    def _pipe(self, name: Literal["stdin", "stdout"]) -> int:
        pipe = getattr(self._process, name)
        return int(pipe.fileno())

    def _write(self, data: bytes, deadline: float) -> None:
        pipe = self._pipe("stdin")
        rest = memoryview(data)
        while rest:
            self._wait(pipe, select.POLLOUT, deadline)
            rest = rest[os.write(pipe, rest[:_CHUNK_BYTES]) :]

    def _read(self, count: int, deadline: float) -> bytearray:
        pipe = self._pipe("stdout")
        data = bytearray()
        while len(data) < count:
            self._wait(pipe, select.POLLIN, deadline)
            chunk = os.read(pipe, min(count - len(data), _CHUNK_BYTES))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        while not poll.poll(1000 * max(0.0, min(deadline - time.monotonic(), _POLL_MAX_S))):
            if not time.monotonic() < deadline:
                raise RuntimeFault(f"{self._name} did not answer within {self.timeout_s:g} s and was ended")
            beat()

    def _describe_death(self) -> str:
        try:
            code = self._process.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, self._stderr.tell() - _STDERR_TAIL_BYTES))
        last_words = self._stderr.read().decode(errors="replace").strip()
        return f"the process that ran {self._name} {describe_end(code)}" + (
            f"; its last words: {last_words}" if last_words else ""
        )


def _scratch() -> IO[bytes]:
    """A file without a name; in memory where no disk takes one, such as when they were all made read-only."""
    try:
        return tempfile.TemporaryFile()
    except OSError:
        return os.fdopen(os.memfd_create("worker-stderr"), "w+b")


def describe_end(code: int) -> str:
    """How a child process ended, of its return code: `died of SIGSEGV`, `ended with exit code 1`."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"died of {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"died of signal {-code}"

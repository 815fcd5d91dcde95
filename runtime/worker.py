"""The process that runs an artifact for another: `python -m ferryman.runtime.worker`, frames on standard input/output.

A frame is 8 bytes of length (little-endian) and one MessagePack record. The end of the input ends the process, so
none outlives the one that asked. Whatever an interpreter prints goes to standard error.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

from ferryman.runtime.cache import CacheUse
from ferryman.runtime.contracts.errors import CallerError, WireError, to_wire
from ferryman.runtime.contracts.manifest import RuntimeName
from ferryman.runtime.contracts.measurement import Memory
from ferryman.runtime.contracts.record import Record, Unavailable
from ferryman.runtime.contracts.tensor import Signature, Tensor, pack, to_tensors, unpack
from ferryman.runtime.memory import read_memory
from ferryman.runtime.session import Session, open_session

LENGTH_BYTES = 8
_PARENT_POLL_S = 1.0


class Open(Record, tag="open"):
    """Load an artifact, in the place of the one that was loaded; the first message."""

    artifact: str
    runtime: RuntimeName
    interpreter: str | None
    threads: int
    entry: str | None = None
    cache: str | None = None
    sha256: str | None = None


class Run(Record, tag="run"):
    """One inference."""

    inputs: tuple[Tensor, ...]


class Opened(Record, tag="opened"):
    """The artifact is loaded."""

    interpreter: str
    version: str
    cache: CacheUse
    signature: Signature
    load_ns: int
    memory_before: Memory | Unavailable


class Ran(Record, tag="ran"):
    """What came out."""

    outputs: tuple[Tensor, ...]
    duration_ns: int
    memory_after: Memory | Unavailable


class Failed(Record, tag="failed"):
    """The request could not be done."""

    error: WireError


class Question(Record):
    """From the one who asks."""

    body: Open | Run


class Answer(Record):
    """From the worker."""

    body: Opened | Ran | Failed


def write_frame(file: BinaryIO, record: Record) -> None:
    """Send one record."""
    data = pack(record)
    file.write(len(data).to_bytes(LENGTH_BYTES, "little"))
    file.write(data)
    file.flush()


def _answer(question: Open | Run, session: Session | None) -> tuple[Opened | Ran, Session | None]:
    if isinstance(question, Open):
        if session is not None:
            session.close()
        before = read_memory()
        start = time.perf_counter_ns()
        session = open_session(
            Path(question.artifact),
            question.runtime,
            interpreter=question.interpreter,
            threads=question.threads,
            entry=question.entry,
            cache=question.cache,
            sha256=question.sha256,
        )
        load_ns = time.perf_counter_ns() - start
        return (
            Opened(
                interpreter=session.interpreter,
                version=session.version,
                cache=session.cache,
                signature=session.signature,
                load_ns=load_ns,
                memory_before=before,
            ),
            session,
        )
    if session is None:
        raise CallerError("run before open")
    arrays = [tensor.to_array() for tensor in question.inputs]
    start = time.perf_counter_ns()
    outputs = session.run(arrays)
    duration_ns = time.perf_counter_ns() - start
    return Ran(outputs=to_tensors(outputs), duration_ns=duration_ns, memory_after=read_memory()), session


def _end_with_parent() -> None:
    """End this process soon after the one that started it: a run that hangs would not notice the end of the input.

    Not by PR_SET_PDEATHSIG, which fires when the parent's starting *thread* ends.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def main() -> None:
    """Answer questions until the input ends."""
    _end_with_parent()
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    session: Session | None = None
    while len(head := sys.stdin.buffer.read(LENGTH_BYTES)) == LENGTH_BYTES:
        data = sys.stdin.buffer.read(int.from_bytes(head, "little"))
        try:
            answer: Opened | Ran | Failed
            answer, session = _answer(unpack(data, Question).body, session)
        except Exception as error:  # noqa: BLE001  # everything goes to the one who asked
            answer = Failed(error=to_wire(error))
        write_frame(replies, Answer(body=answer))


if __name__ == "__main__":
    main()

"""Memory that an interpreter laid out for a model's tensors: its arena."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.session import Session

if TYPE_CHECKING:  # interpreters are imported when one is used
    from ferryman.runtime.sessions.tflite import TfliteSession

_MAPS = Path("/proc/self/maps")


def arena_bytes(session: Session) -> int | Unavailable:
    """Bytes for inputs, outputs and what is handed from one operator or delegate to the next; after a run.

    What a delegate takes for tensors inside itself, and packed weights, are not in it.

    Args:
        session: open; nobody else uses it meanwhile.
    """
    from ferryman.runtime.sessions import executorch, tflite

    if isinstance(session, executorch.ExecutorchSession):
        return session.planned_bytes()
    if isinstance(session, tflite.TfliteSession):
        if session.interpreter != "ai-edge-litert":
            return Unavailable(reason=f"{session.interpreter} dies when asked for a tensor inside a delegate")
        return _of_tflite(session)
    return Unavailable(reason=f"this way of running {session.interpreter} does not tell where its tensors are")


def _of_tflite(session: TfliteSession) -> int | Unavailable:
    """Where tensors are, each byte once: those that are not alive at the same time share their place.

    Constants lie in the file, which is mapped.
    """
    wrapper: Any = session._wrapper  # noqa: SLF001  # Python's classes look at the first subgraph alone
    subgraph: int = session._subgraph  # noqa: SLF001
    if wrapper is None:
        return Unavailable(reason="the session is closed")
    places = []
    for index in range(wrapper.NumTensors(subgraph)):
        try:
            view = wrapper.tensor(wrapper, index, subgraph)
        except (ValueError, RuntimeError):  # it has no memory: a delegate's own, or empty
            continue
        start = int(view.__array_interface__["data"][0])
        places.append((start, start + int(view.nbytes)))
        del view  # the interpreter refuses to run while there are any
    files = _file_ranges()
    return _covered(place for place in places if not any(start <= place[0] < end for start, end in files))


def _file_ranges() -> list[tuple[int, int]]:
    """Where files are mapped in this process."""
    found = []
    for line in _MAPS.read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) > 5 and fields[5].startswith("/"):  # noqa: PLR2004  # address, rights, offset, device, inode, path
            start, end = fields[0].split("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def _covered(places: Iterable[tuple[int, int]]) -> int:
    """Bytes within any of the places."""
    covered, reached = 0, 0
    for start, end in sorted(places):
        covered += max(0, end - max(start, reached))
        reached = max(reached, end)
    return covered

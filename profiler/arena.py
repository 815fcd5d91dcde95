"""What interpreters plan for activations."""

from __future__ import annotations

from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.session import Session


def arena_bytes(session: Session) -> int | Unavailable:
    """Bytes, or why not."""
    return Unavailable(reason=f"{session.interpreter} does not tell")

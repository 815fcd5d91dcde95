"""For what is measured in real time, and right wherever nobody disturbs it."""

from __future__ import annotations

from collections.abc import Callable


def undisturbed(attempt: Callable[[], None], attempts: int = 8) -> None:
    """Have `attempt` hold once: a busy machine spoils it now and then, a fault always."""
    for _ in range(attempts - 1):
        try:
            attempt()
        except AssertionError:
            continue
        return
    attempt()

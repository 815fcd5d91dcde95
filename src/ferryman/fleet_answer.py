"""What the commands of `ferryman fleet` share: the store, opened, and an answer, printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ferryman.runtime.say import echo, json_text

if TYPE_CHECKING:
    from ferryman.devices.fleet.store.store import Store
    from ferryman.runtime.contracts.record import Record


@contextmanager
def opened(database: str, *, write: bool = False) -> Iterator[Store]:
    """The store, which must be there; an interrupt is a good end of what goes on for ever."""
    from ferryman.devices.fleet.store.store import open_store

    store = open_store(database, create=False)
    try:
        if write:  # known to be a store
            store.close()
            store = open_store(database)
        yield store
    except KeyboardInterrupt:
        echo(err=True)
        raise SystemExit(130) from None
    finally:
        store.close()


def answer(found: Record, text: Callable[[], str], *, as_json: bool) -> None:
    """One JSON document; or text, and what is not in it on the other channel."""
    from ferryman.runtime.contracts.record import encode
    from ferryman.show import say

    if as_json:
        say(json_text(encode(found)))
        return
    if made := text():
        say(made)
    for words in getattr(found, "left_out", ()):
        echo(f"left out: {words}", err=True)

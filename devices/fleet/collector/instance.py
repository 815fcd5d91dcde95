"""What a collector calls itself at the broker.

Of a SQLite file there is one, named after the store. Of a PostgreSQL store there may be many, that share one
subscription: each has a name of its own, which it finds again when it starts anew on the same machine, so that what was
under way to it is under way to it still.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.errors import StoreError

log = logging.getLogger(__name__)

_SLOTS_MAX = 256


@contextmanager
def client_id(store: Store) -> Iterator[str]:
    """The name, held until the end.

    Raises:
        StoreError: another collector writes to this SQLite file.
    """
    if store.path is not None:
        with _only_one(store.path):
            yield f"ferryman-collector-{store.id}"
        return
    with _slot(store.id) as name:
        yield f"ferryman-collector-{store.id}-{name}"


@contextmanager
def _only_one(database: Path) -> Iterator[None]:
    """Two collectors on one store would share a session's name, and throw each other out without end."""
    with database.with_name(f"{database.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(f"store {database}: another collector writes to it; stop that one first") from error
        yield


@contextmanager
def _slot(store_id: str) -> Iterator[str]:
    """The first name in the state folder that no running collector holds; where nothing can be written, a new one."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ferryman"
    for slot in range(_SLOTS_MAX):
        try:
            state.mkdir(parents=True, exist_ok=True)
            file = (state / f"collector-{store_id}-{slot}").open("a+")
        except OSError as error:
            log.info("%s: this collector has another name after each start", error)
            break
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            file.seek(0)
            if not (name := file.read(64).strip()):
                name = secrets.token_hex(4)
                file.write(name)
                file.flush()
            yield name
            return
    yield secrets.token_hex(4)

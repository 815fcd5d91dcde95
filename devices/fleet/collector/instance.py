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
        with only_one(store.path):
            yield f"ferryman-collector-{store.id}"
        return
    with _slot(store.id) as name:
        yield f"ferryman-collector-{store.id}-{name}"


@contextmanager
def only_one(database: Path) -> Iterator[None]:
    """Two collectors on one store would share a session's name, and throw each other out without end.

    Not a lock of the database file: where its descriptor is closed, SQLite's own locks of the file would go with it.
    """
    try:
        real = database.resolve()
        links = real.stat().st_nlink if real.exists() else 1
        file = real.with_name(f"{real.name}.lock").open("w")
    except OSError as error:
        raise StoreError(f"store {database}: {error.strerror} ({error.filename}); name another") from error
    with file as lock:
        if links > 1:
            raise StoreError(
                f"store {database}: the file has {links} names (hard links), and SQLite damages one that is written by "
                "two; remove the others, or copy the file"
            )
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

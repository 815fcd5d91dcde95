"""Which of several collectors does what only one shall do."""

from __future__ import annotations

import zlib
from contextlib import ExitStack

from sqlalchemy import Connection

from ferryman.devices.fleet.store.store import Store
from ferryman.runtime.contracts.errors import StoreError

ALERTS, STORE = 0x6665726C, 0x6665726D
"""What there is to lead, as PostgreSQL's advisory locks: "ferl" and "ferm"."""


class Leader:
    """Held by one collector of a store at a time: of a SQLite file there is only one.

    In PostgreSQL it is an advisory lock of a connection of its own, so that it ends with the process or with
    the server, whichever is first.
    """

    def __init__(self, store: Store, lock: int) -> None:
        self._store = store
        # Of this store: another may be in another schema of the same database, which has the same locks.
        self._lock = f"{lock}, {zlib.crc32(store.id.encode()) - (1 << 31)}"
        self._held = ExitStack()
        self._connection: Connection | None = None

    def leads(self) -> bool:
        """Whether it is this collector now; asks the server each time.

        Raises:
            StoreError: the server cannot be asked, and then it is not.
        """
        if self._store.dialect == "sqlite":
            return True
        try:
            if self._connection is None:
                return self._take()
            self._connection.exec_driver_sql("SELECT 1")
            self._connection.commit()  # or the server would keep for this transaction what others delete
        except Exception as error:
            self.release()
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"store {self._store.name}: the connection broke: {error}") from error
        return True

    def release(self) -> None:
        """Let another lead."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()  # closed and not pooled: the lock is the connection's
        self._held.close()

    def _take(self) -> bool:
        connection = self._held.enter_context(self._store.connection())
        taken = connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({self._lock})").scalar()
        connection.commit()
        if not taken:
            self._held.close()
            return False
        self._connection = connection
        return True

"""A store in each database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ferryman.devices.fleet.store.store import Store, open_store
from tests.support import postgresql


@contextmanager
def opened(dialect: str, folder) -> Iterator[Store]:
    if dialect == "sqlite":
        store = open_store(folder / "store.db")
        yield store
        store.close()
        return
    with postgresql.new_database() as url:
        store = open_store(url)
        yield store
        store.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def both(request, tmp_path) -> Iterator[Store]:
    with opened(request.param, tmp_path) as store:
        yield store

"""Stores to ask: SQLite always, PostgreSQL where slow tests run."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from ferryman.devices.fleet.store.store import open_store
from tests.support.postgresql import new_database


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def store(request, tmp_path):
    with ExitStack() as stack:
        where = tmp_path / "store.sqlite" if request.param == "sqlite" else stack.enter_context(new_database())
        opened = open_store(where)
        stack.callback(opened.close)
        yield opened

"""A store to export from."""

from __future__ import annotations

import pytest

from ferryman.devices.fleet.store.store import open_store


@pytest.fixture
def store(tmp_path):
    opened = open_store(tmp_path / "store.sqlite")
    yield opened
    opened.close()

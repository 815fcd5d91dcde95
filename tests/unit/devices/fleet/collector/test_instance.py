from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ferryman.devices.fleet.collector.instance import client_id
from ferryman.runtime.contracts.errors import StoreError


def a_store(path: Path | None) -> Any:
    return SimpleNamespace(path=path, id="0011223344556677")


@pytest.fixture
def state(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "ferryman"


def test_a_file_has_one_collector_named_after_the_store(tmp_path):
    store = a_store(tmp_path / "store.db")
    with client_id(store) as name:
        assert name == "ferryman-collector-0011223344556677"
        with pytest.raises(StoreError, match="another collector writes to it"), client_id(store):
            pass
    with client_id(store) as again:
        assert again == name


@pytest.mark.usefixtures("state")
def test_collectors_of_a_server_have_names_of_their_own_and_find_them_again():
    store = a_store(None)
    with client_id(store) as first, client_id(store) as second:
        assert first != second
    with client_id(store) as again:
        assert again == first
        with client_id(store) as another:
            assert another == second
    assert len(first.encode()) <= 65535


def test_another_store_has_other_names(state):
    with client_id(a_store(None)) as one, client_id(SimpleNamespace(path=None, id="77")) as other:  # type: ignore[arg-type]
        assert one != other
    assert len(list(state.iterdir())) == 2


def test_where_nothing_can_be_written_a_name_is_new_each_time(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    with client_id(a_store(None)) as one:
        pass
    with client_id(a_store(None)) as other:
        assert one != other


def test_another_name_of_the_file_is_the_same_file(tmp_path):
    path = tmp_path / "store.db"
    path.write_text("")
    symbolic = tmp_path / "elsewhere" / "symbolic.db"
    symbolic.parent.mkdir()
    symbolic.symlink_to(path)
    with client_id(a_store(path)):
        with pytest.raises(StoreError, match="another collector writes to it"), client_id(a_store(symbolic)):
            pass
        hard = tmp_path / "hard.db"
        hard.hardlink_to(path)
        with pytest.raises(StoreError, match="2 names"), client_id(a_store(hard)):
            pass


def test_a_name_that_leaves_no_room_for_the_lock_is_an_error_with_advice(tmp_path):
    path = tmp_path / ("x" * 254)
    path.write_text("")
    with pytest.raises(StoreError, match="File name too long"), client_id(a_store(path)):
        pass

from __future__ import annotations

import pytest

from ferryman.devices.agent.modes import FILE, Modes, switch
from ferryman.runtime.contracts.errors import CallerError


def test_what_was_switched_holds_and_is_noticed(tmp_path):
    modes = Modes(tmp_path, "metered")
    assert modes.now() == "metered"
    for mode in ("offline", "full", "metered"):
        switch(tmp_path, mode)
        assert modes.now() == mode
        assert Modes(tmp_path, "full").now() == mode
    (tmp_path / FILE).unlink()
    assert modes.now() == "metered"


@pytest.mark.parametrize("data", [b"", b"{", b'{"mode":"fast"}', b"\xff" * 9, b'{"mode":"full"' + b" " * 9999 + b"}"])
def test_a_damaged_file_changes_nothing_and_is_told_once(tmp_path, caplog, data):
    switch(tmp_path, "metered")
    modes = Modes(tmp_path)
    modes.now()
    (tmp_path / FILE).write_bytes(data)
    assert [modes.now(), modes.now()] == ["metered", "metered"]
    assert caplog.text.count("ferryman outbox mode") == 1


def test_a_root_that_is_not_there_is_the_callers_error(tmp_path):
    with pytest.raises(CallerError, match="--root"):
        switch(tmp_path / "no", "full")

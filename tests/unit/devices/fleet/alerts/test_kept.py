from __future__ import annotations

from sqlalchemy import select

from ferryman.devices.fleet.alerts import kept
from ferryman.devices.fleet.store import tables
from ferryman.devices.fleet.store.store import Store, open_store
from ferryman.runtime.contracts.alert import Alert


def raised(device: str, since_ns: int) -> Alert:
    return Alert(device=device, rule="disk", severity="warning", text="full", value=3.0, bound=500.0, since_ns=since_ns)


def stored(store: Store) -> dict[str, tuple[int | None, int | None]]:
    """Device -> until, told."""
    columns = (tables.alerts.c.device, tables.alerts.c.until_ns, tables.alerts.c.told_ns)
    return {device: (until, told) for device, until, told in map(tuple, store.read(select(*columns)))}


def test_one_alert_a_device_and_rule_is_open(tmp_path):
    store = open_store(tmp_path / "store.db")
    kept.change(store, [raised("pi", 1)], [], 10)
    kept.change(store, [raised("pi", 2), raised("other", 2)], [], 11)
    first, second = kept.read(store)
    assert first == kept.Kept(1, told=False, alert=raised("pi", 1))
    assert second.alert.device == "other"
    kept.change(store, [raised("pi", 3)], [], 12)
    assert len(kept.read(store)) == 2
    kept.change(store, [], [first.id], 13)
    kept.change(store, [raised("pi", 14)], [], 14)
    assert [row.alert.since_ns for row in kept.read(store) if row.alert.device == "pi"] == [1, 14]
    store.close()


def test_what_was_told_before_it_ended_is_to_be_told_again(tmp_path):
    store = open_store(tmp_path / "store.db")
    kept.change(store, [raised("pi", 1), raised("other", 1)], [], 10)
    first, second = kept.read(store)
    kept.mark_told(store, [(first.id, False), (second.id, True)], 20)  # the other is not over
    assert [row.told for row in kept.read(store)] == [True, False]
    kept.change(store, [], [first.id], 30)
    assert stored(store)["pi"] == (30, None)
    kept.mark_told(store, [(first.id, False)], 40)  # of its begin: too late
    assert stored(store)["pi"] == (30, None)
    kept.change(store, [], [first.id], 50)  # over already
    assert stored(store)["pi"] == (30, None)
    kept.mark_told(store, [(first.id, True)], 60)
    assert stored(store)["pi"] == (30, 60)
    assert [row.alert.device for row in kept.read(store)] == ["other"]
    store.close()


def test_old_alerts_are_deleted_once_they_are_over_and_told(tmp_path):
    store = open_store(tmp_path / "store.db")
    kept.change(store, [raised(device, 1) for device in ("open", "untold", "told", "new")], [], 10)
    kept.change(store, [], [2, 3], 20)
    kept.change(store, [], [4], 99)
    kept.mark_told(store, [(1, False), (3, True), (4, True)], 100)
    kept.forget(store, 50)
    assert sorted(stored(store)) == ["new", "open", "untold"]
    store.close()

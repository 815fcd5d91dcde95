from __future__ import annotations

import threading

from ferryman.devices.fleet.collector import inbox
from ferryman.devices.fleet.collector.inbox import Inbox


def messages(*payloads: bytes) -> list[tuple[bytes, bytes, bytes]]:
    return [(b"t", b"", payload) for payload in payloads]


def test_what_is_put_is_taken_in_order_and_what_is_given_back_first():
    box = Inbox()
    box.put(None, messages(b"1", b"2", b"3"))
    box.put(None, messages(b"4"))
    taken = box.take(0, 3)
    box.give_back(taken[1:])
    assert [d.payload for d in taken] == [b"1", b"2", b"3"]
    assert [d.payload for d in box.take(0, 10)] == [b"2", b"3", b"4"]
    assert box.bytes == 0
    assert box.take(0, 10) == []


def test_a_full_one_holds_up_whoever_puts_until_there_is_room(monkeypatch):
    monkeypatch.setattr(inbox, "INBOX_MAX_BYTES", 1000)
    box = Inbox()
    box.put(None, messages(b"x" * 1000))
    put = threading.Event()

    def more() -> None:
        box.put(None, messages(b"y"))
        put.set()

    thread = threading.Thread(target=more)
    thread.start()
    assert not put.wait(0.05)
    box.take(0, 1)
    assert put.wait(60)
    thread.join()
    assert [d.payload for d in box.take(0, 1)] == [b"y"]


def test_a_closed_one_holds_up_nobody_and_takes_nothing(monkeypatch):
    monkeypatch.setattr(inbox, "INBOX_MAX_BYTES", 0)
    box = Inbox()
    thread = threading.Thread(target=box.put, args=(None, messages(b"x")))
    thread.start()
    box.close()
    thread.join(60)
    assert not thread.is_alive()
    assert box.take(0, 1) == []

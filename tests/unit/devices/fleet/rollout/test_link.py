from __future__ import annotations

from types import SimpleNamespace

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.rollout import link as module
from ferryman.devices.fleet.rollout.link import FleetLink
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.contracts.rollout import Desired


def test_what_came_and_was_not_looked_at_yet_is_no_quiet(monkeypatch):
    """A process that was held up for some time has heard nothing for as long."""
    monkeypatch.setattr(module, "QUIET_S", 0.0)
    link = FleetLink(BrokerConfig(host="127.0.0.1", port=1))
    link._begin()
    assert link.take() == []
    status = encode(Status(device="pi", online=True))
    link._hear(SimpleNamespace(topic=topics.status("pi"), payload=status, retained=True))
    assert not link.settled()
    (heard,) = link.take()
    assert heard.device == "pi"
    assert link.settled()


def test_what_the_broker_kept_may_come_before_word_that_it_is_ready(monkeypatch):
    """The two come from two threads; a wish that was forgotten was sent again, or never taken back."""
    monkeypatch.setattr(module, "QUIET_S", 0.0)
    link = FleetLink(BrokerConfig(host="127.0.0.1", port=1), "r")
    sent = []
    monkeypatch.setattr(link._link, "publish", lambda message, _: sent.append(message.payload))
    wish = encode(Desired(version=7, rollout="r", release="m/1", package_sha256="0" * 64))
    for _ in range(2):  # the second time is another connection, which begins with nothing known
        link._hear(SimpleNamespace(topic=topics.desired("pi"), payload=wish, retained=True))
        link._begin()
        assert [one.device for one in link.take()] == ["pi"]
        link.resync({"pi": wish})
        assert sent == []
        link._end()
    link._begin()
    link.take()
    link.resync({"pi": wish})
    assert sent == [wish]
    link.tell("pi", b"")
    assert sent == [wish, b""]

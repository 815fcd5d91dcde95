from __future__ import annotations

from types import SimpleNamespace

from ferryman.devices import topics
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.fleet.rollout import link as module
from ferryman.devices.fleet.rollout.link import FleetLink
from ferryman.runtime.contracts.messages import Status
from ferryman.runtime.contracts.record import encode


def test_what_came_and_was_not_looked_at_yet_is_no_quiet(monkeypatch):
    """A process that was held up for some time has heard nothing for as long."""
    monkeypatch.setattr(module, "QUIET_S", 0.0)
    link = FleetLink(BrokerConfig(host="127.0.0.1", port=1))
    link._begin()
    assert link.take() == []
    status = encode(Status(device="pi", online=True))
    link._inbox.put(SimpleNamespace(topic=topics.status("pi"), payload=status, retained=True))
    assert not link.settled()
    (heard,) = link.take()
    assert heard.device == "pi"
    assert link.settled()

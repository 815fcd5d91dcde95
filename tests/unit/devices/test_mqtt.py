from __future__ import annotations

from ferryman.devices.mqtt import backoff_s


def test_backoff_doubles_up_to_its_cap_with_jitter():
    for attempt, whole in ((0, 1.0), (1, 2.0), (3, 8.0), (10, 30.0), (10_000, 30.0)):
        waits = {backoff_s(attempt, 1.0, 30.0) for _ in range(50)}
        assert len(waits) > 1
        assert all(whole / 2 <= wait <= whole for wait in waits)

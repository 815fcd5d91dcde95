"""The collector: from the broker into the store; see docs/telemetry/collector.md."""

from ferryman.devices.fleet.collector.run import Progress, run_collector

__all__ = ["Progress", "run_collector"]

"""The collector: from the broker into the store; see docs/telemetry/collector.md."""

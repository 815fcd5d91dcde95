"""The device side of updates over the air: trust, fetch, stage, install, watch."""

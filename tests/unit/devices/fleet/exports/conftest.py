"""The stores that questions are asked of are exported from, too."""

from __future__ import annotations

from tests.unit.devices.fleet.query.conftest import store

__all__ = ["store"]

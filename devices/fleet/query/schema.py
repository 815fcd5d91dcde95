"""What `ferryman fleet ... --json` prints, as JSON Schema.

`python -m ferryman.devices.fleet.query.schema docs/telemetry/fleet.schema.json` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ferryman.devices.fleet.query.records import Document
from ferryman.profiler.export import schema_of


def schema() -> bytes:
    """Of every document, indented."""
    return schema_of(Document, "ferryman fleet")


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(schema())

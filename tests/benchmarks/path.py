"""The whole path, each step against the bare way to do it: `python -m tests.benchmarks.path [--json]`."""

from __future__ import annotations

import re
import subprocess
from importlib import metadata

from tests.benchmarks import path_agent, path_convert, path_push, path_session
from tests.benchmarks.frame import main
from tests.support import mosquitto

# The small ones first: what torch leaves in this process must not weigh on them.
PARTS = (*path_agent.PARTS, *path_push.PARTS, *path_session.PARTS, *path_convert.PARTS)


def versions() -> dict[str, str]:
    """Of everything the bars set ferryman against."""
    found = {tool: metadata.version(tool) for tool in ("torch", "executorch", "litert-torch", "asyncssh")}
    for name, command in (("ssh", ["ssh", "-V"]), ("mosquitto", [mosquitto.BINARY or "mosquitto", "-h"])):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        if number := re.search(r"\d+\.[\w.]+", done.stdout + done.stderr):
            found[name] = number.group()
    return found


if __name__ == "__main__":
    main("path", PARTS, versions)

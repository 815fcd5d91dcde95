from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import ferryman

NAMES = [
    "AgentClient",
    "BinaryConv2d",
    "BinaryLinear",
    "FerrymanError",
    "Fleet",
    "Measurement",
    "ProfileSpec",
    "__version__",
    "compare",
    "compress",
    "convert",
    "find_device",
    "latency_on",
    "open_package",
    "open_session",
    "parse_broker",
    "preview_rollout",
    "profile",
    "publish",
    "push",
    "read_devices",
    "resume_rollout",
    "roll_out",
    "rollout_status",
]
NEED_TORCH = {"BinaryConv2d", "BinaryLinear", "compress", "convert"}


def test_the_public_names_are_these():
    """A name added here is a promise; one taken away breaks users."""
    assert ferryman.__all__ == NAMES
    assert dir(ferryman) == NAMES


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEED_TORCH])
def test_each_name_resolves_and_is_documented(name):
    found = getattr(ferryman, name)
    if name != "__version__":
        assert found.__name__ == name
        assert found.__doc__


def test_convert_resolves():
    assert ferryman.convert.__name__ == "convert"
    assert ferryman.convert.__doc__


def test_the_version_is_the_distributions():
    assert ferryman.__version__ == metadata.version("ferryman")


def test_an_unknown_name_lists_those_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'nope'; there are: AgentClient, .*read_devices"):
        _ = ferryman.nope


def test_importing_ferryman_loads_nothing_heavy():
    code = (
        "import sys, ferryman; print(*(m for m in ('torch', 'numpy', 'paho', 'asyncssh', 'click') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

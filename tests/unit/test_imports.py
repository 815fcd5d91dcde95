"""Imports go down only, and the device side lives without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interpreters import DEVICE_PYTHON, ROOT

FLOORS = ("runtime", "profiler", "converter", "devices")
MAY_IMPORT = {
    "runtime": {"runtime"},
    "profiler": {"profiler", "runtime"},
    "converter": {"converter", "runtime"},
    "devices": {"devices", "profiler", "runtime"},
}
HOST_ONLY = ("torch", "executorch", "litert_torch", "torchao", "ferryman.converter")
BASE = {"click", "msgspec", "numpy", "paho", "psutil", "ferryman"}
"""What `pip install ferryman` brings; everything else a device may lack."""
OTA_FOLDERS = ("runtime/pieces/", "devices/agent/update/")
OTA = {"backports", "tuf", "urllib3"}
"""What the extra `ota` brings, for these folders; nothing else loads them before an update is asked for."""
ENROLL_FILES = (
    "devices/agent/renewal.py",
    "devices/certificates.py",
    "devices/enrolment.py",
    "devices/signing.py",
)
ENROLL = {"cryptography"}
"""What the extra `enroll` brings, for these files; an agent without an identity loads none of them."""
HOST_FOLDERS = ("devices/fleet/", "converter/")
HOST_FILES = ("devices/transport/ssh.py", "profiler/report", "profiler/pareto", "profiler/operators_plot")
BUILD_FILES = ("runtime/native/",)

FILES = sorted(path.relative_to(ROOT).as_posix() for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
DEVICE_FILES = [name for name in FILES if not name.startswith(HOST_FOLDERS + HOST_FILES + BUILD_FILES)]
DEVICE_MODULES = [
    f"ferryman.{name.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}" for name in DEVICE_FILES
]

IMPORT_ALL = """
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        for blocked in BLOCKED:
            if name == blocked or name.startswith(blocked + "."):
                raise ImportError(f"{name} is blocked in this test")

names, BLOCKED = json.load(sys.stdin)
sys.meta_path.insert(0, Blocked())
for name in names:
    importlib.import_module(name)
from ferryman.cli import main
print(json.dumps(sorted(sys.modules)))
"""


def imported(name: str, *, top_level_only: bool = False) -> set[str]:
    """Every module a file imports, absolutely."""
    tree = ast.parse((ROOT / name).read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively: always `ferryman.x.y`"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_there_is_something_to_check():
    assert {name.partition("/")[0] for name in FILES} == set(FLOORS)
    assert "devices/agent/agent.py" in DEVICE_FILES
    assert len(DEVICE_FILES) > 40


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down_only(name):
    floor = name.partition("/")[0]
    own = {module.split(".")[1] for module in imported(name) if module.startswith("ferryman.")}
    assert own & set(FLOORS) <= MAY_IMPORT[floor]


@pytest.mark.parametrize("name", DEVICE_FILES)
def test_the_device_side_never_imports_torch_or_the_converter(name):
    hits = {m for m in imported(name) for host in HOST_ONLY if m == host or m.startswith(f"{host}.")}
    assert not hits


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("devices/")])
def test_nothing_that_talks_to_devices_needs_the_converter(name):
    assert not {m for m in imported(name) if m.startswith(("ferryman.converter", "torch"))}


@pytest.mark.parametrize("name", DEVICE_FILES)
def test_the_device_side_loads_with_the_base_dependencies(name):
    heads = {module.partition(".")[0] for module in imported(name, top_level_only=True)}
    extra = OTA if name.startswith(OTA_FOLDERS) else ENROLL if name in ENROLL_FILES else set()
    assert heads <= BASE | sys.stdlib_module_names | extra


@pytest.mark.parametrize("name", [name for name in DEVICE_FILES if not name.startswith(OTA_FOLDERS)])
def test_nothing_loads_the_updates_packages_before_they_are_needed(name):
    modules = {f"ferryman.{folder.strip('/').replace('/', '.')}" for folder in OTA_FOLDERS}
    assert not {m for m in imported(name, top_level_only=True) if m.startswith(tuple(modules))}


@pytest.mark.parametrize("name", [name for name in DEVICE_FILES if name not in ENROLL_FILES])
def test_nothing_loads_what_enrols_before_it_is_needed(name):
    modules = {f"ferryman.{file.removesuffix('.py').replace('/', '.')}" for file in ENROLL_FILES}
    assert not {m for m in imported(name, top_level_only=True) if m.startswith(tuple(modules))}


def test_the_device_agent_does_not_reach_into_the_hosts_half():
    for name in DEVICE_FILES:
        assert not {m for m in imported(name) if m.startswith("ferryman.devices.fleet")}, name


def import_all(python: str, blocked: tuple[str, ...]) -> set[str]:
    done = subprocess.run(
        [python, "-W", "error", "-c", IMPORT_ALL],
        input=json.dumps([DEVICE_MODULES, blocked]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_every_device_module_loads_where_torch_and_the_converter_are_blocked():
    loaded = import_all(sys.executable, HOST_ONLY)
    assert set(DEVICE_MODULES) <= loaded
    assert not loaded & {"asyncssh", "matplotlib", "jinja2", "ai_edge_litert", "tflite_runtime"}


def test_every_device_module_loads_in_the_device_environment():
    if not DEVICE_PYTHON.exists():
        pytest.skip("there is no .venv-device; make .venv-device/.ready")
    assert set(DEVICE_MODULES) <= import_all(str(DEVICE_PYTHON), ())


def test_the_block_of_this_test_works():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL],
        input=json.dumps([["ferryman.converter.source"], HOST_ONLY]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "is blocked in this test" in done.stderr


@pytest.mark.parametrize("floor", FLOORS)
def test_the_import_package_links_to_the_top_level_folders(floor):
    link = ROOT / "src" / "ferryman" / floor
    assert link.is_symlink()
    assert link.readlink() == Path(f"../../{floor}")


def test_the_command_line_starts_without_numpy():
    """It is the slowest of what a device imports, and most commands of one that is asked little need none."""
    script = "import sys, ferryman.cli; print('numpy' in sys.modules, sys.modules['ferryman'].__version__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"

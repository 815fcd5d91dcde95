"""The amd64 root started by a real systemd as process 1, in a container of systemd-nspawn, to try units in."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.device_root import build_root, why_not
from tests.support.interpreters import ROOT

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SITE = ROOT / ".venv-device" / "lib" / "python3.11" / "site-packages"
HOST_SITE = ROOT / ".venv" / "lib" / "python3.11" / "site-packages"
START_S = 60.0
_NAMESPACES = ("--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup")
_OPTIONS = (
    "--register=no",  # no systemd on this machine that would keep a list
    "--keep-unit",
    "--private-network",
    "--console=pipe",
    "--system-call-filter=@clock",  # asking whether the clock is synchronized; setting it takes more than that
)


def why_none() -> str:
    """Why nothing can be started here."""
    if shutil.which("systemd-nspawn") is None:
        return "systemd-nspawn is not installed: apt-get install systemd-container"
    if not SITE.is_dir():
        return f"no {SITE}, which has ferryman for the Python of the root: make test with Python 3.11"
    return why_not("amd64")


@dataclass(frozen=True)
class Booted:
    """A container with systemd."""

    path: Path
    pid: int
    """Of its process 1, as this machine numbers it."""

    def run(self, *command: str | Path, check: bool = True, timeout_s: float = 120.0) -> str:
        """Run a program there to its end; what it said, whitespace around it stripped.

        Raises:
            AssertionError: it failed, and `check` is on.
        """
        enter = ["nsenter", f"--target={self.pid}", *_NAMESPACES, "env", "-i", f"PATH={_PATH}"]
        done = subprocess.run(
            [*enter, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "-p", name, "--value", unit)

    def until(self, unit: str, name: str, value: str, timeout_s: float = 60.0) -> None:
        """Wait for a property of a unit.

        Raises:
            AssertionError: it did not become so; with the unit's log.
        """
        end = time.monotonic() + timeout_s
        while (found := self.show(unit, name)) != value:
            if time.monotonic() > end:
                raise AssertionError(f"{unit}: {name} is {found}, not {value}\n{self.log(unit)}")
            time.sleep(0.1)

    def log(self, unit: str) -> str:
        """What it and systemd said of it."""
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit)


def unpack(path: Path) -> None:
    """The root as files, with this checkout's ferryman at /srv/site, and beside it what tests need."""
    path.mkdir()
    subprocess.run(["tar", "--zstd", "-xpf", build_root("amd64"), "-C", path, "--exclude=./dev/*"], check=True)
    (path / "etc" / "hosts").write_text("127.0.0.1 localhost\n")
    # Copies, not this checkout where it is: a unit does not see /home and /tmp.
    site = path / "srv" / "site" / "ferryman"
    shutil.copytree(ROOT / "src" / "ferryman", site, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SITE / "ferryman", site, dirs_exist_ok=True)
    shutil.copytree(ROOT / "firmware_scripts", path / "srv" / "firmware_scripts")
    shutil.copytree(ROOT / "tests" / "golden", path / "srv" / "golden")


@contextmanager
def booted(path: Path, *options: str) -> Iterator[Booted]:
    """Start the root at `path`; it has a loopback for its network, and sees the device's environment.

    Raises:
        RuntimeError: systemd does not come up here; the message has what was said.
    """
    visible = [f"--bind-ro={folder}:{there}" for there, folder in _visible().items()]
    name = f"ferryman-{os.getpid()}-{path.name}"
    command = ["systemd-nspawn", "-D", str(path), "-M", name, *_OPTIONS, *visible, *options]
    command += ["/lib/systemd/systemd", "--log-target=journal"]
    said = path.parent / f"{path.name}.console"
    with (
        said.open("w") as console,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True
        ) as host,
    ):
        container: Booted | None = None
        try:
            container = _up(host, path, said)
            yield container
        finally:
            if container is not None:
                container.run("systemctl", "poweroff", "--force", check=False)
            try:
                host.wait(60)
            except subprocess.TimeoutExpired:
                host.kill()


def _up(host: subprocess.Popen[bytes], path: Path, said: Path) -> Booted:
    end, state = time.monotonic() + START_S, "no process 1"
    while host.poll() is None and time.monotonic() < end:
        children = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()
        if children:
            found = Booted(path, int(children[0]))
            state = found.run("systemctl", "is-system-running", check=False)
            if state in {"running", "degraded"}:
                return found
        time.sleep(0.2)
    host.kill()
    raise RuntimeError(f"systemd does not come up in a container here: {state}; {said.read_text()[-2000:]}")


def _visible() -> dict[str, Path]:
    """The device's environment, those that it takes from, then the host's; where they are in the root."""
    found: list[Path] = []
    for site in (SITE, HOST_SITE):
        lines = [line.strip() for file in sorted(site.glob("*.pth")) for line in file.read_text().splitlines()]
        found += [site, *(Path(line) for line in lines if line.startswith("/") and Path(line) != ROOT / "src")]
    return {f"/srv/site-{at}": folder for at, folder in enumerate(found) if folder.is_dir()}


def pointing_wheel(folder: Path, *, version: str, main: str = "ferryman.cli:main") -> Path:
    """A wheel of ferryman without files: it leads to what `unpack` and `booted` put into the root.

    Args:
        folder: where it is written.
        version: of the wheel.
        main: what its program calls.
    """
    info = f"ferryman-{version}.dist-info"
    files = {
        "ferryman_here.pth": "\n".join(["/srv/site", *_visible(), ""]),
        "broken_ferryman.py": "import sys\ndef main(): sys.exit('--version' not in sys.argv)\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: ferryman\nVersion: {version}\nProvides-Extra: enroll\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: by-hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\nferryman = {main}\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    path = folder / f"ferryman-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path

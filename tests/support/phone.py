"""A phone's insides: mksh and toybox as Android has them, its /proc and /sys as files, and a stand-in for the runner.

It proves how our lines are understood, not what SELinux, bionic or a vendor's kernel say to them.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
import tarfile
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ferryman.devices.transport.base import OUTPUT_MAX_BYTES, CompletedCommand, Progress
from ferryman.runtime.contracts.errors import DeviceError, LinkError
from ferryman.runtime.contracts.manifest import GoldenVector, Lowering, Requirements, Variant
from ferryman.runtime.contracts.tensor import to_tensors
from ferryman.runtime.package import write_package
from tests.support.packages import SIGNATURE, add_model

MKSH, TOYBOX = shutil.which("mksh"), shutil.which("toybox")
WHY_NOT = "" if MKSH and TOYBOX else "mksh or toybox is not installed (apt-get install mksh toybox)"
_PATHS = re.compile(r"(?<=[\s'\"<])/(?=(?:proc|sys)/)")
_PROPERTIES = {
    "ro.product.cpu.abilist": "x86_64,x86",
    "ro.product.manufacturer": "Acme",
    "ro.product.model": "Phone 9",
    "ro.soc.manufacturer": "Acme",
    "ro.soc.model": "S900",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
}
_CPUINFO = """\
processor\t: 0
BogoMIPS\t: 38.40
Features\t: fp asimd aes sha1 crc32 atomics fphp asimdhp asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: 0xd0d
CPU revision\t: 0
"""
_THERMAL = """\
IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 1
Thermal Status: {status}
Cached temperatures:
\tTemperature{{mValue=30.0, mType=2, mName=battery, mStatus=0}}
HAL Ready: true
Current temperatures from HAL:
\tTemperature{{mValue={celsius}, mType=0, mName=CPU0, mStatus=0}}
\tTemperature{{mValue=31.5, mType=2, mName=battery, mStatus=0}}
\tTemperature{{mValue=4100.0, mType=6, mName=vbat, mStatus=0}}
Current cooling devices from HAL:
\tCoolingDevice{{mValue=0, mType=2, mName=thermal-cpufreq-0}}
"""
BATTERY = """\
Current Battery Service state:
  AC powered: {ac}
  USB powered: false
  status: {status}
  level: 83
  scale: 100
  voltage: 4231
  temperature: 315
  Charge counter: 3411000
"""
_APPLETS = (
    *("cat", "chmod", "cp", "date", "df", "du", "echo", "find", "grep", "head", "ls", "mkdir", "mv", "printf", "rm"),
    *("readlink", "sha256sum", "sleep", "sort", "stat", "tail", "touch", "uname", "wc", "id", "dd", "true"),
)


class AndroidSystem:
    """Runs lines as `adb shell` does."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "data/local/tmp/ferryman"
        self.bin, self.system = root / "bin", root / "system/bin"
        for folder in (self.home.parent, self.bin, self.system):
            folder.mkdir(parents=True, exist_ok=True)
        for applet in _APPLETS:
            (self.system / applet).symlink_to(TOYBOX or "toybox")
        (self.system / "sh").symlink_to(MKSH or "mksh")
        self.properties = dict(_PROPERTIES)
        self.write("proc/cpuinfo", "\n".join(_CPUINFO.replace("processor\t: 0", f"processor\t: {n}") for n in range(4)))
        self.write("proc/meminfo", "MemTotal:        7861236 kB\nMemAvailable:    3512344 kB\n")
        self.write("proc/loadavg", "1.25 1.00 0.75 2/1024 4242\n")
        self.write("proc/self/status", "Name:\tgrep\nCpus_allowed_list:\t0-3\n")
        for core in range(4):
            folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
            self.write(f"{folder}/scaling_cur_freq", "1804800\n")
            self.write(f"{folder}/scaling_governor", "schedutil\n")
        self.says("sync", "exit 0")  # this machine's disks are others', too
        self.says("dumpsys", 'case "$1" in thermalservice) cat "$0.thermal";; battery) cat "$0.battery";; esac')
        self.heat(38.5)
        self.battery(ac="false", status=3)
        self.boot()

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def says(self, program: str, script: str) -> None:
        """Put a program where the phone's own lie."""
        path = self.bin / program
        path.write_text(f"#!{MKSH}\n{script}\n")
        path.chmod(0o755)

    def heat(self, celsius: float, status: int = 0) -> None:
        (self.bin / "dumpsys.thermal").write_text(_THERMAL.format(celsius=celsius, status=status))

    def battery(self, *, ac: str, status: int) -> None:
        (self.bin / "dumpsys.battery").write_text(BATTERY.format(ac=ac, status=status))

    def boot(self) -> None:
        """Another start of the phone: it counts its time anew."""
        self.write("proc/sys/kernel/random/boot_id", f"{uuid.uuid4()}\n")
        self.up(100)

    def up(self, seconds: float) -> None:
        self.write("proc/uptime", f"{seconds:.2f} 1.00\n")

    def command(self, text: str) -> subprocess.CompletedProcess[bytes]:
        cases = " ".join(f"{name}) echo '{value}';;" for name, value in self.properties.items())
        self.says("getprop", f'case "$1" in {cases} *) echo;; esac')
        text = _PATHS.sub(f"{self.root}/", text)
        environment = {"PATH": f"{self.bin}:{self.system}", "HOME": "/", "TMPDIR": str(self.root)}
        done = subprocess.run(
            [str(MKSH), "-c", text], capture_output=True, stdin=subprocess.DEVNULL, env=environment, check=False
        )
        for folder in ("proc", "sys"):
            done.stdout = done.stdout.replace(f"{self.root}/{folder}/".encode(), f"/{folder}/".encode())
        return done

    def path(self, remote: str) -> Path:
        """Where a file of the phone lies here."""
        return Path(remote)


class DirectLink:
    """Implements `PhoneLink` without adb; cut at the n-th thing that is asked, before or after it is done."""

    serial = "direct"

    def __init__(self, system: AndroidSystem, cut_at: int | None = None, *, done_first: bool = False) -> None:
        self.system, self.cut_at, self.done_first = system, cut_at, done_first
        self.asked = 0
        self.on_ask: Callable[[int, str], None] = lambda _count, _what: None

    def put(self, local: Path, remote: str, progress: Progress) -> None:
        def do() -> None:
            target = self.system.path(remote)
            data = local.read_bytes()
            try:
                target.write_bytes(data[: len(data) // 2] if self._cutting and self.done_first else data)
                target.chmod(0o755 if os.access(local, os.X_OK) else 0o644)
            except OSError as error:
                raise DeviceError(f"cannot write {remote}: {error.strerror}") from error
            progress(len(data), len(data))

        self._do(do, f"put {remote}")

    def shell(self, line: str, *, timeout_s: float, output_max_bytes: int = OUTPUT_MAX_BYTES) -> CompletedCommand:
        done = self._do(lambda: self.system.command(line), line)
        status = done.returncode if done.returncode <= 128 else 128 - done.returncode
        return CompletedCommand(status, done.stdout, done.stderr)

    @property
    def _cutting(self) -> bool:
        return self.asked == self.cut_at

    def _do(self, what: Callable, words: str):
        self.asked += 1
        self.on_ask(self.asked, words)
        if self.cut_at is not None and (self.asked > self.cut_at or (self._cutting and not self.done_first)):
            raise LinkError("cut")
        found = what()
        if self._cutting:
            raise LinkError("cut")
        return found

    def close(self) -> None: ...


STAND_IN = '''\
#!/usr/bin/python3 -IS
"""Obeys the runner's contract for artifacts of 4 numbers: adds what their first four bytes say."""
import array, json, os, signal, struct, sys, time

def fail(party, message):
    print(json.dumps({"error": {"party": party, "message": message}}))
    sys.exit(1)

command, words = sys.argv[1], sys.argv[2:]
if command == "facts":
    print(json.dumps({"runner": "0.2.0", "executorch": "1.5.1", "kernels_version": 4, "kernels_isa": "neon_dot",
                      "machine": os.uname().machine, "cores": 4, "kernel": os.uname().release, "page_bytes": 4096}))
    sys.exit()
artifact, options, at = words[0], {}, 1
while at < len(words):
    if words[at] == "--window":
        options["--window"] = ["1"]
        at += 1
        continue
    options.setdefault(words[at], []).append(words[at + 1])
    at += 2
data = open(artifact, "rb").read()
if data[4:8] == b"DIE!":
    os.kill(os.getpid(), signal.SIGSEGV)
if data[4:8] == b"BAD!":
    fail("package", "method load failed: error 0x23")
if command == "describe":
    print(json.dumps({"entries": ["forward"], "inputs": [], "outputs": [], "planned_bytes": 64}))
    sys.exit()
added = struct.unpack("<f", data[:4])[0]
found = array.array("f", open(options["--input"][0].partition(":")[0], "rb").read())
if len(found) != 4:
    fail("caller", f"expected 16 bytes, found {4 * len(found)}")
if command == "run":
    with open(options["--output"][0], "wb") as file:
        array.array("f", [value + added for value in found]).tofile(file)
    print(json.dumps({"open_ns": 1000, "run_ns": 2000, "outputs": [{"dtype": "float32", "shape": [1, 4]}]}))
else:
    seconds, most = float(options["--seconds"][0]), int(options.get("--runs-max", ["1000000"])[0])
    least = int(options.get("--runs-min", ["30"])[0])
    count = max(min(int(seconds / 0.001), most), least)
    warm = [3_000_000, 2_000_000, 1_500_000] + [1_000_000] * int(float(options["--warmup-s"][0]) * 1000)
    if "--window" in options:
        begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        time.sleep(seconds)
        end = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    else:
        begin, end = 10**9, 10**9 + count * 1_000_000
        time.sleep(min((4_500_000 + sum(warm) + end - begin) / 1e9, 0.03))  # QUICK takes the time that it tells
    phase = {"rss_bytes": 9_000_000, "pss_bytes": 8_000_000, "uss_bytes": 7_000_000, "peak_rss_bytes": 9_500_000,
             "anonymous_bytes": 1_000_000, "file_bytes": 7_000_000}
    phases = {name: phase for name in ("before", "opened", "first_run", "after")}
    print(json.dumps({"open_ns": 500_000, "first_run_ns": 4_000_000, "warmup_ns": warm,
                      "samples_ns": [1_000_000 + index % 7 for index in range(count)], "started_monotonic_ns": begin,
                      "ended_monotonic_ns": end, "started_boottime_ns": begin, "ended_boottime_ns": end, "threads": 1,
                      "memory": {"phases": phases}, "state_before": {}, "state_after": {}}))
'''


def stand_in_bundle(path: Path, version: str = "1", script: str = STAND_IN) -> Path:
    """A runner that is none, for this machine."""
    elf = struct.pack("<4s14xH", b"\x7fELF", {"x86_64": 62, "aarch64": 183}[os.uname().machine]) + version.encode()
    with tarfile.open(path, "w:gz") as archive:
        for name, data, mode in (
            ("ferryman-runner/ferryman_runner", script.encode(), 0o755),
            ("ferryman-runner/lib/libexecutorch.so", elf, 0o644),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            archive.addfile(member, io.BytesIO(data))
    return path


def write_phone_package(
    path: Path,
    *,
    added: float = 1.0,
    promised: float | None = None,
    artifact: bytes | None = None,
    isa: tuple[str, ...] = (),
    executorch: str | None = "1.5",
    operators: int = 0,
    padding: int = 0,
) -> Path:
    """A package with a variant that the stand-in runs, and one for TFLite that no phone does."""
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    answer = x + np.float32(added if promised is None else promised)

    def variant(name: str, runtime: str, payload: str, interpreters: dict[str, str]) -> Variant:
        return Variant(
            name=name,
            form="fp32",
            runtime=runtime,
            payload=payload,
            signature=SIGNATURE,
            requires=Requirements(
                interpreters=interpreters, isa=isa, operators=operators, memory_estimate_bytes=1 << 20
            ),
            lowering=Lowering(delegated={}, fallback={"ADD": 1}, delegates=0),
            verified=(),
        )

    variants = [variant("fp32-tflite", "tflite", "artifacts/model.tflite", {"ai-edge-litert": "2.0"})]
    artifacts = {"artifacts/model.tflite": add_model(added)}
    if executorch:
        variants.insert(0, variant("fp32-executorch", "executorch", "artifacts/model.pte", {"executorch": executorch}))
        artifacts["artifacts/model.pte"] = artifact or struct.pack("<f", added) + bytes(4 + padding)
    write_package(
        path,
        name=f"add-{added:g}",
        signature=SIGNATURE,
        variants=variants,
        artifacts=artifacts,
        golden=[GoldenVector(inputs=to_tensors([x]), outputs=to_tensors([answer]))],
        golden_sqnr_min_db=60.0,
        created_with={"by-hand": "1"},
    )
    return path

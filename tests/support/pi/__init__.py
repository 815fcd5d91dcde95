"""What a Raspberry Pi shows of itself where qemu shows nothing: /proc/cpuinfo and a small /sys.

Made up after the layout of Raspberry Pi OS 12 kernels: it shows that readers parse such files, not that they match a
board. Without it the cpuinfo library of the interpreters reads the x86 host's files and crashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CORES = 4


@dataclass(frozen=True)
class Board:
    """One that has been sold."""

    model: str
    compatible: tuple[str, ...]
    part: str
    """CPU part of /proc/cpuinfo."""
    revision: str
    min_khz: int
    max_khz: int
    patch: str = "3"

    def cpuinfo(self) -> str:
        """/proc/cpuinfo: an aarch64 kernel lists features that qemu's model of the core has, too."""
        core = (
            "BogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {self.part}\nCPU revision\t: {self.patch}\n"
        )
        cores = "\n".join(f"processor\t: {number}\n{core}" for number in range(CORES))
        return f"{cores}\nRevision\t: {self.revision}\nSerial\t\t: 10000000deadbeef\nModel\t\t: {self.model}\n"

    def write(self, folder: Path) -> None:
        """`cpuinfo` and `sys` in `folder`."""
        (folder / "cpuinfo").write_text(self.cpuinfo())
        self._write_sys(folder / "sys")

    def _write_sys(self, folder: Path) -> None:
        for name, text in self._files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name in _EMPTY:
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "class/thermal").mkdir(parents=True)
        (folder / "class/thermal/thermal_zone0").symlink_to("../../devices/virtual/thermal/thermal_zone0")
        (folder / "class/hwmon").mkdir()
        (folder / "class/hwmon/hwmon0").symlink_to("../../devices/virtual/thermal/thermal_zone0/hwmon0")

    def _files(self) -> dict[str, str]:
        cpus = "devices/system/cpu"
        files = {
            f"{cpus}/possible": f"0-{CORES - 1}\n",
            f"{cpus}/present": f"0-{CORES - 1}\n",
            f"{cpus}/online": f"0-{CORES - 1}\n",
            f"{cpus}/kernel_max": "255\n",
            "firmware/devicetree/base/model": f"{self.model}\0",
            "firmware/devicetree/base/compatible": "".join(f"{name}\0" for name in self.compatible),
            "firmware/devicetree/base/serial-number": "10000000deadbeef\0",
            "devices/virtual/thermal/thermal_zone0/type": "cpu-thermal\n",
            "devices/virtual/thermal/thermal_zone0/temp": "48686\n",
            "devices/virtual/thermal/thermal_zone0/trip_point_0_temp": "110000\n",
            "devices/virtual/thermal/thermal_zone0/trip_point_0_type": "critical\n",
            "devices/virtual/thermal/thermal_zone0/hwmon0/name": "cpu_thermal\n",
            "devices/virtual/thermal/thermal_zone0/hwmon0/temp1_input": "48686\n",
        }
        for number in range(CORES):
            topology = f"{cpus}/cpu{number}/topology"
            files |= {
                f"{topology}/core_id": f"{number}\n",
                f"{topology}/physical_package_id": "0\n",
                f"{topology}/core_siblings": "f\n",
                f"{topology}/core_siblings_list": f"0-{CORES - 1}\n",
                f"{topology}/thread_siblings": f"{1 << number:x}\n",
                f"{topology}/thread_siblings_list": f"{number}\n",
            }
            files |= {f"{cpus}/cpu{number}/cpufreq/{name}": text for name, text in self._frequencies().items()}
        return files

    def _frequencies(self) -> dict[str, str]:
        return {
            "scaling_governor": "ondemand\n",
            "scaling_available_governors": "conservative ondemand userspace powersave performance schedutil\n",
            "scaling_cur_freq": f"{self.max_khz}\n",
            "scaling_min_freq": f"{self.min_khz}\n",
            "scaling_max_freq": f"{self.max_khz}\n",
            "cpuinfo_min_freq": f"{self.min_khz}\n",
            "cpuinfo_max_freq": f"{self.max_khz}\n",
            "scaling_driver": "cpufreq-dt\n",
            "related_cpus": " ".join(map(str, range(CORES))) + "\n",
            "affected_cpus": " ".join(map(str, range(CORES))) + "\n",
        }


_EMPTY = ("class/power_supply", "class/net", "bus/iio/devices", "bus/i2c/devices", "kernel", "fs/cgroup", "module")

PI_3 = Board(
    model="Raspberry Pi 3 Model B Rev 1.2",
    compatible=("raspberrypi,3-model-b", "brcm,bcm2837"),
    part="0xd03",
    revision="a02082",
    min_khz=600_000,
    max_khz=1_200_000,
    patch="4",
)
PI_4 = Board(
    model="Raspberry Pi 4 Model B Rev 1.4",
    compatible=("raspberrypi,4-model-b", "brcm,bcm2711"),
    part="0xd08",
    revision="c03114",
    min_khz=600_000,
    max_khz=1_800_000,
)
BOARD_OF = {"cortex-a53": PI_3, "cortex-a72": PI_4}
"""Board by its core, as qemu names that."""

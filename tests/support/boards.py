"""/proc and /sys of boards, made from public documentation: kernel sources, data sheets, device trees. Not recorded.

What a kernel prints as Features follows from the core (Arm's Technical Reference Manuals); clocks are the makers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_ARMV8_0 = "fp asimd evtstrm crc32 cpuid"
"""Cortex-A53 and A72 as Broadcom builds them, without the cryptographic extension."""
_A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
_A55 = _A76
_TX2 = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
_N100 = (
    "fpu de pse tsc msr pae cx8 sep pge cmov mmx fxsr sse sse2 ht syscall nx lm ssse3 fma cx16 sse4_1 sse4_2 movbe "
    "popcnt aes xsave avx f16c rdrand lahf_lm avx2 bmi1 bmi2 avx_vnni"
)
DEBIAN_12 = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nNAME="Debian GNU/Linux"\nID=debian\n'
Files = dict[str, str]


def arm_cores(kinds: Sequence[tuple[int, int, str, int]]) -> Files:
    """Cores as (implementer, part, features, kHz), each with its files."""
    text = "".join(
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {features}\nCPU implementer\t: {implementer:#x}\n"
        f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {part:#x}\nCPU revision\t: 4\n\n"
        for number, (implementer, part, features, _) in enumerate(kinds)
    )
    clocks = {
        f"sys/devices/system/cpu/cpu{number}/cpufreq/cpuinfo_max_freq": f"{khz}\n"
        for number, (_, _, _, khz) in enumerate(kinds)
    }
    return {"proc/cpuinfo": text, **clocks}


def _board(model: str, compatible: str, memory_kib: int, cores: Files) -> Files:
    return {
        **cores,
        "proc/device-tree/model": f"{model}\0",
        "proc/device-tree/compatible": f"{compatible}\0",
        "proc/meminfo": f"MemTotal:       {memory_kib} kB\nMemAvailable:   {memory_kib // 2} kB\n",
        "etc/os-release": DEBIAN_12,
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48300\n",
    }


def _pi(model: str, name: str, chip: str, memory_kib: int, part: int, features: str, khz: int) -> Files:
    return _board(
        model, f"raspberrypi,{name}\0brcm,{chip}", memory_kib, arm_cores([(0x41, part, features, khz)] * 4)
    )  # fmt: skip


PI_3 = _pi("Raspberry Pi 3 Model B Plus Rev 1.3", "3-model-b-plus", "bcm2837", 921_000, 0xD03, _ARMV8_0, 1_400_000)
ZERO_2_W = _pi("Raspberry Pi Zero 2 W Rev 1.0", "model-zero-2-w", "bcm2837", 425_000, 0xD03, _ARMV8_0, 1_000_000)
PI_4 = _pi("Raspberry Pi 4 Model B Rev 1.4", "4-model-b", "bcm2711", 3_885_000, 0xD08, _ARMV8_0, 1_800_000)
PI_5 = _pi("Raspberry Pi 5 Model B Rev 1.0", "5-model-b", "bcm2712", 8_256_000, 0xD0B, _A76, 2_400_000)
JETSON_LIKE = {
    **_board(
        "NVIDIA Jetson TX2 Developer Kit",
        "nvidia,p2597-0000+p3310-1000\0nvidia,tegra186",
        8_000_000,
        arm_cores(
            [
                (0x41, 0xD07, _TX2, 2_035_200),
                *[(0x4E, 0x003, _TX2, 2_035_200)] * 2,
                *[(0x41, 0xD07, _TX2, 2_035_200)] * 3,
            ]
        ),
    ),
    "sys/class/hwmon/hwmon3/name": "ina3221\n",
    "sys/class/hwmon/hwmon3/in1_label": "VDD_IN\n",
    "sys/class/hwmon/hwmon3/in1_input": "5064\n",
    "sys/class/hwmon/hwmon3/curr1_input": "1184\n",
    "sys/class/hwmon/hwmon3/shunt1_resistor": "5000\n",
}
BIG_LITTLE = _board(
    "Radxa ROCK 5B",
    "radxa,rock-5b\0rockchip,rk3588",
    16_000_000,
    arm_cores([(0x41, 0xD05, _A55, 1_800_000)] * 4 + [(0x41, 0xD0B, _A76, 2_400_000)] * 4),
)
X86 = {
    "proc/cpuinfo": "".join(
        f"processor\t: {core}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) N100\nflags\t\t: {_N100}\n\n"
        for core in range(4)
    ),
    **{f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq": "3400000\n" for core in range(4)},
    "proc/meminfo": "MemTotal:       16000000 kB\nMemAvailable:   12000000 kB\n",
    "sys/class/dmi/id/product_name": "Mini PC\n",
    "etc/os-release": DEBIAN_12,
}
BOARDS: Mapping[str, Files] = {
    "pi 3": PI_3,
    "zero 2 w": ZERO_2_W,
    "pi 4": PI_4,
    "pi 5": PI_5,
    "jetson-like": JETSON_LIKE,
    "big.LITTLE": BIG_LITTLE,
    "x86": X86,
}


def said(files: Mapping[str, str], mark: str, answers: Mapping[str, str]) -> bytes:
    """What `bare.sh` would print on such a board."""
    parts = [f"\n{mark} /{name}\n{text}" for name, text in files.items()]
    parts += [f"\n{mark} {name}\n{text}\n" for name, text in {**answers, "end": ""}.items()]
    return "".join(parts).encode()


ANSWERS = {
    "machine": "aarch64",
    "kernel": "6.6.31+rpt-rpi-v8",
    "user": "pi",
    "bits": "64",
    "libc": "glibc 2.36",
    "python": "3.11.2",
    "synchronized": "yes",
    "disk": "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/mmcblk0p2 30000000 4000000 24000000 15% /",
    "writable": "no",
}

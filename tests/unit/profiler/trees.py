"""Recorded /proc and /sys trees, written under a root."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

PMIC_TEXT = """\
 3V7_WL_SW_A current(0)=0.08972809A
   3V3_SYS_A current(1)=0.08047357A
   1V8_SYS_A current(2)=0.18708729A
  DDR_VDD2_A current(3)=0.20230623A
  DDR_VDDQ_A current(4)=0.06724132A
   1V1_SYS_A current(5)=0.17000482A
    0V8_SW_A current(6)=0.33674761A
  VDD_CORE_A current(7)=6.23531758A
   3V3_DAC_A current(17)=0.00005427A
   3V3_ADC_A current(18)=0.00036047A
   0V8_AON_A current(16)=0.00273738A
      HDMI_A current(22)=0.02180104A
 3V7_WL_SW_V volt(8)=3.69754190V
   3V3_SYS_V volt(9)=3.31868813V
   1V8_SYS_V volt(10)=1.79969332V
  DDR_VDD2_V volt(11)=1.10231496V
  DDR_VDDQ_V volt(12)=0.60207777V
   1V1_SYS_V volt(13)=1.11423157V
    0V8_SW_V volt(14)=0.80195876V
  VDD_CORE_V volt(15)=0.86102073V
   3V3_DAC_V volt(20)=3.32580636V
   3V3_ADC_V volt(21)=3.29477821V
   0V8_AON_V volt(19)=0.80258724V
      HDMI_V volt(23)=5.07807855V
     EXT5V_V volt(24)=5.07617219V
      BATT_V volt(25)=0.00000000V
"""

PI5 = {
    "proc/cpuinfo": "".join(
        f"processor\t: {core}\nBogoMIPS\t: 108.00\n"
        "Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm lrcpc asimddp\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x4\nCPU part\t: 0xd0b\nCPU revision\t: 1\n\n"
        for core in range(4)
    ),
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/loadavg": "0.52 0.58 0.59 1/388 12345\n",
    "proc/meminfo": "MemTotal:        8256624 kB\nMemFree:         5000000 kB\nMemAvailable:    7000000 kB\n",
    "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "48300\n",
    **{f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor": "ondemand\n" for core in range(4)},
    **{f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": "2400000\n" for core in range(4)},
}

RAPL = {
    "intel-rapl:0/name": "package-0\n",
    "intel-rapl:0/energy_uj": "17515587911\n",
    "intel-rapl:0/max_energy_range_uj": "262143328850\n",
    "intel-rapl:0:0/name": "core\n",
    "intel-rapl:0:0/energy_uj": "9000000000\n",
    "intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    "intel-rapl:0:1/name": "dram\n",
    "intel-rapl:0:1/energy_uj": "1000000\n",
    "intel-rapl:0:1/max_energy_range_uj": "65712999613\n",
    "intel-rapl:1/name": "psys\n",
    "intel-rapl:1/energy_uj": "5\n",
    "intel-rapl:1/max_energy_range_uj": "262143328850\n",
    "intel-rapl-mmio:0/name": "package-0\n",
    "intel-rapl-mmio:0/energy_uj": "17515587911\n",
    "intel-rapl-mmio:0/max_energy_range_uj": "262143328850\n",
}

INA226 = {
    "hwmon0/name": "cpu_thermal\n",
    "hwmon1/name": "ina226\n",
    "hwmon1/in0_input": "8\n",
    "hwmon1/in1_input": "5104\n",
    "hwmon1/curr1_input": "842\n",
    "hwmon1/power1_input": "4300000\n",
    "hwmon1/shunt_resistor": "10000\n",
    "hwmon1/update_interval": "34\n",
}

INA3221 = {
    "hwmon3/name": "ina3221\n",
    "hwmon3/in1_label": "VDD_IN\n",
    "hwmon3/in2_label": "VDD_CPU_GPU_CV\n",
    "hwmon3/in3_label": "VDD_SOC\n",
    **{f"hwmon3/in{n}_input": f"{mv}\n" for n, mv in ((1, 5064), (2, 5056), (3, 5056))},
    **{f"hwmon3/curr{n}_input": f"{ma}\n" for n, ma in ((1, 1184), (2, 192), (3, 392))},
    **{f"hwmon3/shunt{n}_resistor": "5000\n" for n in (1, 2, 3)},
    "hwmon3/update_interval": "106\n",
}

BATTERY = {
    "AC/type": "Mains\n",
    "BAT0/type": "Battery\n",
    "BAT0/status": "Discharging\n",
    "BAT0/current_now": "-500000\n",
    "BAT0/voltage_now": "4000000\n",
    "hid-mouse/type": "Battery\n",
    "hid-mouse/scope": "Device\n",
    "hid-mouse/status": "Discharging\n",
}


PHONE_BATTERY = {
    "battery/type": "Battery\n",
    "battery/status": "Discharging\n",
    "battery/current_now": "-812500\n",
    "battery/voltage_now": "3815175\n",
    "battery/charge_counter": "2411000\n",
}

ODPM0 = """\
t=412006
CH0(T=412006)[S10M_VDD_TPU], 5323477
CH1(T=412006)[VSYS_PWR_MODEM], 35167854
CH2(T=412006)[VSYS_PWR_RFFE], 2818930
CH3(T=412006)[S2M_VDD_CPUCL2], 32945982
CH4(T=412006)[S3M_VDD_CPUCL1], 26170136
CH5(T=412006)[S4M_VDD_CPUCL0], 45717159
CH6(T=412006)[S5M_VDD_INT], 11567618
CH7(T=412006)[S1M_VDD_MIF], 17535242
"""
ODPM1 = """\
t=412007
CH0(T=412007)[VSYS_PWR_WLAN_BT], 1867345
CH6(T=412007)[S2S_VDD_G3D], 3918201
"""
ODPM_ENABLED = "CH3[S2M_VDD_CPUCL2]:CPU\nCH4[S3M_VDD_CPUCL1]:CPU\nCH5[S4M_VDD_CPUCL0]:CPU\n"
ODPM = {
    "iio:device0/name": "s2mpg10-odpm\n",
    "iio:device0/energy_value": ODPM0,
    "iio:device0/enabled_rails": ODPM_ENABLED,
    "iio:device1/energy_value": ODPM1,
    "iio:device2/name": "lsm6dsr\n",
}

DUMPSYS = """\
Current Battery Service state:
  AC powered: false
  USB powered: false
  Wireless powered: false
  Max charging current: 0
  Max charging voltage: 0
  Charge counter: 3411000
  status: 3
  health: 2
  present: true
  level: 87
  scale: 100
  voltage: 4231
  temperature: 312
  technology: Li-ion
"""


def write_tree(root: Path, files: Mapping[str, str | bytes], under: str = "") -> Path:
    for name, content in files.items():
        path = root / under / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def write_vcgencmd(root: Path, script: str) -> Path:
    """A program of that name; `script` is its body in sh."""
    path = root / "usr/bin/vcgencmd"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\n[ "$1" = pmic_read_adc ] || exit 64\n{script}\n')
    path.chmod(0o755)
    return root


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Files of that name are closed to us, as to anyone but root; root runs tests, too."""
    real_open = os.open

    def refuse(path, *args, **kwargs):
        if Path(os.fsdecode(path)).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)


def break_file(path: Path) -> None:
    """Reading it gives EIO from now on."""
    path.unlink()
    path.symlink_to("/proc/self/mem")

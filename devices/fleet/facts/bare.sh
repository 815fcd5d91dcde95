#!/bin/sh
# What a device without ferryman tells: files and a few answers, between lines that begin with the mark in $1.
# $2 is the root folder of the slot store. Nothing is written, nothing is installed.
mark=$1 store=$2
head_() { printf '\n%s %s\n' "$mark" "$1"; }
for file in /proc/cpuinfo /proc/meminfo /proc/device-tree/model /proc/device-tree/compatible \
  /sys/firmware/devicetree/base/model /sys/firmware/devicetree/base/compatible \
  /etc/os-release /usr/lib/os-release /sys/class/dmi/id/product_name /sys/devices/soc0/family /sys/devices/soc0/soc_id \
  /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq \
  /sys/class/thermal/thermal_zone*/type /sys/class/thermal/thermal_zone*/temp \
  /sys/class/hwmon/hwmon*/name /sys/class/hwmon/hwmon*/*_input /sys/class/hwmon/hwmon*/*_label \
  /sys/class/hwmon/hwmon*/shunt*_resistor /sys/class/hwmon/hwmon*/update_interval \
  /sys/bus/iio/devices/iio:device*/energy_value /sys/bus/iio/devices/iio:device*/enabled_rails \
  /sys/class/powercap/intel-rapl:*/name /sys/class/powercap/intel-rapl:*/energy_uj \
  /sys/class/powercap/intel-rapl:*/max_energy_range_uj \
  /sys/class/power_supply/*/type /sys/class/power_supply/*/scope /sys/class/power_supply/*/status \
  /sys/class/power_supply/*/*_now /sys/class/power_supply/*/charge_counter; do
  [ -f "$file" ] || continue
  if [ -r "$file" ]; then
    head_ "$file"
    cat "$file" 2>/dev/null
  else
    head_ "closed:$file"
  fi
done
head_ machine && uname -m
head_ kernel && uname -r
head_ user && id -un 2>/dev/null
head_ bits && getconf LONG_BIT 2>/dev/null
head_ libc && getconf GNU_LIBC_VERSION 2>/dev/null
head_ musl && ls /lib/ld-musl-* 2>/dev/null
head_ python && python3 -c 'import platform; print(platform.python_version())' 2>/dev/null
head_ venv && python3 -c 'import ensurepip' 2>/dev/null && echo yes
head_ synchronized && timedatectl show -p NTPSynchronized --value 2>/dev/null
head_ chrony && chronyc -n tracking 2>/dev/null | sed -n 's/^Leap status *: *//p'
head_ vcio && ls /dev/vcio 2>/dev/null
head_ sdk && getprop ro.build.version.sdk 2>/dev/null
head_ release && getprop ro.build.version.release 2>/dev/null
head_ model && getprop ro.product.model 2>/dev/null
head_ maker && getprop ro.product.manufacturer 2>/dev/null
head_ soc && getprop ro.soc.model 2>/dev/null
head_ abi && getprop ro.product.cpu.abi 2>/dev/null
while [ ! -e "$store" ] && [ "$store" != / ] && [ -n "$store" ]; do
  case $store in */*) store=${store%/*} ;; *) store= ;; esac
done
head_ disk && df -Pk "${store:-/}" 2>/dev/null
head_ writable && if [ -w "${store:-/}" ]; then echo yes; else echo no; fi
head_ end

# Every target sets up what it needs: two environments, and Debian packages when root and apt-get are at hand.
#   .venv         the host: torch, executorch, litert-torch, test tools
#   .venv-device  what a small device gets: no torch, no executorch package
PYTHON ?= python3
HOST := .venv/bin/python
DEVICE := .venv-device/bin/python
NATIVE := CMakeLists.txt $(wildcard runtime/native/*/*)
# A process a processor, each with one thread; tests of one file stay together, for many share what they set up.
PARALLEL := --numprocesses auto --dist loadfile
test test-slow test-again: export OMP_NUM_THREADS = 1
# What builds and runs the roots of devices.
ROOTS := mmdebstrap=mmdebstrap qemu-aarch64-static=qemu-user-static update-binfmts=binfmt-support zstd=zstd
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-slow test-again chaos lint bench clean wheel-aarch64 wheel-size device-root runner-aarch64 runner-x86_64 system

help:
	@echo "make demo           train, convert, push, run, measure and report on this machine, end to end"
	@echo "make test           the quick tests; make test-slow: the others"
	@echo "make chaos          nightly: everything that can fail is made to, 20 times over 1,000,000 samples (hours, as root)"
	@echo "make lint           ruff, mypy, shellcheck"
	@echo "make bench          every benchmark, as a table"
	@echo "make wheel-aarch64  cross-build the wheel for a 64-bit Raspberry Pi into dist/"
	@echo "make wheel-size     how large it is when installed on the device, package by package"
	@echo "make runner-aarch64 cross-build the runner for phones into dist/ (runner-x86_64: for this machine)"
	@echo "make device-root    build and cache an emulated Raspberry Pi with that wheel on it (as root); says how to enter it"
	@echo "make clean          remove what the others made, environments included"

demo: system .venv/.ready .venv-device/.ready
	$(HOST) -m tests.e2e.demo

test: system .venv/.ready .venv-device/.ready
	$(HOST) -m pytest -m "not slow" $(PARALLEL)

test-slow: system .venv/.ready .venv-device/.ready
	@tests/support/need.sh cmake=cmake aarch64-linux-gnu-g++=g++-aarch64-linux-gnu avahi-daemon=avahi-daemon systemd-nspawn=systemd-container $(ROOTS)
	$(HOST) -m pytest -m slow $(PARALLEL)

# Those that failed last, one after the other.
test-again: system .venv/.ready .venv-device/.ready
	$(HOST) -m pytest --last-failed --last-failed-no-failures none

chaos: system .venv/.ready .venv-device/.ready
	$(HOST) -m tests.chaos --seeds 20

lint: .venv/.ready
	@tests/support/need.sh shellcheck=shellcheck dash=dash
	$(HOST) -m ruff check
	$(HOST) -m ruff format --check
	$(HOST) -m mypy
	if command -v shellcheck >/dev/null; then git ls-files '*.sh' '*.bats' .ci/run | xargs shellcheck -x; fi
	if command -v dash >/dev/null; then git ls-files 'firmware_scripts/*.sh' | xargs -n1 dash -n; fi

bench: system .venv/.ready .venv-device/.ready
	$(HOST) -m tests.benchmarks

wheel-aarch64: .venv/.ready
	@tests/support/need.sh aarch64-linux-gnu-g++=g++-aarch64-linux-gnu
	runtime/native/cross_aarch64.sh dist
	$(HOST) -m tests.support.wheel_check dist/ferryman-*-manylinux_*_aarch64.whl

wheel-size: .venv/.ready
	@tests/support/need.sh aarch64-linux-gnu-g++=g++-aarch64-linux-gnu
	$(HOST) -m tests.support.installed_size

runner-aarch64: .venv/.ready
	@tests/support/need.sh cmake=cmake aarch64-linux-gnu-g++=g++-aarch64-linux-gnu
	$(HOST) runtime/native/runner/build.py aarch64 dist/ferryman-runner-aarch64.tar.gz

runner-x86_64: .venv/.ready
	@tests/support/need.sh cmake=cmake g++=g++
	$(HOST) runtime/native/runner/build.py x86_64 dist/ferryman-runner-x86_64.tar.gz

device-root: .venv/.ready
	@tests/support/need.sh aarch64-linux-gnu-g++=g++-aarch64-linux-gnu $(ROOTS)
	@$(HOST) -m tests.support.pi_device

clean:
	rm -rf .venv .venv-device .cache .demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

system:
	@tests/support/need.sh g++=g++ mosquitto=mosquitto adb=adb mksh=mksh toybox=toybox sshd=openssh-server sftp=openssh-client strace=strace nginx=nginx-light xdelta3=xdelta3 zstd=zstd psql=postgresql ip=iproute2 tc=iproute2 busybox=busybox-static bats=bats

# torch first and alone: without its exact version at hand, pip would take a build of several GB for GPUs.
.venv/.ready: pyproject.toml $(NATIVE)
	@tests/support/need.sh g++=g++
	@echo "setting up .venv (torch and the converters: some minutes the first time)"
	$(PYTHON) -m venv .venv
	$(HOST) $(PIP) --upgrade pip
	$(HOST) $(PIP) torch==2.13.0
	$(HOST) $(PIP) --editable '.[convert,push,adb,inventory,discover,publish,enroll,sparkplug,postgresql,parquet,dev]'
	$(HOST) $(PIP) --no-deps pysparkplug==0.6.1  # a reader for tests; it asks for an older paho, which reading does not need
	touch $@

.venv-device/.ready: pyproject.toml $(NATIVE)
	@tests/support/need.sh g++=g++
	@echo "setting up .venv-device"
	$(PYTHON) -m venv .venv-device
	$(DEVICE) $(PIP) --upgrade pip
	$(DEVICE) $(PIP) --editable '.[tflite,litert,drift,ota,enroll]'
	touch $@

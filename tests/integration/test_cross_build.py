"""The aarch64 wheel, built here and run under qemu: shows that it works, and says nothing about speed."""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.support.arm_wheel import arm_wheel, why_not

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "runtime" / "native"
HOST = r"""
#include <cstdio>
#include "session.h"

int main(int, char** argv) {
  ferryman_et_session* session;
  if (ferryman_et_open(argv[1], nullptr, nullptr, 2, 0, &session)) {
    return puts(ferryman_et_error()), 1;
  }
  const ferryman_et_tensor *in, *out;
  ferryman_et_inputs(session, &in);
  ferryman_et_outputs(session, &out);
  for (int i = 0; i < 4; ++i) {
    static_cast<float*>(in->data)[i] = static_cast<float>(i + 1);
  }
  if (ferryman_et_run(session, nullptr, nullptr)) {
    return puts(ferryman_et_error()), 1;
  }
  for (int i = 0; i < 4; ++i) {
    printf("%g ", static_cast<double>(static_cast<float*>(out->data)[i]));
  }
  ferryman_et_close(session);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Folder of the native libraries of the cross-built wheel."""
    for reason in (why_not(), "" if shutil.which("qemu-aarch64-static") else "qemu-aarch64-static is not installed"):
        if reason:
            pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cross")
    with zipfile.ZipFile(arm_wheel()) as archive:
        archive.extractall(folder)
    return folder / "ferryman" / "runtime" / "native" / "lib"


def binary_model(path):
    """Four outputs that each count four positive inputs."""
    import torch

    from ferryman import BinaryLinear
    from ferryman.converter.backends import BACKENDS
    from ferryman.converter.capture import capture
    from ferryman.converter.lower_binary import lower_binary
    from ferryman.converter.quiet import quiet
    from ferryman.converter.source import make_source

    module = BinaryLinear(4, 4)
    torch.nn.init.ones_(module.weight)
    torch.nn.init.ones_(module.scale)
    with quiet():
        captured, _ = lower_binary(capture(make_source(module.eval(), (torch.ones(1, 4),))))
        path.write_bytes(BACKENDS["executorch"].lower(captured).data)
    return path


@pytest.mark.parametrize("cpu", ["cortex-a53", "cortex-a72"])
def test_the_cross_built_library_runs_models(library, tmp_path, cpu):
    (tmp_path / "host.cpp").write_text(HOST)
    build = ["aarch64-linux-gnu-g++", tmp_path / "host.cpp", "-o", tmp_path / "host", f"-I{NATIVE / 'executorch'}"]
    build += [f"-L{library}", "-lferryman_executorch", f"-Wl,-rpath,{library}", f"-Wl,-rpath-link,{library}"]
    subprocess.run(build, check=True)
    float_model = ROOT / "tests" / "golden" / "pte" / "linear.pte"
    for model, answer in ((float_model, "6 6 6 6 "), (binary_model(tmp_path / "binary.pte"), "4 4 4 4 ")):
        done = subprocess.run(
            ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", tmp_path / "host", model],
            env=os.environ | {"QEMU_CPU": cpu},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, answer), done.stderr

"""`make demo` does what it says, and leaves nothing running."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from tests.support.interpreters import INTERPRETERS, ROOT


@pytest.mark.slow
def test_the_demo_runs_to_its_end_and_leaves_no_process_behind(tmp_path):
    folder = tmp_path / "demo"
    command = [sys.executable, "-m", "tests.e2e.demo", str(folder)]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal to eager on every image") >= 2 * len(INTERPRETERS)  # float and binary
    assert done.stdout.count("  tflite-4bit on ") >= 2
    assert "times as fast as fp32" in done.stdout
    assert "digits/2" in done.stdout
    assert "is stopped again" in done.stdout.splitlines()[-1]
    page = (folder / "report.html").read_text()
    assert all(interpreter in page for interpreter in INTERPRETERS)
    assert (folder / "samples.csv").read_text().count("\n") > 2
    left = [
        p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or [])
    ]
    assert left == []

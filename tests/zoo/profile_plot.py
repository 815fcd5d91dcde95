"""A real sustained run, disturbed on purpose: docs/profiler.svg, and the tables and page beside it.

python -m tests.zoo.profile_plot [FOLDER]      package, page and tables into FOLDER, the plot into docs/profiler.svg

resnet20 runs for 90 s on one processor, and for 30 s of them another program wants the same one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from ferryman.converter.api import convert
from ferryman.devices.fleet.inventory import find_device, read_devices
from ferryman.devices.fleet.profile import profile
from ferryman.profiler.report_plot import plotting
from ferryman.profiler.report_plot_time import sustained_figure
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.show import show
from tests.support.interpreters import ROOT
from tests.zoo.models import resnet20

SECONDS, FROM_S, DISTURBED_S = 90.0, 40.0, 30.0
"""Of the run; from before its process begins, some seconds earlier, until it is disturbed; how long it is."""
VARIANT = "executorch-fp32"


def package(folder: Path) -> Path:
    """resnet20 on ExecuTorch and LiteRT."""
    return convert(*resnet20(), output=folder, name="resnet20", interpreters=("executorch", "ai-edge-litert")).path


def disturbed(path: Path) -> Measurement:
    """Measure without a pause; for a third of the time another program wants the same processor."""
    processor = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {processor})  # what is started from here on inherits it
    spec = ProfileSpec(variants=(VARIANT,), starts=1, runs=50, sustained_s=SECONDS, energy=False)
    timer = threading.Timer(FROM_S, _disturb)
    timer.start()
    try:
        (found,) = profile(path, find_device(read_devices(), "local"), spec)
    finally:
        timer.cancel()
    return found


def _disturb() -> None:
    with suppress(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", "while True: pass"], timeout=DISTURBED_S, check=False)


def main(folder: Path) -> None:
    """Make all, print the tables, draw."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [("local", disturbed(package(folder)))]
    show(found, html=folder / "profile.html", trace=folder / "profile.json", csv=folder / "profile.csv")
    figure = sustained_figure(found[0][1].sustained or ())
    with plotting():
        figure.savefig(
            Path(ROOT) / "docs" / "profiler.svg", facecolor="white", metadata={"Date": None, "Creator": None}
        )


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))

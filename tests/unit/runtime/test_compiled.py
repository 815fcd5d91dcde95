from __future__ import annotations

import pytest

from ferryman.runtime.sessions.compiled import runs_here
from tests.support.pi import PI_3, PI_4

PI_5 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
"""As its kernel lists them."""


@pytest.mark.parametrize("board", [PI_3, PI_4])
def test_a_processor_that_it_would_end_the_process_on_is_passed_by(tmp_path, board):
    (tmp_path / "cpuinfo").write_text(board.cpuinfo())
    assert not runs_here("aarch64", tmp_path / "cpuinfo")


def test_later_ones_and_other_machines_take_it(tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nFeatures\t: {PI_5}\n")
    assert runs_here("aarch64", tmp_path / "cpuinfo")
    assert runs_here("x86_64", tmp_path / "none")

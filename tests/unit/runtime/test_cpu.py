from __future__ import annotations

from ferryman.runtime.cpu import CPUINFO, instruction_sets


def test_x86_flags():
    assert instruction_sets("processor\t: 0\nflags\t\t: fpu sse2 avx2\n") == {"fpu", "sse2", "avx2"}


def test_arm_features_are_those_every_core_has():
    text = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp asimd\n"
    assert instruction_sets(text) == {"fp", "asimd"}


def test_a_kernel_that_tells_nothing_has_none():
    assert instruction_sets("processor : 0\n") == frozenset()


def test_this_machine_has_some():
    assert instruction_sets(CPUINFO.read_text())

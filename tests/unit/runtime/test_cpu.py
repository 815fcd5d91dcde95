from __future__ import annotations

from ferryman.runtime.cpu import CPUINFO, emulator, instruction_sets


def test_x86_flags():
    assert instruction_sets("processor\t: 0\nflags\t\t: fpu sse2 avx2\n") == {"fpu", "sse2", "avx2"}


def test_arm_features_are_those_every_core_has():
    text = "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nprocessor\t: 1\nFeatures\t: fp asimd\n"
    assert instruction_sets(text) == {"fp", "asimd"}


def test_a_kernel_that_tells_nothing_has_none():
    assert instruction_sets("processor : 0\n") == frozenset()


def test_this_machine_has_some():
    assert instruction_sets(CPUINFO.read_text())


def a_process(folder, told, real):
    (folder / "task" / "7").mkdir(parents=True)
    (folder / "exe").symlink_to(told)
    (folder / "task" / "7" / "exe").symlink_to(real)
    return folder


def test_an_emulator_answers_for_exe_but_not_for_a_threads(tmp_path):
    assert emulator(a_process(tmp_path, "/usr/bin/python3.11", "/usr/bin/qemu-aarch64-static")) == "qemu-aarch64-static"


def test_a_process_of_its_own_is_not_emulated(tmp_path):
    assert not emulator(a_process(tmp_path, "/usr/bin/qemu-aarch64", "/usr/bin/qemu-aarch64"))
    assert not emulator(tmp_path / "gone")
    assert not emulator()

"""The cross-built aarch64 wheel is what its name says, and the checks find what is wrong with a doctored one."""

from __future__ import annotations

import io
import os
import re
import shutil
import stat
import struct
import subprocess
import warnings
import zipfile
from importlib.metadata import version

import pytest
from elftools.elf.elffile import ELFFile

from tests.support.arm_wheel import BUILD, COMPILER, FOLDERS, ROOT, SOURCES, arm_wheel, build, why_not
from tests.support.elf_check import library_problems
from tests.support.wheel_check import wheel_problems
from tests.support.wheel_files import NATIVE, entry

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

TFLITE = f"{NATIVE}libferryman_tflite.so"
THREADS = f"{NATIVE}libexecutorch_threadpool.so"
KERNELS = f"{NATIVE}libferryman_kernels.so"


@pytest.fixture(scope="module")
def wheel():
    return arm_wheel()


@pytest.fixture(scope="module")
def libraries(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if name.endswith(".so")}


def test_the_wheel_is_what_its_name_says(wheel):
    assert not wheel_problems(wheel)


def patched(data, offset, form, value):
    size = struct.calcsize(form)
    return data[:offset] + struct.pack(form, value) + data[offset + size :]


def with_executable_stack(data):
    elf = ELFFile(io.BytesIO(data))
    (index,) = (i for i, s in enumerate(elf.iter_segments()) if s["p_type"] == "PT_GNU_STACK")
    return patched(data, elf["e_phoff"] + index * elf["e_phentsize"] + 4, "<I", 7)


def with_text_relocations(data):
    dynamic = ELFFile(io.BytesIO(data)).get_section_by_name(".dynamic")
    return patched(data, dynamic["sh_offset"] + 16 * dynamic.num_tags() - 16, "<Q", 22)  # DT_TEXTREL for DT_NULL


def with_writable_code(data):
    elf = ELFFile(io.BytesIO(data))
    index = next(i for i, s in enumerate(elf.iter_segments()) if s["p_type"] == "PT_LOAD" and s["p_flags"] & 1)
    return patched(data, elf["e_phoff"] + index * elf["e_phentsize"] + 4, "<I", 7)


def renamed(old, new):
    def change(data):
        assert old in data
        return data.replace(old, new)

    return change


LIBRARY = {
    "has an executable stack": with_executable_stack,
    "has text relocations": with_text_relocations,
    "has memory that is both written and executed": with_writable_code,
    "is a 64-bit ET_DYN for EM_X86_64, not an aarch64 shared library": lambda data: patched(data, 18, "<H", 62),
    "looks for libraries in /opt/li, outside of the package": renamed(b"\0$ORIGIN\0", b"\0/opt/li\0"),
    "names a path of a build machine: /home/me/a.cpp": lambda data: data + b"\0/home/me/a.cpp\0",
    "asks for what no library provides: _ZNSt6thread4joinEw": renamed(b"thread4joinEv\0", b"thread4joinEw\0"),
}


@pytest.mark.parametrize("sentence", LIBRARY)
def test_a_doctored_library_is_found(libraries, sentence):
    changed = libraries | {TFLITE: LIBRARY[sentence](libraries[TFLITE])}
    assert sentence in list(library_problems(TFLITE, changed))


def test_a_search_path_may_not_leave_the_package(libraries):
    change = renamed(b"$ORIGIN/../backends/cuda", b"$ORIGIN/../../../../../e")
    changed = libraries | {THREADS: change(libraries[THREADS])}
    assert list(library_problems(THREADS, changed)) == [
        "looks for libraries in $ORIGIN/../../../../../e, outside of the package"
    ]


def test_an_export_that_is_gone_is_missed_by_those_who_use_it(libraries):
    change = renamed(b"ferryman_binary_run\0", b"ferryman_binary_ran\0")
    changed = libraries | {KERNELS: change(libraries[KERNELS])}
    assert list(library_problems(TFLITE, changed)) == ["asks for what no library provides: ferryman_binary_run"]


def test_symbols_for_a_debugger_are_found(libraries, tmp_path):
    (tmp_path / "some.c").write_text("int some(void) { return 1; }")
    command = [COMPILER, "-g", "-shared", "-x", "c", "some.c", "-o", "some.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    name = f"{NATIVE}some.so"
    found = list(library_problems(name, libraries | {name: (tmp_path / "some.so").read_bytes()}))
    assert "is not stripped: .symtab" in found
    assert "is not stripped: .debug_info" in found


def doctored(
    wheel, folder, *, name=None, change=None, without="", beside=None, record=lambda rows: rows, twice="", link=""
):
    """A copy of the wheel: under another name, with files changed by `change`, without one, with others.

    RECORD tells the truth of them, but for what `record` does to its rows; one may be there twice, one as a link.
    """
    version = "-".join((name or wheel.name).split("-")[:2])
    with zipfile.ZipFile(wheel) as old:
        files = {member: old.read(member) for member in old.namelist()}
    files = {
        placed(n, version): change(n, d) if change else d
        for n, d in files.items()
        if not (without and n.endswith(without))
    }
    files |= beside or {}
    if (own := f"{version}.dist-info/RECORD") in files:
        rows = [[n, "", ""] if n == own else entry(n, d) for n, d in files.items()]
        files[own] = "".join(",".join(row) + "\n" for row in record(rows)).encode()
    copy = folder / (name or wheel.name)
    with zipfile.ZipFile(copy, "w") as new, warnings.catch_warnings(action="ignore"):  # of names that are there twice
        for member, data in [*files.items(), *((n, d) for n, d in files.items() if n == twice)]:
            info = zipfile.ZipInfo(member)
            info.external_attr = (stat.S_IFLNK | 0o777 if member == link else stat.S_IFREG | 0o644) << 16
            new.writestr(info, data)
    return copy


def placed(name, version):
    return re.sub(r"^ferryman-[^/]*\.dist-info/", f"{version}.dist-info/", name)


def on(end, change):
    return lambda name, data: change(data) if name.endswith(end) else data


OLDER = "manylinux_2_17"
CLI = "ferryman/cli.py"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {
                "name": f"ferryman-0-py3-none-{OLDER}_aarch64.whl",
                "change": on("WHEEL", renamed(b"manylinux_2_28", b"manylinux_2_17")),
            },
            f"is tagged {OLDER}_aarch64, but auditwheel says manylinux_2_27_aarch64",
        ),
        ({"name": "ferryman-0-py3-none-linux_aarch64.whl"}, "the name says py3-none-linux_aarch64"),
        (
            {"change": on("libferryman_tflite.so", renamed(b"libgcc_s.so.1", b"libzcc_s.so.1"))},
            "auditwheel says linux_aarch64",
        ),
        ({"change": on("libferryman_tflite.so", with_executable_stack)}, f"{TFLITE} has an executable stack"),
        (
            {"change": on("METADATA", renamed(b"Requires-Dist: click", b"Requires-Dist: torch\nRequires-Dist: click"))},
            "would install torch",
        ),
        ({"without": "licenses/cpuinfo.txt"}, "licenses/cpuinfo.txt is missing"),
        ({"without": "dist-info/licenses/LICENSE"}, "dist-info/licenses/LICENSE is missing"),
        ({"without": "dist-info/RECORD"}, "dist-info/RECORD is missing"),
        ({"without": "libferryman_weights.so"}, "libferryman_weights.so is missing"),
        ({"beside": {"ferryman/runtime/native/kernels/tree.cpp": b""}}, "tree.cpp (0 bytes) has no place"),
        ({"beside": {"ferryman/data.py": b"#" * 200_000}}, "data.py (200000 bytes) has no place"),
        ({"beside": {"ferryman/tests/test_a.py": b""}}, "test_a.py has no place"),
        ({"beside": {"ferryman/built.py": f"HERE = '{ROOT}'".encode()}}, f"ferryman/built.py names {ROOT}"),
    ],
)
def test_a_doctored_wheel_is_found(wheel, tmp_path, changes, sentence):
    found = wheel_problems(doctored(wheel, tmp_path, **changes))
    assert [problem for problem in found if sentence in problem], found


def test_a_copy_that_nobody_doctored_is_not(wheel, tmp_path):
    assert wheel_problems(doctored(wheel, tmp_path)) == []


INFO = f"ferryman-{version('ferryman')}.dist-info"


@pytest.mark.parametrize(
    "name",
    [
        "pip/__init__.py",
        "evil.pth",
        f"ferryman-{version('ferryman')}.data/scripts/sudo.py",
        f"ferryman-{version('ferryman')}.data/purelib/ferryman/cli.py",
        "ferryman-9.dist-info/METADATA",
        f"{INFO}/secret.pem",
        f"{INFO}/../pip/__init__.py",
        "ferryman/../../../../../etc/evil.py",
        "ferryman/./cli.py",
        "ferryman//cli.py",
        "ferryman\\..\\evil.py",
        "ferryman/a\n.py",
        "/etc/evil.py",
        "ferryman/devices/evil.sh",
        "ferryman/runtime/evil.so",
        "ferryman/evil.txt",
        "ferryman/evil.html",
        "ferryman/evil.pyc",
        "ferryman/evil",
    ],
)
def test_a_file_out_of_place_is_found_however_truthful_record_is(wheel, tmp_path, name):
    found = wheel_problems(doctored(wheel, tmp_path, beside={name: b""}))
    assert f"{name} (0 bytes) has no place in a device's wheel" in found


def test_another_program_is_found(wheel, tmp_path):
    change = on("entry_points.txt", lambda data: data + b"sudo=ferryman.cli:main\n")
    (found,) = wheel_problems(doctored(wheel, tmp_path, change=change))
    assert "sudo=ferryman.cli:main" in found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"record": lambda rows: [r for r in rows if r[0] != CLI]}, f"RECORD does not list {CLI}"),
        (
            {"record": lambda rows: [*rows, entry("ferryman/gone.py", b"")]},
            "RECORD lists ferryman/gone.py, which is not there",
        ),
        ({"record": lambda rows: [*rows, entry("../../evil", b"")]}, "RECORD lists ../../evil, which is not there"),
        ({"record": lambda rows: [*rows, rows[0]]}, "RECORD lists ferryman/__init__.py 2 times"),
        (
            {"record": lambda rows: [entry(CLI, b"") if r[0] == CLI else r for r in rows]},
            f"RECORD has another hash or size of {CLI}",
        ),
        (
            {"record": lambda rows: [[CLI, "", ""] if r[0] == CLI else r for r in rows]},
            f"RECORD has another hash or size of {CLI}",
        ),
        (
            {"record": lambda rows: [[*r[:2], "1"] if r[0] == CLI else r for r in rows]},
            f"RECORD has another hash or size of {CLI}",
        ),
        ({"twice": CLI}, f"{CLI} is in it 2 times"),
        ({"link": CLI}, f"{CLI} is no plain file but lrwxrwxrwx"),
    ],
)
def test_a_record_that_lies_is_found(wheel, tmp_path, changes, sentence):
    (found,) = wheel_problems(doctored(wheel, tmp_path, **changes))
    assert found.startswith(sentence)


def test_the_same_sources_give_the_same_bytes_and_a_broken_compiler_leaves_nothing_behind(wheel, tmp_path):
    tree = tmp_path / "another folder"
    for name in SOURCES:
        tree.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, tree / name)
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored, copy_function=shutil.copyfile)
    script = tree / BUILD.relative_to(ROOT)
    script.chmod(0o700)
    before = sorted(tree.rglob("*"))

    broken = tmp_path / "bin" / COMPILER
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    environment = {"LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "CXXFLAGS": "-O0 -g"}
    with pytest.raises(RuntimeError, match="compiler"):
        build(script, tmp_path / "none", env=environment | {"PATH": f"{broken.parent}:{os.environ['PATH']}"})
    assert sorted(tree.rglob("*")) == before

    build(script, tmp_path / "second", env=environment, umask=0o077)
    (second,) = (tmp_path / "second").iterdir()
    assert second.name == wheel.name
    assert different(wheel, second) == []
    assert second.read_bytes() == wheel.read_bytes()
    assert sorted(tree.rglob("*")) == before


def different(one, other):
    """Names of files that are not alike in two wheels."""
    with zipfile.ZipFile(one) as a, zipfile.ZipFile(other) as b:
        names = set(a.namelist()) ^ set(b.namelist())
        return sorted(names | {n for n in set(a.namelist()) - names if a.read(n) != b.read(n)})

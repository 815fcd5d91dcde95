"""What is wrong with a shared library for an aarch64 wheel, as sentences; none for a good one.

Needs the cross compiler's libraries: whether a symbol is there is looked up in them, for a device's or older ones.
"""

from __future__ import annotations

import io
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

SYSTEM = Path("/usr/aarch64-linux-gnu/lib")
EXECUTABLE, WRITABLE = 1, 2
TEXTREL = 4
BUILD_PATH = re.compile(rb"/(?:tmp|root|home|Users|work|workspace|build|builds|__w)/[\w./+-]*")


def library_problems(name: str, libraries: Mapping[str, bytes]) -> Iterator[str]:
    """Problems of the library that the wheel holds under `name`; `libraries` are all of it."""
    elf = ELFFile(io.BytesIO(libraries[name]))
    if (elf["e_machine"], elf.elfclass, elf["e_type"]) != ("EM_AARCH64", 64, "ET_DYN"):
        yield f"is a {elf.elfclass}-bit {elf['e_type']} for {elf['e_machine']}, not an aarch64 shared library"
        return
    yield from _memory(elf)
    tags = list(_dynamic(elf).iter_tags())
    if any(t.entry.d_tag == "DT_TEXTREL" or (t.entry.d_tag == "DT_FLAGS" and t.entry.d_val & TEXTREL) for t in tags):
        yield "has text relocations"
    for paths in (t.rpath if t.entry.d_tag == "DT_RPATH" else t.runpath for t in tags if "PATH" in str(t.entry.d_tag)):
        for path in paths.split(":"):
            found = posixpath.normpath(path.replace("$ORIGIN", posixpath.dirname(name)))
            if not path.startswith("$ORIGIN") or not found.startswith("ferryman/"):
                yield f"looks for libraries in {path}, outside of the package"
    for section in elf.iter_sections():
        if section.name == ".symtab" or section.name.startswith(".debug"):
            yield f"is not stripped: {section.name}"
    for path in sorted(set(BUILD_PATH.findall(libraries[name]))) if "libferryman_" in name else ():
        yield f"names a path of a build machine: {path.decode()}"
    if missing := sorted(_undefined(elf) - _provided(elf, libraries)):
        yield f"asks for what no library provides: {', '.join(missing[:5])}"


def _memory(elf: ELFFile) -> Iterator[str]:
    stacks = [s for s in elf.iter_segments() if s["p_type"] == "PT_GNU_STACK"]
    if not stacks or stacks[0]["p_flags"] & EXECUTABLE:
        yield "has an executable stack"
    if any(s["p_type"] == "PT_LOAD" and s["p_flags"] & 3 == EXECUTABLE | WRITABLE for s in elf.iter_segments()):
        yield "has memory that is both written and executed"


def _dynamic(elf: ELFFile) -> DynamicSection:
    (section,) = (s for s in elf.iter_sections() if isinstance(s, DynamicSection))
    return section


def _symbols(elf: ELFFile):
    return (s for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name)


def _undefined(elf: ELFFile) -> set[str]:
    return {s.name for s in _symbols(elf) if s["st_shndx"] == "SHN_UNDEF" and s["st_info"]["bind"] != "STB_WEAK"}


def _defined(elf: ELFFile) -> set[str]:
    return {
        s.name for s in _symbols(elf) if s["st_shndx"] != "SHN_UNDEF" and s["st_other"]["visibility"] == "STV_DEFAULT"
    }


def _needed(elf: ELFFile) -> set[str]:
    return {t.needed for t in _dynamic(elf).iter_tags("DT_NEEDED")}


def _provided(elf: ELFFile, libraries: Mapping[str, bytes]) -> set[str]:
    """What a library finds in itself and in those that it asks for, and so on; what is not there provides nothing."""
    ours = {posixpath.basename(name): data for name, data in libraries.items()}
    found, asked, seen = _defined(elf), _needed(elf), set()
    while asked:
        name = asked.pop()
        seen.add(name)
        if name in ours:
            other = ELFFile(io.BytesIO(ours[name]))
            found |= _defined(other)
            asked |= _needed(other) - seen
        else:
            found |= _system(name)
    return found


@cache
def _system(name: str) -> frozenset[str]:
    path = SYSTEM / name
    return frozenset(_defined(ELFFile(io.BytesIO(path.read_bytes())))) if path.exists() else frozenset()

"""Whether a package would be installed on a device: the checks of an install, on facts instead of the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ferryman.devices.fleet.facts.advice import Advice
from ferryman.runtime.checks import lacking, on_disk_bytes
from ferryman.runtime.contracts.facts import DeviceFacts
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.record import Unavailable
from ferryman.runtime.package import open_package

_MEGABYTE = 10**6


def advise_package(package: Path, facts: DeviceFacts) -> tuple[Advice, ...]:
    """What of a package would run on a device, and whether there is room for it.

    Raises:
        CallerError: no such file.
        PackageError: it is damaged.
    """
    with open_package(package) as opened:
        return tuple(package_lines(opened.manifest, package.stat().st_size, facts))


def package_lines(manifest: Manifest, size_bytes: int, facts: DeviceFacts) -> Iterator[Advice]:
    """A line for each variant, then one for memory where it is short, and one for the disk."""
    if isinstance(facts.ferryman, Unavailable):
        yield _line("problem", f"{manifest.name} cannot be installed yet", f"no ferryman: {facts.ferryman.reason}")
        return
    if isinstance(facts.operators, Unavailable) and any(one.requires.operators for one in manifest.variants):
        yield _line("note", "whether its operators are there is not known", facts.operators.reason)
    operators = facts.operators if isinstance(facts.operators, int) else 0
    versions = {one.name: one.version for one in facts.interpreters}
    missing = {
        variant.name: lacking(variant, frozenset(facts.isa), operators, versions) for variant in manifest.variants
    }
    for variant in manifest.variants:
        if why := missing[variant.name]:
            yield _line("note", f"{variant.name} would not run", f"it needs {why}")
        else:
            yield from _fits_memory(variant.name, variant.requires.memory_estimate_bytes, facts)
    if all(missing.values()):
        yield _line("problem", f"{manifest.name} would be refused", "the device can run none of its variants")
    need = 2 * on_disk_bytes(size_bytes, 1)
    if isinstance(facts.free_bytes, int) and facts.free_bytes < need:
        yield _line(
            "problem",
            f"there may be no room for {manifest.name}",
            f"an upload wants {need / _MEGABYTE:,.1f} MB free at {facts.root}, found "
            f"{facts.free_bytes / _MEGABYTE:,.1f}; what clearing the older slot sets free is not counted",
            "make room there",
        )


def _fits_memory(variant: str, estimate_bytes: int, facts: DeviceFacts) -> Iterator[Advice]:
    free = facts.memory_available_bytes
    if isinstance(free, int) and estimate_bytes > free:
        yield _line(
            "problem",
            f"{variant} would run, and likely out of memory",
            f"it takes about {estimate_bytes / _MEGABYTE:,.0f} MB (an estimate of the converter), "
            f"{free / _MEGABYTE:,.0f} MB are available now",
            "convert it with fewer bits, or choose a smaller variant: push --pick smallest",
        )
    else:
        yield _line(
            "ok",
            f"{variant} would run",
            f"interpreter, operators and instruction sets are there; about {estimate_bytes / _MEGABYTE:,.1f} MB of "
            "memory (an estimate of the converter)",
        )


def _line(level: str, says: str, because: str, do: str = "") -> Advice:
    return Advice(topic="package", level=level, says=says, because=because, do=do)  # type: ignore[arg-type]

"""What `ferryman devices` prints; what devices and strangers say is shown without what could steer a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from ferryman.describe_facts import KEY_CHARS, describe_cores, describe_facts, megabytes
from ferryman.devices.broker import without_password
from ferryman.devices.fleet.announced import Announced
from ferryman.devices.fleet.discover import Discovery
from ferryman.devices.fleet.facts.advice import Advice, advise
from ferryman.devices.fleet.facts.listing import Row, age
from ferryman.devices.fleet.facts.package_advice import advise_package
from ferryman.devices.fleet.facts.probe import Probe
from ferryman.devices.fleet.inventory import Device
from ferryman.profiler.report_tables import Grid, Group
from ferryman.profiler.report_text import show_grid
from ferryman.runtime.contracts.record import encode
from ferryman.runtime.say import echo, printable

_MISSING = "-"
_WIDTH_MIN = 80
_MARKS = {"ok": "+", "note": "~", "problem": "!"}


def show_table(rows: Sequence[Row]) -> None:
    """A table, one row a device."""
    cells = [_cells(row) for row in rows]
    heads = ("device", "reached by", "address", "model", "cores", "memory", "ferryman", "labels", "probed")
    _grid(heads, cells)


def _cells(row: Row) -> tuple[str, ...]:
    known = row.known
    told = (_MISSING,) * 4
    if known is not None:
        facts = known.facts
        told = (
            facts.model if isinstance(facts.model, str) else _MISSING,
            describe_cores(facts.cores) if isinstance(facts.cores, tuple) else _MISSING,
            megabytes(facts.memory_bytes) if isinstance(facts.memory_bytes, int) else _MISSING,
            facts.ferryman if isinstance(facts.ferryman, str) else "none",
        )
    labels = ", ".join(f"{name}={value}" for name, value in sorted(row.labels.items()))
    probed = age(known.probed_at_ns) if known else "never"
    cells = (row.name, " ".join(row.ways), row.address, *told, labels or _MISSING, probed)
    return tuple(printable(cell) for cell in cells)


def _grid(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    keys = Group((f"{heads[0]}\n",), tuple((row[0],) for row in rows), text=True)
    groups = tuple(
        Group((f"{head}\n",), tuple((row[at],) for row in rows), text=True) for at, head in enumerate(heads) if at
    )
    width = max(shutil.get_terminal_size((120, 24)).columns, _WIDTH_MIN)
    echo(show_grid(Grid("", keys, groups), width, colour=sys.stdout.isatty()), coloured=True)


def show_json(rows: Sequence[Row]) -> None:
    """One object a line."""
    for row in rows:
        echo(encode(row))


def show_device(device: Device, row: Row, *, as_json: bool) -> None:
    """What the devices file says of a device, and what is known of it."""
    settings = {name: value for name, value in msgspec.to_builtins(device, enc_hook=str).items() if name != "name"}
    if device.broker:
        settings["broker"] = without_password(device.broker)
    if as_json:
        echo(msgspec.json.encode({"device": row.name, "settings": settings, "known": row.known}, order="sorted"))
        return
    echo(click.style(printable(row.name), bold=True), coloured=True)
    settings["labels"] = ", ".join(f"{name}={value}" for name, value in sorted(row.labels.items()))
    for name, value in settings.items():
        if value not in {None, ""} or name == "adb":
            echo(f"  {name:{KEY_CHARS}} {printable(str(value))}")
    if row.known is None:
        echo(f"  {'known':{KEY_CHARS}} nothing yet: `ferryman devices probe {row.name}` asks it")
        return
    echo(f"  {'known':{KEY_CHARS}} over {row.known.way}, {age(row.known.probed_at_ns)}")
    for text in describe_facts(row.known.facts).splitlines():
        echo(f"  {text}")
    _show_advice(advise(row.known.facts))


def show_failures(probes: Sequence[Probe]) -> None:
    """Why a way did not answer, one line each, beside the output."""
    for probe in probes:
        for one in probe.ways:
            if one.error:
                text = f"{probe.device}: {one.way}: {one.error.party}: {one.error.message}"
                echo(" ".join(text.split()), err=True)


def show_report(found: Probe, *, package: Path | None, as_json: bool) -> None:
    """What came of a device: its ways, its facts, and what follows from them."""
    advice: tuple[Advice, ...] = ()
    if found.facts is not None:
        advice = advise(found.facts)
        if package is not None:
            advice += advise_package(package, found.facts)
    if as_json:
        echo(msgspec.json.encode({"probe": found, "advice": advice}, order="sorted"))
        return
    echo(click.style(printable(found.device), bold=True), coloured=True)
    for one in found.ways:
        came = f"{one.error.party}: {one.error.message}" if one.error else f"answers in {one.took_s:.2f} s"
        _lines(f"  {one.way:6} ", came)
        if one.note:
            _lines(" " * 9, one.note)
    if not found.ways:
        echo("  the devices file names no way to reach it")
    if found.facts is not None:
        for text in describe_facts(found.facts).splitlines():
            echo(f"  {text}")
    _show_advice(advice)


def _show_advice(advice: Sequence[Advice]) -> None:
    for line in advice:
        echo(f"  {_MARKS[line.level]} {printable(line.topic)}: {printable(line.says)}")
        _lines("      because ", line.because)
        if line.do:
            _lines("      do      ", line.do)


def _lines(lead: str, text: str) -> None:
    """Every line of a text, each harmless."""
    for line in text.splitlines():
        echo(f"{lead}{printable(line)}")
        lead = " " * len(lead)


def show_discovery(found: Discovery, *, as_json: bool) -> None:
    """A table of hosts, or one object a line."""
    if as_json:
        for one in found.hosts:
            echo(encode(one))
    elif found.hosts:
        rows = [
            (
                printable(one.host),
                ", ".join(one.addresses),
                ", ".join(f"{name}:{port}" for name, port in one.services.items()),
                printable(one.device) or _MISSING,
                printable(one.version) or _MISSING,
            )
            for one in found.hosts
        ]
        _grid(("host", "addresses", "offers", "says it is", "ferryman"), rows)
    else:
        echo("nobody answered; is multicast let through between here and the devices?", err=True)
    if found.left_out:
        echo(f"{found.left_out:,} answers were left out: unresolved, of no use, or too many", err=True)


def show_announced(devices: Sequence[Announced], *, as_json: bool) -> None:
    """A table of devices that announced themselves, or one object a line."""
    if as_json:
        for one in devices:
            echo(encode(one))
    elif devices:
        rows = [
            (
                one.device,
                "yes" if one.online else "no",
                printable(one.model) or _MISSING,
                printable(one.soc) or _MISSING,
                printable(", ".join(f"{name}={value}" for name, value in sorted(one.labels.items()))) or _MISSING,
                printable(one.listed) or _MISSING,
            )
            for one in devices
        ]
        _grid(("device", "online", "model", "chip", "labels", "in the devices file"), rows)
    else:
        echo("no device is known there; does this user have the right to read ferryman/v1/+/status?", err=True)

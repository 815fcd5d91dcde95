"""A reader of InfluxDB line protocol, by its reference and apart from what writes it."""

from __future__ import annotations

from typing import NamedTuple


class Point(NamedTuple):
    """A line."""

    measurement: str
    tags: dict[str, str]
    fields: dict[str, float | int | str | bool]
    time_ns: int


def parse(text: str) -> list[Point]:
    """Every line; ValueError where one is none."""
    return [_point(line) for line in text.split("\n") if line]


def _point(line: str) -> Point:
    head, at = _until(line, 0, " ")
    measurement, place = _until(head, 0, ",")
    tags = {}
    while place < len(head):
        name, place = _until(head, place + 1, "=")
        value, place = _until(head, place + 1, ",")
        if not name or not value:
            raise ValueError(f"an empty tag in {line!r}")
        tags[_plain(name)] = _plain(value)
    if list(tags) != sorted(tags):
        raise ValueError(f"tags out of order in {line!r}")
    fields: dict[str, float | int | str | bool] = {}
    at += 1
    while True:
        name, at = _until(line, at, "=")
        value, at = _value(line, at + 1)
        if _plain(name) in fields:
            raise ValueError(f"a field twice in {line!r}")
        fields[_plain(name)] = value
        if line[at] == " ":
            break
        if line[at] != ",":
            raise ValueError(f"expected a comma at {at} of {line!r}")
        at += 1
    return Point(_plain(measurement), tags, fields, int(line[at + 1 :]))


def _until(text: str, at: int, end: str) -> tuple[str, int]:
    """To the next `end` that no backslash stands before."""
    begin = at
    while at < len(text) and text[at] != end:
        at += 2 if text[at] == "\\" and text[at + 1 : at + 2] in {",", "=", " "} else 1
    return text[begin:at], at


def _plain(text: str) -> str:
    for letter in ",= ":
        text = text.replace(f"\\{letter}", letter)
    return text


def _value(line: str, at: int) -> tuple[float | int | str | bool, int]:
    if line[at] == '"':
        made = []
        at += 1
        while line[at] != '"':
            at += line[at] == "\\" and line[at + 1] in {'"', "\\"}
            made.append(line[at])
            at += 1
        return "".join(made), at + 1
    end = min(place for place in (line.find(",", at), line.find(" ", at)) if place >= 0)
    word = line[at:end]
    return (int(word[:-1]) if word.endswith("i") else float(word)), end

"""Which devices are meant: `site=lab,model~Raspberry Pi 4,!kitchen | spare-*`.

    query        alternatives with `|` or `;` between: any of them
    alternative  terms with `,` between: all of them
    term         `all`
                 NAME            the device of that name; `*` stands for any characters
                 label=VALUE     has the label with this value; `*` as above
                 label!=VALUE    has it with another value, or has it not
                 label~TEXT      has it with TEXT somewhere in its value; capitals do not matter
                 !term           not the term

`name` and `model`, the kind of device, are labels that every device has. Blanks around terms do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

QUERY_MAX_CHARS = 4000
_SHOWN_CHARS = 40
"""On both sides of what is wrong."""
_SEPARATOR = re.compile("[|;,]")
_TERM = re.compile(r"(?P<label>[A-Za-z0-9][A-Za-z0-9._/-]*)\s*(?P<how>!=|=|~)\s*(?P<value>.*)", re.ASCII | re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_*-]+", re.ASCII)


class Target(Record):
    """A device, as queries see it."""

    name: str
    model: str = ""
    labels: Mapping[str, str] = {}

    def label(self, name: str) -> str | None:
        """Its value; None: the device has no such label."""
        return {"name": self.name, "model": self.model}.get(name, self.labels.get(name))


Test = Callable[[Target], bool]


@dataclass(frozen=True)
class Query:
    """A parsed query; call `matches`."""

    text: str
    _alternatives: tuple[tuple[Test, ...], ...]

    def matches(self, target: Target) -> bool:
        """Whether the device is meant."""
        return any(all(test(target) for test in terms) for terms in self._alternatives)


def parse_query(text: str) -> Query:
    """Read a query.

    Raises:
        CallerError: it is none; the message points at the place.
    """
    if not isinstance(text, str):
        raise CallerError(f"a query is a text, found {text!r:.100}")
    if len(text) > QUERY_MAX_CHARS:
        raise CallerError(f"a query has at most {QUERY_MAX_CHARS} characters, found {len(text)}; use labels")
    alternatives: list[tuple[Test, ...]] = []
    terms: list[Test] = []
    begin = 0
    for end in [*(found.start() for found in _SEPARATOR.finditer(text)), len(text)]:
        terms.append(_term(text, begin, end))
        if text[end : end + 1] != ",":
            alternatives.append(tuple(terms))
            terms = []
        begin = end + 1
    return Query(text, tuple(alternatives))


def _term(text: str, begin: int, end: int) -> Test:
    negated = False
    while begin < end and (text[begin].isspace() or text[begin] == "!"):
        negated ^= text[begin] == "!"
        begin += 1
    test = _plain_term(text, begin, end)
    return (lambda target: not test(target)) if negated else test


def _plain_term(text: str, begin: int, end: int) -> Test:
    term = text[begin:end].rstrip()
    if not term:
        raise _wrong(text, begin, "expected a device's name, label=value, label!=value, label~text, or all")
    if term == "all":
        return lambda _: True
    if (found := _TERM.fullmatch(term)) is not None:
        return _label_term(text, begin + found.start("value"), found)
    if (name := _NAME.match(term)) is None or name.end() < len(term):
        raise _wrong(text, begin + (name.end() if name else 0), "a name has letters, digits, _ - and *")
    pattern = _glob(term)
    return lambda target: pattern(target.name)


def _label_term(text: str, place: int, found: re.Match[str]) -> Test:
    label, how, value = found["label"], found["how"], found["value"]
    if value.startswith("="):
        raise _wrong(text, place, f"{label}=value has one =")
    if not value:
        raise _wrong(text, place, f"a value for {label} is missing")
    if how == "~":
        part = value.casefold()
        return lambda target: part in (target.label(label) or "").casefold()
    pattern = _glob(value)

    def holds(target: Target) -> bool:
        has = target.label(label)
        return has is not None and pattern(has)

    return holds if how == "=" else lambda target: not holds(target)


def _glob(pattern: str) -> Callable[[str], bool]:
    """Whether a text is the pattern's; not by a regular expression, which may take for ever over many stars."""
    first, *parts = pattern.split("*")
    if not parts:
        return first.__eq__
    *middle, last = parts

    def matches(text: str) -> bool:
        place, end = len(first), len(text) - len(last)
        if not text.startswith(first) or not text.endswith(last) or place > end:
            return False
        for part in middle:
            found = text.find(part, place, end)
            if found < 0:
                return False
            place = found + len(part)
        return True

    return matches


def _wrong(text: str, place: int, expected: str) -> CallerError:
    begin = max(0, place - _SHOWN_CHARS) if len(text) > 2 * _SHOWN_CHARS else 0
    shown = "".join(" " if letter.isspace() else letter for letter in text[begin : begin + 2 * _SHOWN_CHARS])
    return CallerError(f"query, character {place + 1}: {expected}\n  {shown}\n  {' ' * (place - begin)}^")

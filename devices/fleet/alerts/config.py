"""What is watched and who is told: one TOML file, or the defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import msgspec

from ferryman.devices.fleet.alerts.drifting import Reference
from ferryman.devices.fleet.alerts.rules import DEFAULTS, Rule, name_of
from ferryman.devices.fleet.rollout.query import parse_query
from ferryman.devices.small import read_small
from ferryman.runtime.contracts.alert import Severity
from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record

_FILE_MAX_BYTES = 1 << 20
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_PLACE = re.compile(r"(?P<what>.*?) - at `\$(?P<path>.*)`", re.DOTALL)
_STEP = re.compile(r"\.(\w+)|\[(\d+)\]")
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]


class Grouping(Record, forbid_unknown_fields=True):
    """Which alerts become one notice: those of one rule whose devices have the same value of a label."""

    by: str = "site"
    wait_s: Seconds = 30.0
    """So long a notice waits for others of its group."""
    every_s: Seconds = 300.0
    """The next notice of a group comes no sooner."""


class Silence(Record, forbid_unknown_fields=True):
    """Nobody is told of these, until then; those that hold still are told afterwards."""

    until: Annotated[datetime, msgspec.Meta(tz=True)]
    devices: str = "all"
    rules: tuple[str, ...] = ()
    """By name; empty: all."""


class Tell(Record, forbid_unknown_fields=True):
    """Somebody to be told."""

    url: str
    """http(s)://: a webhook, which gets a `Notice`; any other is a URL of Apprise. ${NAME} is from the environment."""
    severity: Severity = "warning"
    """At least."""
    devices: str = "all"
    rules: tuple[str, ...] = ()
    """By name; empty: all."""


class _File(Record, forbid_unknown_fields=True):
    rule: tuple[Rule, ...] = ()
    group: Grouping = Grouping()
    reference: Reference = Reference()
    silence: tuple[Silence, ...] = ()
    tell: tuple[Tell, ...] = ()


class Config(Record):
    """Checked; every rule has a name of its own."""

    rules: tuple[Rule, ...] = DEFAULTS
    group: Grouping = Grouping()
    reference: Reference = Reference()
    """Of drift."""
    silences: tuple[Silence, ...] = ()
    tells: tuple[Tell, ...] = ()
    """With the environment's values in their URLs."""


def read_config(path: Path | None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read a rules file; None: the default rules, and nobody is told but by MQTT.

    Raises:
        CallerError: it cannot be read, or is none; the message names the line and field.
    """
    if path is None:
        return Config()
    try:
        text = read_small(path, _FILE_MAX_BYTES).decode()
    except (CallerError, UnicodeDecodeError) as error:
        raise CallerError(f"alerts file {path}: {error}; name another with --alerts") from error
    return parse_config(text, str(path), environment)


def parse_config(text: str, name: str, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the text of a rules file, called `name` in errors.

    Raises:
        CallerError: as `read_config`.
    """
    try:
        file = msgspec.toml.decode(text, type=_File)
    except msgspec.ValidationError as error:
        raise _misfit(name, text, str(error)) from error
    except (msgspec.DecodeError, RecursionError) as error:  # it names line and column
        raise CallerError(f"alerts file {name}: no TOML: {error}") from error
    rules = {name_of(rule): rule for rule in DEFAULTS}
    given: set[str] = set()
    for at, rule in enumerate(file.rule):
        called = name_of(rule)
        if called in given:
            raise _misfit(name, text, f"a rule is called {called!r} already; give it another name - at `$.rule[{at}]`")
        given.add(called)
        rules[called] = rule
    for table, entries in (("rule", file.rule), ("silence", file.silence), ("tell", file.tell)):
        for at, entry in enumerate(entries):
            place = f"$.{table}[{at}]"
            _check_query(name, text, entry.devices, f"{place}.devices")
            if unknown := sorted(set(getattr(entry, "rules", ())) - set(rules)):
                what = f"no rule is called {unknown[0]!r}; there are: {', '.join(sorted(rules))}"
                raise _misfit(name, text, f"{what} - at `{place}.rules`")
    tells = []
    for at, tell in enumerate(file.tell):
        try:
            url = _with_secrets(tell.url, environment)
        except KeyError as error:
            what = f"the environment has no variable {error.args[0]}; set it where the collector starts"
            raise _misfit(name, text, f"{what} - at `$.tell[{at}].url`") from error
        tells.append(msgspec.structs.replace(tell, url=url))
    enabled = tuple(rule for rule in rules.values() if rule.enabled)
    return Config(rules=enabled, group=file.group, reference=file.reference, silences=file.silence, tells=tuple(tells))


def _with_secrets(url: str, environment: Mapping[str, str]) -> str:
    """A variable that is not the whole URL is percent-encoded: a password may hold what means something in URLs."""
    whole = _VARIABLE.fullmatch(url)
    if whole is not None:
        return environment[whole[1]]
    return _VARIABLE.sub(lambda found: quote(environment[found[1]], safe=""), url)


def _check_query(name: str, text: str, query: str, place: str) -> None:
    try:
        parse_query(query)
    except CallerError as error:
        raise _misfit(name, text, f"{error} - at `{place}`") from error


def _misfit(name: str, text: str, problem: str) -> CallerError:
    """As an error that names the line, as far as it can be found."""
    found = _PLACE.fullmatch(problem)
    if found is None:
        return CallerError(f"alerts file {name}: {problem}")
    line = _line(text, found["path"])
    where = f"{name}, line {line}" if line else name
    return CallerError(f"alerts file {where}, {found['path'].lstrip('.') or 'the whole'}: {found['what']}")


def _line(text: str, path: str) -> int | None:
    """Where `.rule[2].for_s` stands: that line, else that of its table."""
    steps = [key or int(index) for key, index in _STEP.findall(path)]
    tables = [str(step) for step in steps if isinstance(step, str)]
    if not tables:
        return None
    wanted = next((step for step in steps if isinstance(step, int)), 0)
    header = re.compile(rf"\s*\[\[?\s*{re.escape(tables[0])}\s*\]\]?")
    field = re.compile(rf"\s*{re.escape(tables[1])}\s*=") if len(tables) > 1 else None
    seen, at = -1, None
    for number, line in enumerate(text.splitlines(), 1):
        if header.match(line):
            seen += 1
            if seen == wanted:
                at = number
        elif at is not None and re.match(r"\s*\[", line):
            break
        elif at is not None and field is not None and field.match(line):
            return number
    return at

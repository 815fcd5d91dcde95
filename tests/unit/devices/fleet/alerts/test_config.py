from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.alerts.config import parse_config, read_config
from ferryman.devices.fleet.alerts.rules import DEFAULTS, Offline, name_of
from ferryman.runtime.contracts.errors import CallerError
from tests.support.interpreters import ROOT

GOOD = """
[group]
by = "room"
wait_s = 1

[[rule]]
when = "offline"
for_s = 10

[[rule]]
name = "offline-door"
when = "offline"
devices = "door-*"
severity = "warning"

[[rule]]
when = "disk"
enabled = false

[[silence]]
until = 2026-12-01T08:00:00Z
devices = "site=lab"
rules = ["offline"]

[[tell]]
url = "mailto://${USER_NAME}:${SECRET}@example.com"
severity = "critical"
"""
ENVIRONMENT = {"USER_NAME": "me", "SECRET": "s3cret"}


def test_without_a_file_the_default_rules_hold():
    config = read_config(None)
    assert config.rules == DEFAULTS
    assert not config.tells
    assert len({name_of(rule) for rule in DEFAULTS}) == len(DEFAULTS)


def test_rules_of_the_file_stand_beside_the_defaults_or_replace_them():
    config = parse_config(GOOD, "alerts.toml", ENVIRONMENT)
    rules = {name_of(rule): rule for rule in config.rules}
    assert rules["offline"].for_s == 10
    assert rules["offline"].severity == "critical"
    assert isinstance(rules["offline-door"], Offline)
    assert "disk" not in rules
    assert "latency" in rules
    assert config.group.by == "room"
    assert config.tells[0].url == "mailto://me:s3cret@example.com"


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[[rule]]\nwhen = "offline"\nfor_s = "soon"\n', 3, "rule[0].for_s: Expected `float`, got `str`"),
        ('[[rule]]\nwhen = "disk"\n\n[[rule]]\nwhen = "nope"\n', 5, "rule[1].when"),
        ('\n[[rule]]\nwhen = "disk"\nfree = 3\n', 2, "unknown field `free`"),
        ('[[rule]]\nwhen = "disk"\nfree_mb = -3\n', 3, "free_mb"),
        ("[group]\nby = 'x'\nwait_s = -1", 3, "group.wait_s"),
        ('[[rule]]\nwhen = "disk"\ndevices = "a b"', 3, "rule[0].devices: query, character 2"),
        ("[[silence]]\nuntil = 2026-01-01T00:00:00", 2, "timezone"),
        (
            '[[silence]]\nuntil = 2026-01-01T00:00:00Z\nrules = ["x"]',
            3,
            "no rule is called 'x'; there are: clock",
        ),
        ('[[tell]]\nurl = "mailto://${NOPE}"', 2, "the environment has no variable NOPE"),
        ('[[rule]]\nwhen = "disk"\n[[rule]]\nwhen = "disk"\n', 3, "called 'disk' already"),
        ('[[rule]]\nwhen = "disk"\nname = "a/b"', 3, "name"),
        ('[[rule]]\nwhen = "disk"\nname = "a\\n"', 3, "name"),
        ('[[tell]]\nseverity = "critical"\n', 1, "missing required field `url`"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, line, words):
    with pytest.raises(CallerError) as caught:
        parse_config(text, "alerts.toml", {})
    assert f"alerts.toml, line {line}, " in str(caught.value)
    assert words in str(caught.value)


def test_what_is_no_toml_is_named_with_its_line():
    with pytest.raises(CallerError, match=r"no TOML.*line 2"):
        parse_config("[group]\nby = \n", "alerts.toml", {})


def test_the_page_tells_the_rules_as_they_are():
    page = (ROOT / "docs" / "telemetry" / "alerts.md").read_text()
    example = re.search(r"```toml\n(.*?)```", page, re.DOTALL).group(1)
    config = parse_config(example, "alerts.md", {"SMTP_USER": "me", "SMTP_PASSWORD": "secret"})
    defaults = {name_of(rule) for rule in DEFAULTS}
    assert {name_of(rule) for rule in config.rules} == (defaults - {"clock"}) | {"door-offline"}
    rows = re.findall(r"^\| `(\w+)` \| .*? \| (.*?) \| (\d+)(, critical)? \|$", page, re.MULTILINE)
    common = {"name", "devices", "severity", "for_s", "clear_s", "enabled"}
    for rule, (kind, fields, for_s, critical) in zip(DEFAULTS, rows, strict=True):
        assert (name_of(rule), rule.for_s, rule.severity == "critical") == (kind, float(for_s), bool(critical))
        told = {name: float(value) for name, value in re.findall(r"(\w+) = ([\d.]+)", fields)}
        assert told == {name: getattr(rule, name) for name in rule.__struct_fields__ if name not in common}


def test_a_secret_may_hold_what_means_something_in_urls():
    text = '[[tell]]\nurl = "mailto://me:${SECRET}@example.com"\n[[tell]]\nurl = "${HOOK}"\n'
    tells = parse_config(text, "alerts.toml", {"SECRET": "p@ss/w:rd", "HOOK": "https://a:b@c/d?e=f"}).tells
    assert [tell.url for tell in tells] == ["mailto://me:p%40ss%2Fw%3Ard@example.com", "https://a:b@c/d?e=f"]


def test_a_missing_file_is_the_callers(tmp_path):
    with pytest.raises(CallerError, match="--alerts"):
        read_config(tmp_path / "none.toml")


def test_a_file_without_end_is_not_read_to_its_end(tmp_path):
    with pytest.raises(CallerError, match="no plain file"):
        read_config(Path("/dev/zero"))
    long = tmp_path / "long.toml"
    long.write_bytes(b"#" * (1 << 21))
    with pytest.raises(CallerError, match="more than 1048576 bytes"):
        read_config(long)


def test_a_missing_variable_does_not_show_the_others():
    with pytest.raises(CallerError) as caught:
        parse_config('[[tell]]\nurl = "mailto://${SECRET}:${NOPE}@example.com"', "alerts.toml", ENVIRONMENT)
    assert "s3cret" not in str(caught.value)


@given(st.text())
def test_any_text_is_a_config_or_a_callers_error(text):
    with contextlib.suppress(CallerError):
        parse_config(text, "alerts.toml", {})

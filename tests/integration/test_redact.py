"""firmware_scripts/redact.awk: whatever a secret is and wherever it stands, it does not come out again."""

from __future__ import annotations

import base64
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.interpreters import ROOT

SCRIPTS = ROOT / "firmware_scripts"
PROGRAMS = ("-f", SCRIPTS / "settings.awk", "-f", SCRIPTS / "redact.awk")
WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789!#$%&()*+-.:/?@^_~", min_size=6, max_size=24)
PROSE = st.text("abc XYZ=[]{}:,.;/\\\"'-_", max_size=30)


def redact(text: str | bytes, *options: str) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    command = ["awk", *(word for option in options for word in ("-v", option)), *PROGRAMS]
    done = subprocess.run(
        command, input=data, capture_output=True, check=True, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    )
    return done.stdout.decode(errors="replace")


CARRIERS = (
    "mqtt://user:{}@hub.lan:1883?qos=1",
    "https://{}@hub.lan/path",
    "password={}",
    "MQTT_PASSWORD = {}",
    "  password: {}",
    'x "password": "{}", y',
    "remote_password {}",
    "--password {}",
    "--token={}",
    "bridge_psk {}",
    "wpa_psk={}",
    "Authorization: Bearer {}",
    "Set-Cookie: {}",
    "X-Api-Key: {}",
    "aws_secret_access_key={}",
    "client_secret='{}'",
    "mosquitto_sub -u me -P {} -t x",
    "curl -u me:{} http://hub.lan",
)


@settings(max_examples=60, deadline=None)
@given(secret=WORDS, carriers=st.lists(st.sampled_from(CARRIERS), min_size=1, max_size=3), before=PROSE, after=PROSE)
def test_a_secret_by_its_name_does_not_come_out(secret, carriers, before, after):
    secret = f"q{secret}q7"  # no part of any carrier, and no empty end
    lines = [f"{before} {carrier.format(secret)} {after}" for carrier in carriers]
    out = redact("\n".join([*lines, " ".join(lines), "the end"]))
    assert secret not in out
    assert out.endswith("the end\n")


@settings(max_examples=40, deadline=None)
@given(
    body=st.binary(min_size=48, max_size=400), cut=st.integers(0, 4), lead=st.sampled_from(["", "2026 host app[1]: "])
)
def test_a_key_does_not_come_out_even_where_its_beginning_was_cut(body, cut, lead):
    text = base64.b64encode(body).decode()
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    pem = ["-----BEGIN PRIVATE KEY-----", *lines, "-----END PRIVATE KEY-----"]
    out = redact("\n".join([lead + line for line in pem[cut:]] + ["the end"]))
    assert not [line for line in lines if line in out]
    assert out.endswith("the end\n")


def test_what_is_known_goes_wherever_it_stands_the_longest_first(tmp_path):
    known = tmp_path / "known"
    known.write_text("geheim7\ngeheim7-and-more\nshort\n")
    out = redact("it said geheim7-and-more, xgeheim7x; short stays\n", f"known={known}")
    assert out == "it said [removed], x[removed]x; short stays\n"


def test_what_is_removed_is_learned(tmp_path):
    learned = tmp_path / "learned"
    redact("A=mqtt://u:first-pw@h\npassword 'second pw'\npsk=third-pw\n", f"learn={learned}")
    assert learned.read_text().splitlines() == ["first-pw", "second pw", "third-pw"]


ANY = st.text(st.characters(min_codepoint=32, max_codepoint=382, exclude_categories=["Cc"]), max_size=20)
FORMS = {
    "env": (
        "{name}={value}",
        "export {name}='{value}'",
        ' {name}="{value}" ',
        '{name}="first\\\n{value}"',
        "{name}=first\\\n{value}",
        '{name}="first\n{value}\nlast"',
        "#{name}={value}",
        "{value}",
        "FERRYMAN_BROKER=mqtt://{value}@hub.lan",
        "FERRYMAN_BROKER=mqtt://u:{value}@hub.lan:1883/",
        "FERRYMAN_REPOSITORY_URL=http://hub.lan/{value}",
        "FERRYMAN_DATABASE=postgresql://u@hub.lan/db?x={value}",
        'FERRYMAN_OPTIONS="--sample 60 {value}"',
        "FERRYMAN_OPTIONS=--mqtt={value}",
        "FERRYMAN_DEVICE=/{value}",
    ),
    "unit": (
        "Environment={name}={value}",
        'Environment="A=1" "{name}={value}" B=2',
        "Environment=A=1 \\\n  '{name}={value}'",
        'Environment={name}="{value}"',
        "ExecStart=/usr/bin/env {name}={value} ferryman",
        "Environment=FERRYMAN_BROKER=mqtt://u:{value}@hub.lan",
    ),
}
NAMES = st.sampled_from(["FERRYMAN_PIN", "FERRYMAN_KEY", "MQTT_PW", "PLAIN", "FERRYMAN_DEVICE_", "X"])


@settings(max_examples=150, deadline=None)
@given(
    form=st.sampled_from([(kind, form) for kind in FORMS for form in FORMS[kind]]), name=NAMES, ends=st.tuples(ANY, ANY)
)
def test_of_settings_a_value_comes_out_only_where_its_name_is_known_and_it_is_harmless(form, name, ends):
    kind, line = form
    value = f"{ends[0]}Zq7xPw{ends[1]}"
    text = f"# ours\n{line.format(name=name, value=value)}\n"
    assert "Zq7xPw" not in redact(text, f"kind={kind}")


VALUES = ("K3YK3YK3Y", "p<a>ss9", "a%40b%3ac9", "PIN424242")


@pytest.mark.parametrize(
    ("kind", "line", "more"),
    [
        ("env", "MQTT_PW={}", ["it'sS3cretPw", 'a"b"c#d', "two words", "424242"]),
        ("env", "export FERRYMAN_PIN='{}'", ['a"b"c#d', "two words"]),
        ("env", 'X="first\\\n{}"', ["two words", "it'sS3cretPw"]),
        ("env", 'X="first\n{}\nlast"', ["two words", "it'sS3cretPw"]),
        ("env", "X=first\\\n{}", ["two words", "it'sS3cretPw"]),
        ("env", "#X={}", ["two words", "it'sS3cretPw"]),
        ("env", "{}", ["two words", "it'sS3cretPw"]),
        ("env", "FERRYMAN_BROKER=mqtt://me:{}@hub.lan", ["it'sS3cretPw", 'a"b@c#d', "a/b?c=d"]),
        ("env", "FERRYMAN_DATABASE=postgresql://me@hub.lan/db?sslmode=no&x={}", ["it'sS3cretPw"]),
        ("env", "FERRYMAN_REPOSITORY_URL=http://hub.lan/{}", ["it'sS3cretPw"]),
        ("env", 'FERRYMAN_OPTIONS="--sample 60 --mqtt {}"', []),
        ("unit", 'Environment="X=1" "MQTT_PW={}" Y=2', ["two words", "it'sS3cretPw"]),
        ("unit", "Environment=A=1 \\\n  MQTT_PW={}", []),
        ("unit", "Environment=MQTT_PW='{}'", ["two words"]),
        ("unit", "ExecStart=/usr/bin/env MQTT_PW={} ferryman", []),
        ("unit", "Environment=FERRYMAN_BROKER=mqtt://u:{}@hub.lan", []),
    ],
)
def test_what_is_removed_of_settings_goes_from_journals_too(tmp_path, kind, line, more):
    learned = tmp_path / "learned"
    values = [*VALUES, *more]
    redact("\n".join(line.format(value) for value in values) + "\n", f"kind={kind}", f"learn={learned}")
    if "//me:" in line:
        values.append("a@b:c9")  # as a client may tell of a%40b%3ac9
    out = redact("".join(f"it said {value}, and\n" for value in values), f"known={learned}")
    assert out == "it said [removed], and\n" * len(values)


KEPT = """\
FERRYMAN_DEVICE=kitchen
FERRYMAN_BROKER=mqtts://hub.lan:8883
FERRYMAN_REPOSITORY_URL=http://192.168.1.2:8080
FERRYMAN_OUTBOX=/run/ferryman
FERRYMAN_OPTIONS=--sample 60 --mode metered --telemetry-day-max=5MiB --outbox /run/x --confirm broker
FERRYMAN_DATABASE=/var/lib/ferryman-collector/ferryman.sqlite
"""


def test_of_settings_what_helps_stays():
    assert redact(KEPT, "kind=env") == KEPT
    unit = "".join(f'Environment="{line}"\n' for line in KEPT.splitlines())
    unit += "[Service]\nWatchdogSec=30\nExecStart=/opt/ferryman/bin/ferryman agent --device ${FERRYMAN_DEVICE}\n"
    assert redact(unit, "kind=unit") == unit
    assert redact("Environment=FERRYMAN_DEVICE=%H A=\n", "kind=unit") == 'Environment="FERRYMAN_DEVICE=%H" "A="\n'


def test_of_settings_that_are_not_harmless_what_is_left():
    text = """\
# old: PW=x1
export OTHER=x1
FERRYMAN_BROKER="mqtt://user:x@y/1@hub.lan:1883?ca=x"
FERRYMAN_OPTIONS='--sample 60 --proxy http://u:p@proxy:3128 --label "room=two words"'
FERRYMAN_BROKER=mqtt://user:x1
nonsense
FERRYMAN_DEVICE=never ended \\"""
    expected = """\
OTHER=[removed]
FERRYMAN_BROKER=mqtt://[removed]@hub.lan:1883[removed]
FERRYMAN_OPTIONS=--sample 60 --proxy http://[removed]@proxy:3128 --label [removed]
FERRYMAN_BROKER=mqtt://user[removed]
[removed]
[removed]
"""
    assert redact(text, "kind=env") == expected


@pytest.mark.parametrize(
    "line",
    [
        "package 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 serves in slot a",
        "commit 742428a9f86d081884c7d659a2feaa0c55ad015a",
        "/sys/devices/system/cpu/cpufreq/policy0/scaling_governor: performance",
        "2026-11-26T22:10:00.123456+00:00 pi ferryman[812]: broker mqtt://hub.lan:1883: connected",
        "inet6 fe80::dea6:32ff:fe12:3456/64 scope link",
    ],
)
def test_what_helps_stays(line):
    assert redact(line + "\n") == line + "\n"


def test_bytes_that_are_no_text_do_no_harm():
    assert "password=[removed]" in redact(bytes(range(1, 256)) + b"\npassword=\xff\xfe\x00secret\n")


def test_what_a_terminal_would_obey_is_no_more_than_shown():
    assert redact(b"a\x1b[31mred\x07\x7f\tb\xc2\x9b2J \xc3\xa4\n".decode()) == "a?[31mred??\tb?2J ä\n"


def test_it_is_cut_where_it_was_told():
    assert redact("0123456789\n" * 100, "bytes_max=35") == "0123456789\n" * 3 + "[cut: more than 35 bytes]\n"


@pytest.mark.parametrize("end", ["=", "=="])
def test_the_last_line_of_a_key_is_no_setting(end):
    assert redact(f"DEpXO86Y2UBkvUUqtenNqZc{end}\nA=\n", "kind=env") == "[removed]\nA=\n"

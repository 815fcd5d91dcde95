"""firmware_scripts/redact.awk: whatever a secret is and wherever it stands, it does not come out again."""

from __future__ import annotations

import base64
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.interpreters import ROOT

REDACT = ROOT / "firmware_scripts" / "redact.awk"
WORDS = st.text("abcdefghijklmnopqrstuvwxyz0123456789!#$%&()*+-.:/?@^_~", min_size=6, max_size=24)
PROSE = st.text("abc XYZ=[]{}:,.;/\\\"'-_", max_size=30)


def redact(text: str | bytes, *options: str) -> str:
    data = text if isinstance(text, bytes) else text.encode()
    command = ["awk", *(word for option in options for word in ("-v", option)), "-f", REDACT]
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


def test_of_an_environment_only_our_own_names_keep_their_values():
    text = "FERRYMAN_DEVICE=kitchen\nexport OTHER=x1\nFERRYMAN_CA_PASSPHRASE=x2\n# a comment\n"
    assert (
        redact(text, "env=1")
        == "FERRYMAN_DEVICE=kitchen\nexport OTHER=[removed]\nFERRYMAN_CA_PASSPHRASE=[removed]\n# a comment\n"
    )


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


def test_it_is_cut_where_it_was_told():
    assert redact("0123456789\n" * 100, "bytes_max=35") == "0123456789\n" * 3 + "[cut: more than 35 bytes]\n"

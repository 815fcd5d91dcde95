from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ferryman.runtime import archive, package
from ferryman.runtime.contracts.errors import CallerError, PackageError
from ferryman.runtime.contracts.manifest import GoldenVector, Lowering, Requirements, Variant
from ferryman.runtime.contracts.tensor import Tensor, pack, to_tensors
from ferryman.runtime.package import Limits, open_package, read_golden, write_package
from tests.support.forge import contents, entry, forged, listed, reseal, sealed_zip
from tests.support.packages import SIGNATURE, sha256_of, write_tiny_package

GOLDEN = [GoldenVector(inputs=to_tensors([np.zeros((1, 4), np.float32)]), outputs=to_tensors([np.ones((1, 4), "f4")]))]
PLAIN_PATHS = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,8}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,8}){0,2}", fullmatch=True)


def write(path, artifacts, **changes):
    """A package of `artifacts`, the first of which is the one variant's."""
    variant = changes.pop("variant", None) or variant_of(next(iter(artifacts)))
    arguments = {
        "name": "m",
        "signature": SIGNATURE,
        "variants": [variant],
        "golden": GOLDEN,
        "golden_sqnr_min_db": 60.0,
        "created_with": {"b": "2", "a": "1"},
    }
    return write_package(path, artifacts=artifacts, **{**arguments, **changes})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_package(tmp_path_factory.mktemp("tiny") / "tiny.ferry")


def variant_of(payload, name="v"):
    return Variant(
        name=name,
        form="fp32",
        runtime="tflite",
        payload=payload,
        signature=SIGNATURE,
        requires=Requirements(interpreters={"ai-edge-litert": "2.0"}, memory_estimate_bytes=1),
        lowering=Lowering(delegated={}, fallback={}, delegates=0),
        verified=(),
    )


@pytest.fixture(scope="module")
def parts(tiny):
    """The tiny package's manifest as plain data, and its payloads."""
    entries = contents(tiny)
    return json.loads(entries.pop("manifest.json")), entries


@pytest.fixture
def refused(tmp_path):
    """Asserts that bytes are refused with a message, and that nothing was written beside them."""

    def check(data, match):
        path = tmp_path / "hostile.ferry"
        path.write_bytes(data)
        with pytest.raises(PackageError, match=match):
            open_package(path)
        assert [one.name for one in tmp_path.iterdir()] == ["hostile.ferry"]
        assert path.read_bytes() == data

    return check


# What is written can be read.


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    artifacts=st.dictionaries(
        PLAIN_PATHS.filter(lambda p: "manifest.json" not in p), st.binary(max_size=300), min_size=1
    ),
    name=st.from_regex(r"\w[\w .+-]{0,20}", fullmatch=True),
)
def test_what_was_written_is_what_is_read(tmp_path, artifacts, name):
    path = tmp_path / "p.ferry"
    path.unlink(missing_ok=True)
    folders = {p.rsplit("/", n)[0] for p in artifacts for n in range(1, p.count("/") + 1)}
    if folders & set(artifacts) or {"golden", "golden/0.msgpack"} & {*artifacts, *folders} - {"golden"}:
        with pytest.raises(PackageError, match=r"also a folder|kept for golden"):
            write(path, artifacts, name=name)
        assert not path.exists()
        return
    if "golden" in artifacts:
        return
    digest = write(path, artifacts, name=name)
    with open_package(path) as opened:
        assert opened.sha256 == digest == sha256_of(path)
        assert opened.manifest.name == name
        assert {p: bytes(opened.read(p)) for p in artifacts} == artifacts
        assert opened.golden() == GOLDEN
    with zipfile.ZipFile(path) as archived:
        assert archived.testzip() is None


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    a = write(tmp_path / "a.ferry", {"x": b"1", "y": b"2"})
    b = write(tmp_path / "b.ferry", {"x": b"1", "y": b"2"}, created_with={"a": "1", "b": "2"})
    assert a == b
    assert (tmp_path / "a.ferry").read_bytes() == (tmp_path / "b.ferry").read_bytes()


def test_the_order_of_artifacts_does_not_change_the_bytes(tmp_path):
    a = write(tmp_path / "a.ferry", {"x": b"1", "y": b"2"})
    b = write(tmp_path / "b.ferry", {"y": b"2", "x": b"1"}, variant=variant_of("x"))
    assert a == b


def test_the_bytes_are_those_of_the_format(tmp_path):
    """Changing them changes the identity of every package: raise the schema if it must be."""
    assert (
        write(tmp_path / "a.ferry", {"x": b"1"}) == "2392c3beeb14fb5e39eed4bddb2ce39ae061f7b6fc9d978e5e3d16d8df24046b"
    )


def test_other_zip_tools_read_it(tiny):
    if shutil.which("unzip") is None:
        pytest.skip("unzip is not installed")
    done = subprocess.run(["unzip", "-t", str(tiny)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "No errors detected" in done.stdout


def test_the_standard_library_would_write_the_same(tiny):
    assert sealed_zip(contents(tiny).items()) == tiny.read_bytes()


def test_sizes_over_32_bits_take_zip64_and_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "FIELD_MAX", 4000)  # stands in for 4 GiB
    path = tmp_path / "large.ferry"
    artifacts = {"large": b"x" * 5000, "small": b"y"}
    write(path, artifacts)
    with open_package(path) as opened:
        assert {name: bytes(opened.read(name)) for name in artifacts} == artifacts


def test_zip64_fields_are_those_other_tools_expect(tmp_path):
    entries = [archive.Entry("x", 1 << 33, 7, 0), archive.Entry("y", 3, 8, 1 << 34)]
    directory = archive.ending(entries, 1 << 35, 0)
    path = tmp_path / "sparse.zip"
    with path.open("wb") as file:
        file.write(archive.local_header(entries[0]))
        file.seek(1 << 34)
        file.write(archive.local_header(entries[1]))
        file.seek(1 << 35)
        file.write(directory)
    with zipfile.ZipFile(path) as archived:
        found = [(i.filename, i.file_size, i.compress_size, i.CRC, i.header_offset) for i in archived.infolist()]
        assert found == [("x", 1 << 33, 1 << 33, 7, 0), ("y", 3, 3, 8, 1 << 34)]
        archived.open("x").close()  # reads its local header


def test_a_package_outlives_its_path(tmp_path):
    path = write_tiny_package(tmp_path / "p.ferry", added=1.0)
    other = write_tiny_package(tmp_path / "other.ferry", added=2.0)
    with open_package(path) as opened:
        before = bytes(opened.read("artifacts/model.tflite"))
        other.replace(path)
        assert bytes(opened.read("artifacts/model.tflite")) == before


def test_the_file_that_was_checked_is_the_one_that_is_read(tmp_path, monkeypatch):
    """A swap of the path between the check and the use changes nothing."""
    path = write_tiny_package(tmp_path / "p.ferry", added=1.0)
    hostile = write_tiny_package(tmp_path / "hostile.ferry", added=666.0)
    expected = contents(path)
    check = package._check_form

    def swap_after(view):
        result = check(view)
        hostile.replace(path)
        return result

    monkeypatch.setattr(package, "_check_form", swap_after)
    with open_package(path) as opened:
        assert opened.manifest.name == "add-1"
        assert bytes(opened.read("artifacts/model.tflite")) == expected["artifacts/model.tflite"]


def test_a_package_that_is_cut_or_overwritten_while_open_is_refused_by_name(tmp_path):
    """A mapped file would end the process."""
    path = write_tiny_package(tmp_path / "p.ferry", padding=bytes(3 << 20))
    whole = path.read_bytes()
    with open_package(path) as opened:
        for damage, match in ((b"", "end is gone"), (whole[: 1 << 20], "end is gone"), (bytes(len(whole)), "changed")):
            path.write_bytes(damage)
            with pytest.raises(PackageError, match=rf"p\.ferry: .*{match}.* while it was open; copy it again"):
                opened.read("artifacts/model.tflite")
        path.write_bytes(whole)
        assert len(opened.read("artifacts/model.tflite")) > 3 << 20
    with pytest.raises(CallerError, match="is closed"):
        opened.read("artifacts/model.tflite")


def test_text_will_do_for_a_path(tiny):
    with open_package(str(tiny)) as opened:
        assert opened.manifest.name == "add-1"


def test_a_payload_held_over_close_stays_readable(tiny, parts):
    with open_package(tiny) as opened:
        held = opened.read("artifacts/model.tflite")
    assert bytes(held) == parts[1]["artifacts/model.tflite"]


def test_a_failed_write_leaves_the_old_package_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "p.ferry"
    write(path, {"x": b"old"})
    old = path.read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(path, {"x": b"new"})
    assert path.read_bytes() == old
    assert [one.name for one in tmp_path.iterdir()] == ["p.ferry"]


# What no reader would take is not written.


@pytest.mark.parametrize(
    ("artifacts", "changes", "match"),
    [
        ({"../x": b""}, {}, "plain relative path"),
        ({"manifest.json": b""}, {}, "plain relative path"),
        ({"manifest.json/x": b""}, {}, "also a folder"),
        ({"a": b"", "a/b": b""}, {}, "'a' is also a folder"),
        ({"golden/0.msgpack": b""}, {}, "kept for golden"),
        ({"x" * 201: b""}, {}, "plain relative path"),
        ({"x": b""}, {"variant": variant_of("y")}, "named but not listed: y"),
        ({"x": b""}, {"variants": []}, "variants must be at least one"),
        ({"x": b""}, {"variants": [variant_of("x")] * 2}, "of different names"),
        ({"x": b""}, {"golden": []}, "golden vectors must be at least one"),
        ({"x": b""}, {"golden_sqnr_min_db": float("nan")}, "golden_sqnr_min_db"),
        ({"x": b""}, {"golden_sqnr_min_db": float("inf")}, "golden_sqnr_min_db"),
        ({"x": b""}, {"name": "a/b"}, "package name 'a/b'"),
        ({"x": b""}, {"name": ""}, "package name ''"),
        ({"x": b""}, {"name": "\x1b[31mred"}, "package name"),
        ({"x": b""}, {"variant": variant_of("x", name="\x1b[31mred")}, r"name '\\x1b\[31mred' of variants"),
        ({"x": b""}, {"created_with": {"\ud800": ""}}, "cannot be written"),
        ({f"x{n:04}": b"" for n in range(1000)}, {}, "1001 payloads are more"),
        ({"x": b""}, {"created_with": {"a": "x" * (4 << 20)}}, "a manifest of .* bytes is more"),
    ],
)
def test_arguments_that_make_no_package_are_refused(tmp_path, artifacts, changes, match):
    with pytest.raises(PackageError, match=match):
        write(tmp_path / "p.ferry", artifacts, **changes)
    assert not list(tmp_path.iterdir())


# Damage.


def test_truncation_at_every_length_is_refused(tiny, tmp_path):
    data = tiny.read_bytes()
    path = tmp_path / "short.ferry"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(PackageError, match="seal" if length else "empty"):
            open_package(path)


def test_every_flipped_bit_is_refused(tiny, tmp_path):
    data = bytearray(tiny.read_bytes())
    path = tmp_path / "flipped.ferry"
    path.write_bytes(data)
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for position in range(len(data)):
            for bit in range(8):
                os.pwrite(descriptor, bytes([data[position] ^ 1 << bit]), position)
                with pytest.raises(PackageError, match="seal"):
                    open_package(path)
            os.pwrite(descriptor, data[position : position + 1], position)
    finally:
        os.close(descriptor)
    open_package(path).close()


@pytest.mark.parametrize("extra", [b"\0", b"x" * 64, b"PK\5\6" + b"\0" * 18])
def test_appended_bytes_are_refused(tiny, refused, extra):
    refused(tiny.read_bytes() + extra, "seal")


def test_bytes_before_the_package_are_refused(tiny, refused):
    refused(reseal(b"#!/bin/sh\n" + tiny.read_bytes()), "expected entry 'manifest.json'")


def test_every_byte_outside_the_manifest_counts_even_when_sealed_anew(tiny, tmp_path, parts):
    """No header, directory or payload byte can change: two readers never see two different things."""
    data = tiny.read_bytes()
    manifest_from = data.index(b'{"')
    manifest_to = manifest_from + len(contents(tiny)["manifest.json"])
    path = tmp_path / "forged.ferry"
    for position in [*range(manifest_from), *range(manifest_to, len(data) - 64)]:
        changed = bytearray(data)
        changed[position] ^= 0x01
        path.write_bytes(reseal(bytes(changed)))
        with pytest.raises(PackageError):
            open_package(path)


# What is no file.


def test_an_empty_file_is_refused(refused):
    refused(b"", "the file is empty")


@pytest.mark.timeout(10)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", "/dev/null"):
        with pytest.raises(PackageError, match="not a regular file"):
            open_package(tmp_path / path)


def test_a_missing_file_is_the_callers_fault(tmp_path):
    with pytest.raises(CallerError, match=r"cannot read the package .*nope\.ferry: No such file or directory; name"):
        open_package(tmp_path / "nope.ferry")


def test_a_link_to_a_package_is_followed(tiny, tmp_path):
    (tmp_path / "link.ferry").symlink_to(tiny)
    with open_package(tmp_path / "link.ferry") as opened:
        assert opened.sha256 == sha256_of(tiny)


def test_an_oversized_file_is_refused_unread(tmp_path):
    path = tmp_path / "huge.ferry"
    with path.open("wb") as file:
        file.truncate(Limits.package_max_bytes + 1)
    with pytest.raises(PackageError, match="more than the"):
        open_package(path)


def test_a_text_file_is_no_package(refused):
    refused(b"hello\n" * 100, "no seal at the end")


# Hostile zips under a seal that holds.


@pytest.mark.parametrize(
    "path",
    ["../x", "/etc/x", "a//b", "./a", "a/../b", "a/.", "..", "a\\b", "C:x", ".hidden", "a/.b", "x\0y", "", "é", "a "],
)
def test_escaping_paths_are_refused(parts, refused, path):
    manifest, payloads = parts
    payloads = dict(sorted({**payloads, path: b"x"}.items()))
    refused(forged(listed(manifest, payloads), payloads), "not a plain relative path")


def _duplicate(manifest, payloads):
    return [("manifest.json", manifest), *payloads, payloads[0]]


def _extra(manifest, payloads):
    return [("manifest.json", manifest), *payloads, ("zzz", b"extra")]


def _missing(manifest, payloads):
    return [("manifest.json", manifest), *payloads[:-1]]


def _out_of_order(manifest, payloads):
    return [("manifest.json", manifest), *payloads[::-1]]


def _manifest_last(manifest, payloads):
    return [*payloads, ("manifest.json", manifest)]


def _two_manifests(manifest, payloads):
    return [("manifest.json", manifest), ("manifest.json", manifest), *payloads]


def _compressed(manifest, payloads):
    return [("manifest.json", manifest), (entry(payloads[0][0], compress_type=zipfile.ZIP_DEFLATED), payloads[0][1])]


def _entry_comment(manifest, payloads):
    return [("manifest.json", manifest), *payloads[:-1], (entry(payloads[-1][0], comment=b"hi"), payloads[-1][1])]


def _extra_field(manifest, payloads):
    return [(entry("manifest.json", extra=b"\x55\x54\x01\x00\x00"), manifest), *payloads]


def _other_date(manifest, payloads):
    return [(entry("manifest.json", date_time=(2020, 1, 1, 0, 0, 0)), manifest), *payloads]


def _symlink(manifest, payloads):
    return [
        ("manifest.json", manifest),
        *payloads[:-1],
        (entry(payloads[-1][0], external_attr=0o120777 << 16), b"/etc"),
    ]


@pytest.mark.parametrize("bar_db", [-200.0, 0.0, 4.9, 200.1, 1e300])
def test_a_bar_that_proves_nothing_is_refused(parts, refused, bar_db):
    manifest, payloads = parts
    refused(forged({**manifest, "golden_sqnr_min_db": bar_db}, payloads), "golden_sqnr_min_db must be 5 to 200 dB")


@pytest.mark.parametrize("least", ["", "latest", "1.", "9" * 5000, "1.2\x1b[2J", "٣", "1 2"])
def test_a_version_that_is_none_is_refused(parts, refused, least):
    manifest, payloads = parts
    manifest = json.loads(json.dumps(manifest))
    manifest["variants"][0]["requires"]["interpreters"] = {"tflite-runtime": least}
    refused(forged(manifest, payloads), "which is no version")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (_duplicate, "after the last payload"),
        (_extra, "after the last payload"),
        (_missing, "expected entry"),
        (_out_of_order, "expected entry"),
        (_manifest_last, "expected entry 'manifest.json'"),
        (_two_manifests, "expected entry"),
        (_compressed, "stored, without extras"),
        (_entry_comment, "after the last payload"),
        (_extra_field, "expected entry 'manifest.json'"),
        (_other_date, "expected entry 'manifest.json'"),
        (_symlink, "SHA-256|expected entry|after the last"),
    ],
)
def test_entries_other_than_the_canonical_ones_are_refused(tiny, refused, entries, match):
    files = contents(tiny)
    manifest = files.pop("manifest.json")
    refused(sealed_zip(entries(manifest, list(files.items()))), match)


def test_a_zip_bomb_is_refused_before_it_grows(parts, refused):
    manifest, payloads = parts
    bomb = bytes(50 << 20)
    payloads = {**payloads, "artifacts/model.tflite": bomb}
    entries = [("manifest.json", json.dumps(listed(manifest, payloads)).encode())]
    entries += [(entry(name, compress_type=zipfile.ZIP_DEFLATED), data) for name, data in payloads.items()]
    data = sealed_zip(entries)
    assert len(data) < 1 << 20
    refused(data, "stored, without extras")


def test_too_many_entries_are_refused(parts, refused):
    manifest, payloads = parts
    payloads = dict(sorted({**payloads, **{f"p/{n}": b"" for n in range(1001)}}.items()))
    refused(forged(listed(manifest, payloads), payloads), "payloads are more than the 1000")


# Hostile manifests.


@pytest.mark.parametrize(("schema", "match"), [(0, "convert the model again"), (2, "update ferryman"), (-1, "again")])
def test_another_schema_is_refused_with_what_to_do(parts, refused, schema, match):
    manifest, payloads = parts
    refused(forged({**manifest, "schema": schema}, payloads), match)


def test_a_field_of_a_later_ferryman_is_ignored(parts, tmp_path):
    manifest, payloads = parts
    path = tmp_path / "later.ferry"
    path.write_bytes(forged({**manifest, "colour": {"deep": [1, 2]}}, payloads))
    with open_package(path) as opened:
        assert opened.manifest.name == "add-1"


def _with_payload(manifest, **changes):
    first, *rest = manifest["payloads"]
    return {**manifest, "payloads": [{**first, **changes}, *rest]}


def _with_variant(manifest, **changes):
    return {**manifest, "variants": [{**manifest["variants"][0], **changes}]}


def _with_needs(manifest, **changes):
    return _with_variant(manifest, requires={**manifest["variants"][0]["requires"], **changes})


def _with_input(manifest, **changes):
    signature = manifest["signature"]
    return {**manifest, "signature": {**signature, "inputs": [{**signature["inputs"][0], **changes}]}}


@pytest.mark.parametrize(
    ("lie", "match"),
    [
        (lambda m: _with_payload(m, size_bytes=1), "expected entry"),
        (lambda m: _with_payload(m, size_bytes=-1), "sizes must lie between"),
        (lambda m: _with_payload(m, size_bytes=1 << 62), "sizes must lie between"),
        (lambda m: _with_payload(m, size_bytes=1 << 32), "expected entry"),
        (lambda m: _with_payload(m, sha256="0" * 64), "does not have the SHA-256"),
        (lambda m: _with_payload(m, sha256=""), "does not have the SHA-256"),
        (lambda m: _with_variant(m, payload="nope"), "named but not listed: nope"),
        (lambda m: _with_variant(m, runtime="onnx"), r"\$\.variants\[0\]\.runtime"),
        (lambda m: {**m, "golden": ["nope"]}, "named but not listed: nope"),
        (lambda m: {**m, "golden": []}, "golden vectors must be"),
        (lambda m: {**m, "golden": m["golden"] * 2}, "golden vectors must be"),
        (lambda m: {**m, "golden_sqnr_min_db": None}, "golden_sqnr_min_db"),
        (lambda m: {**m, "variants": []}, "variants must be"),
        (lambda m: {**m, "payloads": []}, "named but not listed"),
        (lambda m: {**m, "payloads": m["payloads"] * 2}, "listed twice"),
        (lambda m: {**m, "payloads": m["payloads"][::-1]}, "not in order"),
        (lambda m: {**m, "name": "\u202egnp"}, "package name"),
        (lambda m: _with_variant(m, name=""), "name '' of variants is not 1 to 200 printable characters"),
        (lambda m: _with_variant(m, name="x" * 201), "of variants is not 1 to 200 printable characters"),
        (lambda m: _with_variant(m, name="a\nb"), "of variants is not"),
        (lambda m: _with_variant(m, form="\u202egnp"), "of forms is not"),
        (lambda m: _with_needs(m, interpreters={"\x1b[2J": "1"}), "of interpreters is not"),
        (lambda m: _with_needs(m, isa=["avx\r"]), "of instruction sets is not"),
        (lambda m: _with_needs(m, interpreters={}), "names no interpreter, so no device could run it"),
        (lambda m: _with_needs(m, memory_estimate_bytes=-1), r"memory_estimate_bytes must be 0 to .*, found -1"),
        (lambda m: _with_needs(m, memory_estimate_bytes=1 << 62), "memory_estimate_bytes must be"),
        (lambda m: _with_input(m, name="x\x07"), "of tensors is not"),
        (lambda m: _with_input(m, shape=[{"symbol": "\x1b", "min": 1, "max": 2}]), "of dimensions is not"),
        (lambda m: _with_input(m, dtype="object"), "dtype 'object'"),
        (lambda m: _with_input(m, shape=[-1]), "impossible dimension -1"),
        (lambda m: _with_input(m, shape=[{"symbol": "s", "min": 4, "max": 2}]), "impossible dimension 4..2"),
        (lambda m: {k: v for k, v in m.items() if k != "signature"}, "signature"),
    ],
)
def test_a_manifest_that_lies_is_refused(parts, refused, lie, match):
    manifest, payloads = parts
    refused(forged(lie(manifest), payloads), match)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "manifest.json: "),
        (b"null", "manifest.json: "),
        (b"[" * 100_000, "manifest.json: "),
        (b'{"schema":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "manifest.json: "),
        (b'{"schema":1' + b" " * (4 << 20) + b"}", "a manifest of .* bytes is more than"),
        (b'{"schema":' + b"9" * 5000 + b"}", "manifest.json: "),
        (b'{"schema":1,"name":"\xff"}', "manifest.json: "),
        (b'{"schema":true}', "manifest.json: "),
        (b"\xef\xbb\xbf{}", "manifest.json: "),
    ],
    ids=range(9),
)
def test_a_manifest_that_is_none_is_refused(parts, refused, data, match):
    refused(forged(data, parts[1]), match)


# Golden vectors.


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (Tensor(dtype="float32", shape=(-1,), data=b""), "negative dimension"),
        (Tensor(dtype="float32", shape=(-1, -1), data=bytes(4)), "negative dimension"),
        (Tensor(dtype="float32", shape=(1 << 62, 1 << 62), data=b""), "takes .* bytes, found 0"),
        (Tensor(dtype="float32", shape=(0, 1 << 62), data=b""), "golden vector g: "),
        (Tensor(dtype="float32", shape=(0, (1 << 64) - 1), data=b""), "golden vector g: "),
        (Tensor(dtype="float32", shape=(1,) * 100_000, data=bytes(4)), "dimensions"),
        (Tensor(dtype="float32", shape=(1 << 62,) * 100_000, data=b""), "dimensions"),
        (Tensor(dtype="object", shape=(1,), data=bytes(8)), "dtype 'object' is none of"),
        (Tensor(dtype="float32", shape=(2,), data=bytes(4)), "takes 8 bytes, found 4"),
    ],
)
def test_a_malformed_golden_vector_is_refused(tensor, match):
    data = pack(GoldenVector(inputs=(tensor,), outputs=()))
    with pytest.raises(PackageError, match=match):
        read_golden(data, "g")


@given(st.binary(max_size=200))
def test_any_bytes_as_a_golden_vector_raise_nothing_else(data):
    try:
        read_golden(data, "g")
    except PackageError as error:
        assert str(error).startswith("golden vector g: ")  # noqa: PT017  # most bytes are none, and that is the test


def test_golden_vectors_keep_empty_and_scalar_tensors():
    arrays = [np.zeros((0, 3), np.float32), np.array(5, np.int64), np.array([True, False])]
    vector = read_golden(pack(GoldenVector(inputs=to_tensors(arrays), outputs=())), "g")
    for tensor, array in zip(vector.inputs, arrays, strict=True):
        np.testing.assert_array_equal(tensor.to_array(), array, strict=True)


# Anything at all, sealed.


def _mutate(data, chance):
    """Bytes changed, cut, doubled or put elsewhere, at one to four places; values that matter to parsers come often."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(data) or 1)
        length = min(chance.choice([1, 1, 2, 4, 8, 30, 200]), len(data) - start)
        piece = bytes(data[start : start + length])
        match chance.randrange(6):
            case 0:
                data[start : start + length] = chance.randbytes(length)
            case 1:
                data[start : start + length] = chance.choice([b"\0", b"\xff", b"\x7f"]) * length
            case 2:
                del data[start : start + length]
            case 3:
                data[start:start] = piece * chance.randint(1, 20)
            case 4:
                at = chance.randrange(len(data) or 1)
                data[at : at + length] = piece
            case _:
                data[start : start + 1] = chance.choice([b"9" * 30, b"-", b"null", b"{", b'"', b"PK\5\6", b"PK\6\6"])
    return bytes(data) or b"x"


def _opens_or_is_refused(path, data):
    path.write_bytes(data)
    try:
        with open_package(path) as opened:
            opened.golden()
    except PackageError:
        return False
    return True


@pytest.mark.slow
def test_mutated_packages_raise_package_errors_only(tiny, parts, tmp_path):
    """Half the cases change the zip's bytes, half the manifest or a golden vector inside a sound zip."""
    chance = random.Random(20)  # noqa: S311  # the same every time
    manifest, payloads = json.dumps(parts[0]).encode(), parts[1]
    golden = parts[0]["golden"][0]
    path = tmp_path / "mutant.ferry"
    refused = 0
    for number in range(16_000):
        if number % 2:
            data = reseal(_mutate(tiny.read_bytes()[:-64], chance) + bytes(64))
        elif number % 4:
            data = forged(_mutate(manifest, chance), payloads)
        else:
            mutant = {**payloads, golden: _mutate(payloads[golden], chance)}
            data = forged(listed(parts[0], mutant), mutant)
        refused += not _opens_or_is_refused(path, data)
    assert refused > 12_000

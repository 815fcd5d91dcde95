"""Facts of a device on which there is no ferryman: one shell script prints files, and they are read here.

The script is `bare.sh`, for any POSIX shell: a Pi before it is provisioned, BusyBox, Android's. Its output is taken
apart into a folder of /proc, /sys and /etc, which the same readers read that read a device's own.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from importlib import resources
from pathlib import Path

from ferryman.profiler.facts import Told, facts_of
from ferryman.runtime.contracts.errors import DeviceError
from ferryman.runtime.contracts.facts import DeviceFacts, Sensor
from ferryman.runtime.contracts.numbers import whole
from ferryman.runtime.contracts.record import Unavailable

FILES_MAX = 4096
"""More than any device has of what is printed."""
_TEXT_MAX_CHARS = 200
_PATH = re.compile(r"(?:/[A-Za-z0-9_.:,@+-]{1,120}){1,12}", re.ASCII)
_ROOTS = ("proc", "sys", "etc", "usr")
_KIB = 1024
_STORAGE_MAX_KIB = 1 << 50
_DF_COLUMNS = 6
_SAID_CHARS = 200


def bare_command(store: Path) -> tuple[tuple[str, ...], str]:
    """What to run on the device, and the mark that its answer is taken apart by, which nothing on it can know."""
    mark = f"@@{secrets.token_hex(8)}"
    script = (resources.files("ferryman.devices.fleet.facts") / "bare.sh").read_text()
    return ("sh", "-c", script, "sh", mark, str(store)), mark


def parse_bare(said: bytes, mark: str, store: Path, no_ferryman: str) -> DeviceFacts:
    """Facts from what the script printed.

    Args:
        said: its output.
        mark: as `bare_command` gave it.
        store: root folder of the slot store there.
        no_ferryman: why it is not ferryman that tells.

    Raises:
        DeviceError: it is no output of the script, or only some of it.
    """
    parts = _parts(said, mark)
    if "end" not in parts or not _word(parts, "machine"):
        told = said.decode(errors="replace").strip()[-_SAID_CHARS:]
        raise DeviceError(f"the device's shell did not answer as a shell does: {told or 'it said nothing'}")
    with tempfile.TemporaryDirectory(prefix="ferryman-facts-") as folder:
        tree = Path(folder)
        for name, data in parts.items():
            _place(tree, name, data)
        facts = facts_of(tree, _told(parts, store, no_ferryman))
    return _with_android(_with_reasons(_without(facts, folder), parts), parts)


def _parts(said: bytes, mark: str) -> dict[str, bytes]:
    """What stands below each line with the mark; the first of a name counts."""
    parts: dict[str, bytes] = {}
    for piece in said.replace(b"\r\n", b"\n").split(f"\n{mark} ".encode())[1 : FILES_MAX + 1]:
        name, _, data = piece.partition(b"\n")
        parts.setdefault(name.decode(errors="replace").strip(), data)
    return parts


def _place(tree: Path, name: str, data: bytes) -> None:
    """Lay a file where its path says, if that is one the script prints."""
    words = name.strip("/").split("/")
    if not _PATH.fullmatch(name) or words[0] not in _ROOTS or {".", ".."} & set(words) or not data.strip(b"\0 \n"):
        return
    path = tree.joinpath(*words)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError:  # a path both a file and a folder: no device has such
        return


def _told(parts: dict[str, bytes], store: Path, no_ferryman: str) -> Told:
    return Told(
        machine=_word(parts, "machine"),
        kernel=_word(parts, "kernel") or "unknown",
        userland_bits=_bits(parts),
        libc=_libc(parts),
        python=_word(parts, "python") or Unavailable(reason="no python3 on its PATH"),
        ferryman=Unavailable(reason=no_ferryman),
        kernels=Unavailable(reason="ferryman is not there"),
        operators=Unavailable(reason="ferryman is not there"),
        interpreters=(),
        root=str(store),
        free_bytes=_free_bytes(parts),
        root_writable=_word(parts, "writable") == "yes",
        clock_synchronized=_synchronized(parts),
    )


def _word(parts: dict[str, bytes], name: str) -> str:
    """The first line of an answer; empty: there was none."""
    lines = parts.get(name, b"").decode(errors="replace").strip().splitlines()
    return "".join(c if c.isprintable() else "?" for c in lines[0])[:_TEXT_MAX_CHARS] if lines else ""


def _bits(parts: dict[str, bytes]) -> int | Unavailable:
    word, abi = _word(parts, "bits"), _word(parts, "abi")
    if word in {"32", "64"}:
        return int(word)
    if abi:
        return 64 if "64" in abi else 32
    return Unavailable(reason="no getconf there")


def _libc(parts: dict[str, bytes]) -> str | Unavailable:
    if found := _word(parts, "libc"):
        return found
    if _word(parts, "sdk"):
        return "bionic"
    return "musl" if _word(parts, "musl") else Unavailable(reason="no getconf there, and no musl")


def _free_bytes(parts: dict[str, bytes]) -> int | Unavailable:
    lines = parts.get("disk", b"").decode(errors="replace").strip().splitlines()
    words = lines[-1].split() if len(lines) > 1 else []
    if len(words) >= _DF_COLUMNS and (free := whole(words[3])) is not None and free <= _STORAGE_MAX_KIB:
        return free * _KIB
    return Unavailable(reason="df does not tell")


def _synchronized(parts: dict[str, bytes]) -> bool | Unavailable:
    """As systemd or chrony say; a shell cannot call adjtimex."""
    systemd, chrony = _word(parts, "synchronized"), _word(parts, "chrony")
    if systemd in {"yes", "no"}:
        return systemd == "yes" or chrony == "Normal"
    return chrony == "Normal" if chrony else Unavailable(reason="neither timedatectl nor chronyc tells")


def _without(facts: DeviceFacts, folder: str) -> DeviceFacts:
    """With reasons that speak of the device's files, not of the folder they were laid out in."""
    from msgspec import json  # every text at once

    return json.decode(json.encode(facts).replace(folder.encode(), b""), type=DeviceFacts)


def _with_reasons(facts: DeviceFacts, parts: dict[str, bytes]) -> DeviceFacts:
    """Sensors with what keeps them from being read through a shell."""
    from msgspec.structs import replace

    closed = [name.removeprefix("closed:") for name in parts if name.startswith("closed:/")]
    user = _word(parts, "user") or "this user"
    sensors = []
    for sensor in facts.sensors:
        more = ""
        if sensor.name == "pi_pmic" and _word(parts, "vcio"):
            more = "; /dev/vcio is there, and only ferryman on the device can ask it"
        elif sensor.name == "rapl" and any("/powercap/" in path for path in closed):
            more = f"; its counters are there, and closed to {user}"
        sensors.append(sensor if sensor.available or not more else _told_more(sensor, more))
    return replace(facts, sensors=tuple(sensors))


def _told_more(sensor: Sensor, more: str) -> Sensor:
    return Sensor(name=sensor.name, measures=sensor.measures, available=False, detail=sensor.detail + more)


def _with_android(facts: DeviceFacts, parts: dict[str, bytes]) -> DeviceFacts:
    """With what Android says of itself by properties instead of files."""
    from msgspec.structs import replace

    if not (sdk := _word(parts, "sdk")):
        return facts
    model, maker = _word(parts, "model"), _word(parts, "maker")
    name = model if model.lower().startswith(maker.lower()) else f"{maker} {model}"
    return replace(
        facts,
        os=f"Android {_word(parts, 'release')} (API {sdk})",
        model=name.strip() or facts.model,
        soc=_word(parts, "soc") or facts.soc,
    )

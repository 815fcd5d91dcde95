"""The two slots of a phone, as `ferryman.runtime.slots` has them on other devices: same folders, same state.

ROOT/state.json         SlotState, replaced by one rename
ROOT/slots/a, slots/b   manifest.json and the payloads under their manifest paths
ROOT/incoming/TOKEN     what is on its way; of the holder of the lock, anything else there is dead
ROOT/runner/HASH        the native runner, a folder a version
"""

from __future__ import annotations

import hashlib
import re
import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ferryman.devices.fleet.phone.lock import Lock
from ferryman.devices.fleet.phone.phone import Phone
from ferryman.devices.transport.base import Progress
from ferryman.runtime.contracts.errors import CallerError, DeviceError, PackageError
from ferryman.runtime.contracts.manifest import Manifest
from ferryman.runtime.contracts.record import decode, encode
from ferryman.runtime.contracts.slot import Slot, SlotName, SlotState
from ferryman.runtime.package import MANIFEST, read_manifest

VERIFY_S = 600.0
"""For hashing what a slot holds."""
_STATE_SCHEMA = 1
_HASHED = re.compile(r"([0-9a-f]{64})  \./(.+)")
_KIB = 1024


class PhoneStore:
    """Changes want the lock, which its maker holds."""

    def __init__(self, phone: Phone, lock: Lock) -> None:
        self.phone, self.lock = phone, lock
        self.incoming = f"incoming/{lock.token}"
        """Relative to the root; of this holder of the lock."""

    def open(self) -> None:
        """Make room for what comes, and sweep up what dead ones left."""
        self.lock.do(f'rm -rf "$R"/incoming/* "$R"/lock.* && mkdir -p "$R/{self.incoming}"')

    def close(self) -> None:
        """Leave nothing that is on its way."""
        self.lock.do(f'rm -rf "$R/{self.incoming}"')

    def read_state(self) -> SlotState:
        """See `read_state`."""
        return read_state(self.phone)

    def write_state(self, state: SlotState) -> None:
        """Replace the state in one step; what was written before is on the storage by then."""
        with tempfile.TemporaryDirectory() as folder:
            new = Path(folder) / "state.json"
            new.write_bytes(encode(state))
            self.phone.put(new, f"{self.incoming}/state.json")
        self.lock.do(f'sync; mv -f "$R/{self.incoming}/state.json" "$R/state.json" && sync')

    def clear(self, name: SlotName) -> None:
        """Remove a slot that the state does not name."""
        self.lock.do(f'rm -rf "$R/slots/{name}"')

    def fill(self, name: SlotName, source: Path, files: Mapping[str, int], progress: Progress) -> None:
        """Upload files of a folder, and make them the slot, which was cleared, by one rename.

        Args:
            name: of the slot.
            source: folder here.
            files: path within it -> bytes.
            progress: told of all together.
        """
        self.upload(source, files, "slot", progress)
        self.lock.do(f'mv "$R/{self.incoming}/slot" "$R/slots/{name}" && sync')

    def upload(self, source: Path, files: Mapping[str, int], into: str, progress: Progress) -> None:
        """Upload files of a folder to one of what is incoming."""
        folders = sorted({f"{into}/{path}".rpartition("/")[0] for path in files})
        made = " ".join(f'"$R"/{shlex.quote(f"{self.incoming}/{folder}")}' for folder in folders)
        self.lock.do(f"mkdir -p {made}")
        total, done = sum(files.values()), 0

        def so_far(sent: int, _: int) -> None:
            progress(done + sent, total)

        for path, size in files.items():
            self.phone.put(source / path, f"{self.incoming}/{into}/{path}", so_far)
            done += size

    def hashes(self, folder: str) -> dict[str, str]:
        """SHA-256 of every plain file below a folder of the root, computed on the phone; none where it is not there."""
        printed = self.phone.do(
            f'if cd "$R/{folder}" 2>/dev/null; then find . -type f -exec sha256sum {{}} +; fi', timeout_s=VERIFY_S
        )
        found = {}
        for line in printed.splitlines():
            read = _HASHED.fullmatch(line)
            if read is None:
                raise DeviceError(f"{self.phone.name}: expected hashes of files, found {line[:120]!r}")
            found[read[2]] = read[1]
        return found

    def verify(self, slot: Slot) -> Manifest:
        """Read a slot back and compare every hash; the manifest of what it holds.

        Raises:
            DeviceError: a file is missing, is not what was installed, or was added.
        """
        where = f"{self.phone.name}: slot {slot.name} ({slot.package_name})"
        found = self.hashes(f"slots/{slot.name}")
        if found.get(MANIFEST) != slot.manifest_sha256:
            raise DeviceError(f"{where}: {MANIFEST} is missing or not what was installed; push the package again")
        text = self.phone.do(f'cat "$R/slots/{slot.name}/{MANIFEST}"').encode()
        if hashlib.sha256(text).hexdigest() != slot.manifest_sha256:
            raise DeviceError(f"{where}: {MANIFEST} was changed while it was read; push the package again")
        try:
            manifest = read_manifest(text).only(slot.variants)
        except (CallerError, PackageError) as error:
            raise DeviceError(f"{where}: {error}; push the package again") from error
        expected = {payload.path: payload.sha256 for payload in manifest.payloads}
        wrong = {path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path)} - {MANIFEST}
        if wrong:
            raise DeviceError(f"{where}: {min(wrong)!r} is missing or not what was installed; push the package again")
        return manifest

    def intact(self, slot: Slot | None) -> bool:
        """Whether there is such a slot, and its files are what they should be."""
        if slot is None:
            return False
        try:
            self.verify(slot)
        except DeviceError:
            return False
        return True

    def check_space(self, target: SlotName, need_bytes: int) -> None:
        """See that there is room, counting what clearing the target slot sets free.

        Raises:
            DeviceError: there is not.
        """
        said = self.phone.do(f'df -kP "$R" | tail -n 1; du -sk "$R/slots/{target}" 2>/dev/null; true')
        free = parse_free(said)
        if free is None:
            raise DeviceError(
                f"{self.phone.name}: df does not tell the free space of {self.phone.root}: {said[:120]!r}"
            )
        if free < need_bytes:
            raise DeviceError(
                f"{self.phone.name}: {self.phone.root} needs {need_bytes:,} bytes free, found {free:,}; make room on "
                "the phone"
            )


def read_state(phone: Phone) -> SlotState:
    """Which slots count; a phone nobody pushed to has none.

    Raises:
        DeviceError: someone else changed it, or it is of a later version.
    """
    text = phone.do('if [ -e "$R/state.json" ]; then cat "$R/state.json"; fi')
    if not text:
        return SlotState()
    where = f"{phone.name}: {phone.root}/state.json"
    try:
        state = decode(text.encode(), SlotState)
    except ValueError as error:
        raise DeviceError(f"{where} is not a slot state ({error}); remove it, and push the package again") from error
    if state.schema != _STATE_SCHEMA:
        raise DeviceError(f"{where} has schema {state.schema}, this ferryman knows {_STATE_SCHEMA}; update ferryman")
    if state.active and state.previous and state.active.name == state.previous.name:
        raise DeviceError(f"{where} names slot {state.active.name} twice; remove it, and push the package again")
    return state


def parse_free(said: str) -> int | None:
    """Bytes, of a line of `df -kP` and one of `du -sk` that are free or will be; None: they do not tell."""
    lines = said.splitlines()
    if not lines:
        return None
    words = lines[0].split()
    shares = [index for index, word in enumerate(words) if re.fullmatch(r"\d{1,3}%", word, re.ASCII)]
    if not shares or shares[0] == 0 or not re.fullmatch(r"\d{1,15}", words[shares[0] - 1], re.ASCII):
        return None
    held = re.match(r"(\d{1,15})\s", lines[1], re.ASCII) if len(lines) > 1 else None
    return _KIB * (int(words[shares[0] - 1]) + (int(held[1]) if held else 0))

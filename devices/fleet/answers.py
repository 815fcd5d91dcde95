"""What was measured before, on disk: one file a question, never changed once it has its name.

    KEY.json        the SHA-256 of what follows in hex, a newline, the Measurement
    .KEY.RANDOM     being written

KEY is a hash of the whole question. Whatever goes wrong here costs time, and is logged; it is no error.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import time
from pathlib import Path

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.measurement import Measurement, ProfileSpec
from ferryman.runtime.contracts.record import Record, decode, encode

log = logging.getLogger(__name__)

MAX_BYTES = 256 << 20
_STALE_S = 3600.0
_LAYOUT = 1
"""Of keys and files; another finds nothing of what was before."""


class Question(Record):
    """Everything that an answer depends on."""

    package_sha256: str
    device: str
    variant: str
    interpreter: str
    interpreter_version: str
    spec: ProfileSpec
    """With no `timeout_s`, which moves no number."""
    standing: dict[str, str]
    """See `ferryman.profiler.standing`."""
    layout: int = _LAYOUT

    @property
    def key(self) -> str:
        """A name for it."""
        return hashlib.sha256(encode(self)).hexdigest()


def cache_home() -> Path:
    """Where ferryman keeps what it can make again: `ferryman` in $XDG_CACHE_HOME or ~/.cache.

    Raises:
        CallerError: there is no home.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "ferryman"
    except RuntimeError as error:
        raise CallerError(f"no folder for a cache: {error}; set XDG_CACHE_HOME") from error


class Answers:
    """A folder of measurements; safe to use from several threads and processes."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        """Name a folder; it is made with the first answer."""
        self.folder = folder
        self._max_bytes = max_bytes

    def find(self, question: Question) -> Measurement | None:
        """What was answered; None: nothing, or it is damaged, and then it is removed."""
        path = self._path(question)
        try:
            data = path.read_bytes()
            found = _read(data)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("%s is damaged and is measured again: %s", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # those not used for longest go first
        return found

    def keep(self, question: Question, answer: Measurement) -> None:
        """Put an answer on disk, whole or not at all."""
        path = self._path(question)
        partial = path.with_name(f".{question.key}.{secrets.token_hex(8)}")
        body = encode(answer)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("xb") as file:
                    file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
            self._make_room()
        except OSError as error:
            log.warning("a measurement is not kept in %s: %s", self.folder, error)

    def _path(self, question: Question) -> Path:
        return self.folder / f"{question.key}.json"

    def _make_room(self) -> None:
        """Remove what dead writers left, and of too much the answers not used for longest."""
        used, found = 0, []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):  # another process was here first
                status = entry.stat(follow_symlinks=False)
                if entry.name.endswith(".json"):
                    used += status.st_size
                    found.append((status.st_mtime_ns, status.st_size, entry.path))
                elif entry.name.startswith(".") and abs(time.time() - status.st_mtime) > _STALE_S:
                    Path(entry.path).unlink()
        for _, size, path in sorted(found)[:-1]:  # never the one that has just come
            if used <= self._max_bytes:
                break
            Path(path).unlink(missing_ok=True)
            used -= size


def _read(data: bytes) -> Measurement:
    checksum, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise ValueError("its checksum is another")
    return decode(body, Measurement)

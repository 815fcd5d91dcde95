"""What a device believes: The Update Framework's client over this device's link, its clock and its disk.

ROOT/trust/root.json       the root it was provisioned with; every later root must be signed by the one before it
ROOT/trust/metadata/       what was verified last: nothing older is taken again, over restarts and power cuts
ROOT/trust/signed_at.json  the newest time anybody signed at: no clock of this device is believed to be before it
ROOT/trust/releases/       the newest few releases that were fetched, read only where they are what is signed
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from tuf.api import exceptions as tuf
from tuf.api.metadata import Root, TargetFile, Timestamp
from tuf.ngclient import FetcherInterface, Updater

from ferryman.devices.agent.update.exchange import NotFound
from ferryman.devices.agent.update.http import Http
from ferryman.runtime.contracts.errors import (
    DeviceError,
    FerrymanError,
    LinkError,
    PackageError,
    RepositoryError,
    TrustError,
)
from ferryman.runtime.contracts.record import Record, decode, encode
from ferryman.runtime.contracts.release import (
    RELEASE_MAX_BYTES,
    SCHEMA,
    SIGNED_AT,
    Recipe,
    Release,
    check_family,
    pack_path,
    target_path,
)
from ferryman.runtime.durable import write_durable
from ferryman.runtime.package import LIMITS, MANIFEST

_RELEASES_KEPT = 4
_SECOND_MAX = 253_402_300_799
"""The last one of the year 9999."""
_OFF_S = 86_400
"""Clocks that differ by less may both be right enough."""
_PACK_MAX_BYTES = 1 << 50
_STORED_OVER_BYTES = 1 << 20
"""Nobody publishes a way to a payload that takes more bytes than it has, but for what little a piece costs."""


class SignedAt(Record):
    """The newest signed time, and the keys it was signed by: new keys begin anew, so stolen ones poison no clock."""

    second: int
    keys: tuple[str, ...]


class Trust:
    """A device's view of one repository, refreshed once."""

    def __init__(self, root: Path, http: Http, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._folder = root / "trust"
        self._http = http
        self._now = now
        self._updater: _Updater | None = None

    def release(self, name: str) -> Release:
        """The release `family/version`, as its family's keys signed it.

        Raises:
            TrustError: metadata or release are not what the signatures vouch for, too old, or expired.
            RepositoryError: there is no such release, or the server's answer is final.
            LinkError: the link broke; the next try goes on.
            CallerError: `name` is none; or cancelled.
            DeviceError: this device was not provisioned, its disk refused, or the budget is used up.
        """
        path = target_path(name)
        with self._plainly():
            target = self._fresh().get_targetinfo(path)
            if target is None:
                family = name.partition("/")[0]
                raise RepositoryError(f"there is no release {name}; of {family} there are: {self._list(family)}")
            data = self._target(target)
        return read_release(data, name)

    def release_bytes(self, name: str) -> int:
        """What fetching the release would cost, its heads apart; 0: it is at hand.

        Raises: as `release`.
        """
        with self._plainly():
            target = self._fresh().get_targetinfo(target_path(name))
        if target is None:
            raise RepositoryError(f"there is no release {name} any more")
        return 0 if self._kept(target) else target.length

    def names(self, family: str) -> list[str]:
        """Releases of a family, by version: runs of digits count as numbers; the newest last.

        Raises: as `release`.
        """
        check_family(family)
        with self._plainly():
            return self._fresh().names(family)

    def newest(self, family: str) -> str:
        """The last of them.

        Raises: as `release`.
        """
        names = self.names(family)
        if not names:
            raise RepositoryError(f"there is no release of {family}; publish one, or see the family's name")
        return names[-1]

    def _list(self, family: str) -> str:
        return ", ".join(self._fresh().names(family)[-10:]) or "none"

    def _fresh(self) -> _Updater:
        """The metadata, refreshed and checked."""
        if self._updater is None:
            try:
                provisioned = (self._folder / "root.json").read_bytes()
            except OSError as error:
                raise DeviceError(
                    f"{self._folder / 'root.json'}: {error.strerror}; provision this device with the repository's root "
                    "(ferryman keys root)"
                ) from error
            metadata = self._folder / "metadata"
            _make_folder(metadata)
            self._updater = _Updater(metadata, self._http, provisioned, self._now)
            self._updater.refresh()
        return self._updater

    def _target(self, target: TargetFile) -> bytes:
        """A release's bytes, from the disk or the link, verified."""
        if kept := self._kept(target):
            return kept
        if target.length > RELEASE_MAX_BYTES:
            raise RepositoryError(f"{target.path} has {target.length} bytes, more than {RELEASE_MAX_BYTES}")
        path = target.get_prefixed_paths()[0]
        try:
            data = self._http.read(self._http.url(f"targets/{path}"), 0, target.length, target.length)
        except NotFound as error:
            raise RepositoryError(f"{error}: it is signed, and its file is missing") from error
        target.verify_length_and_hashes(data)
        folder = self._folder / "releases"
        _make_folder(folder)
        write_durable(folder / _file_of(target), data)
        kept_files = sorted(folder.glob("*.json"), key=lambda one: one.stat().st_mtime_ns)
        for old in kept_files[:-_RELEASES_KEPT]:
            old.unlink(missing_ok=True)
        return data

    def _kept(self, target: TargetFile) -> bytes:
        with contextlib.suppress(OSError, tuf.RepositoryError):
            data = (self._folder / "releases" / _file_of(target)).read_bytes()
            target.verify_length_and_hashes(data)
            return data
        return b""

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        """Say whose fault it looks like, and what to do."""
        try:
            yield
        except FerrymanError:
            raise
        except tuf.ExpiredMetadataError as error:
            raise TrustError(self._expired(str(error))) from error
        except tuf.BadVersionNumberError as error:
            raise TrustError(
                f"the repository shows older metadata than this device has seen, or versions that do not belong "
                f"together ({error}): a rollback or mix-and-match attack, or a stale copy is served; nothing of it is "
                "used; see what the server, or a cache before it, serves"
            ) from error
        except (tuf.UnsignedMetadataError, tuf.DownloadLengthMismatchError, tuf.LengthOrHashMismatchError) as error:
            raise TrustError(f"{_likely(error)}; nothing of it is used ({error})") from error
        except tuf.DownloadHTTPError as error:
            raise RepositoryError(str(error)) from error
        except tuf.DownloadError as error:
            raise LinkError(f"metadata did not come: {error.__cause__ or error}") from error
        except OSError as error:
            raise DeviceError(f"{self._folder} cannot be written or read: {error}; put that right") from error
        except Exception as error:
            raise TrustError(
                f"the metadata is malformed, or not what its place says ({error}): damaged, or made by somebody who "
                "has no keys; nothing of it is used"
            ) from error

    def _expired(self, what: str) -> str:
        now, server, signed = self._now(), self._server_time(), self._updater.signed_at() if self._updater else None
        said = f"{what}; this device's clock says {now:%Y-%m-%d %H:%M} UTC"
        if signed is not None:
            said += f", the newest signature was made at {datetime.fromtimestamp(signed, UTC):%Y-%m-%d %H:%M}"
        if server is not None:
            said += f", the server's clock says {server:%Y-%m-%d %H:%M}"
            if (now - server).total_seconds() > _OFF_S:
                return f"{said}: this device's clock is ahead, most likely; set it, and try again"
        return (
            f"{said}: nobody has signed it again in time (ferryman keys refresh), or newer metadata is held back (a "
            "freeze attack), or this device's clock is ahead; nothing of it is used"
        )

    def _server_time(self) -> datetime | None:
        with contextlib.suppress(TypeError, ValueError):
            if self._http.server_date:
                return parsedate_to_datetime(self._http.server_date).astimezone(UTC)
        return None


class _Updater(Updater):
    """python-tuf's client, with this device's clock and writes that survive a power cut.

    What it overrides is private there; tests hold that it is called.
    """

    def __init__(self, folder: Path, http: Http, provisioned: bytes, now: Callable[[], datetime]) -> None:
        self._signed_at = folder.parent / "signed_at.json"
        self._clock = now
        super().__init__(str(folder), http.url("metadata/"), fetcher=_Fetcher(http), bootstrap=provisioned)

    def names(self, family: str) -> list[str]:
        """What a family has signed, the newest last."""
        self.get_targetinfo(target_path(f"{family}/0"))  # loads the family's role
        role = self._trusted_set.get(family)
        paths = getattr(role, "targets", {})
        found = [path.removesuffix(".json") for path in paths if path.startswith(f"{family}/")]
        return sorted(found, key=_by_version)

    def signed_at(self) -> int | None:
        """When the newest verified timestamp was signed; None: there is none, or it does not say."""
        timestamp = self._trusted_set.get(Timestamp.type)
        now = _second(timestamp) if isinstance(timestamp, Timestamp) else None
        return now or self._seen(self._keys()) or None

    def _load_timestamp(self) -> None:
        """Check against the later of this device's clock and the newest signed time."""
        trusted = self._trusted_set
        keys = self._keys()
        seen = self._seen(keys)
        trusted.reference_time = max(self._clock(), datetime.fromtimestamp(seen, UTC))
        super()._load_timestamp()
        signed = _second(trusted.timestamp)
        if signed is None:
            return
        if signed < seen:
            raise tuf.BadVersionNumberError(f"timestamp.json was signed at {signed}, and one of {seen} was seen")
        trusted.reference_time = max(trusted.reference_time, datetime.fromtimestamp(signed, UTC))
        if trusted.root.is_expired(trusted.reference_time):
            raise tuf.ExpiredMetadataError(f"{Root.type}.json is expired")
        if signed > seen:
            write_durable(self._signed_at, encode(SignedAt(second=signed, keys=keys)))

    def _keys(self) -> tuple[str, ...]:
        return tuple(sorted(self._trusted_set.root.roles[Timestamp.type].keyids))

    def _seen(self, keys: tuple[str, ...]) -> int:
        """The newest time that these keys signed at; a damaged record counts as none."""
        with contextlib.suppress(OSError, ValueError):
            found = decode(self._signed_at.read_bytes(), SignedAt)
            if found.keys == keys and 0 <= found.second <= _SECOND_MAX:
                return found.second
        return 0

    def _persist_file(self, filename: str, data: bytes) -> None:
        path = Path(filename)
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:
                return
        write_durable(path, data)

    def _update_root_symlink(self) -> None:
        """Nothing reads it: this device always begins with the root it was provisioned with."""


class _Fetcher(FetcherInterface):
    def __init__(self, http: Http) -> None:
        self._http = http

    def _fetch(self, url: str) -> Generator[bytes]:
        try:
            yield from self._http.stream(url)
        except NotFound as error:
            raise tuf.DownloadHTTPError(str(error), error.status) from error

    def download_bytes(self, url: str, max_length: int) -> bytes:
        """As tuf's own, which leaves an answer that is too long open for as long as anybody keeps the error."""
        read = bytearray()
        with contextlib.closing(self._fetch(url)) as blocks:
            for block in blocks:
                read += block
                if len(read) > max_length:
                    raise tuf.DownloadLengthMismatchError(f"{url} goes on after the {max_length} bytes it may have")
        return bytes(read)


def read_release(data: bytes, name: str) -> Release:
    """Read a release whose bytes were verified.

    Raises:
        RepositoryError: it is none, of another schema, of another name, or impossible; its publisher is at fault.
    """
    try:
        release = decode(data, Release)
        if release.schema != SCHEMA:
            raise RepositoryError(
                f"release {name} has schema {release.schema}, this ferryman knows {SCHEMA}; update ferryman here"
            )
        if release.name != name:
            raise RepositoryError(f"what is signed as {name} says it is {release.name[:130]}; publish it again")
        _check(release)
    except (ValueError, PackageError) as error:
        raise RepositoryError(f"release {name} is signed and no release: {error}; publish it again") from error
    return release


def _check(release: Release) -> None:
    payloads = release.payloads
    if not payloads or payloads[0].path != MANIFEST or len(payloads) > LIMITS.payloads_max + 1:
        raise ValueError(f"{MANIFEST} does not come first, or there are more than {LIMITS.payloads_max} payloads")
    if payloads[0].size_bytes > LIMITS.manifest_max_bytes:
        raise ValueError(f"a manifest of {payloads[0].size_bytes} bytes is more than {LIMITS.manifest_max_bytes}")
    if not 0 < sum(payload.size_bytes for payload in payloads) <= LIMITS.package_max_bytes:
        raise ValueError(f"its payloads are larger than {LIMITS.package_max_bytes} bytes")
    paths = set()
    for payload in payloads:
        if payload.path in paths:
            raise ValueError(f"{payload.path[:80]!r} is listed twice")
        paths.add(payload.path)
        if payload.size_bytes < 0 or not payload.recipes or payload.recipes[0].base is not None:
            raise ValueError(f"{payload.path[:80]!r} has no size, or no recipe without base")
        pack_path(payload.sha256)
        bases = [recipe.base for recipe in payload.recipes]
        if len(bases) != len({*bases}):
            raise ValueError(f"{payload.path[:80]!r} has two recipes from one base")
        for recipe in payload.recipes:
            _check_recipe(recipe, payload.size_bytes)
    pack_path(release.package_sha256)


def _check_recipe(recipe: Recipe, size_bytes: int) -> None:
    pack_path(recipe.index.pack)
    pack_path(recipe.index.sha256)
    if recipe.base is not None:
        pack_path(recipe.base)
    if not (
        0 <= recipe.index.offset <= _PACK_MAX_BYTES
        and 0 < recipe.index.length <= RELEASE_MAX_BYTES
        and 0 <= recipe.stored_bytes <= size_bytes + _STORED_OVER_BYTES
    ):
        raise ValueError("an index or its pieces have an impossible size")


def _likely(error: Exception) -> str:
    if isinstance(error, tuf.UnsignedMetadataError):
        return "metadata lacks signatures that it must have: made by somebody without the keys, or with revoked ones"
    if isinstance(error, tuf.DownloadLengthMismatchError):
        return "metadata goes on after its end (endless data): an attack, or something else answers for the server"
    return "a file does not have the hash that is signed: damaged, swapped or mixed with another version"


def _second(timestamp: Timestamp) -> int | None:
    """When it was signed; a time after its own end is none."""
    value = timestamp.unrecognized_fields.get(SIGNED_AT)
    if type(value) is int and 0 <= value <= min(_SECOND_MAX, timestamp.expires.timestamp()):
        return value
    return None


def _by_version(name: str) -> tuple[tuple[int, int, str], ...]:
    parts = re.findall(r"\d+|\D+", name.partition("/")[2])
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts)


def _file_of(target: TargetFile) -> str:
    """A name for it on this disk, whatever its signer wrote."""
    return hashlib.sha256(f"{target.path} {sorted(target.hashes.items())}".encode()).hexdigest() + ".json"


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DeviceError(f"cannot make {path}: {error.strerror}; put that right") from error

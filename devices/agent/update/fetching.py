"""One package's download: decide how each payload comes, see that it may be paid for, bring it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ferryman.devices.agent.update.budget import DataBudget
from ferryman.devices.agent.update.http import Http
from ferryman.devices.agent.update.local import Held, Indices, chunks_of, held_files
from ferryman.devices.agent.update.planner import REQUEST_BYTES, Known, Way, disk_bytes, index_runs, ways_to
from ferryman.devices.agent.update.stage import Download, Passing, PieceError, Writer, runs
from ferryman.devices.agent.update.trust import Trust
from ferryman.runtime.contracts.errors import BudgetError, DeviceError, PackageError, RepositoryError, TrustError
from ferryman.runtime.contracts.release import Recipe, Release, ReleasePayload, pack_path
from ferryman.runtime.pieces.index import read_index
from ferryman.runtime.slots import SlotStore, disk_errors

_WORTH = 8
"""To learn what is in a slot is tried where it costs so many times less than what it may save."""
_WORTH_BYTES = 1 << 16
_SLACK_BYTES = 1 << 20
"""Of the disk, for records and folders."""


class Fetching:
    """Brings payloads of one release."""

    def __init__(
        self,
        store: SlotStore,
        http: Http,
        trust: Trust,
        budget: DataBudget,
        release: Release,
        progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.release = release
        self.download = Download(store.root, release.package_sha256)
        self.notes: list[str] = []
        """What did not work, and what was done instead."""
        self._store = store
        self._http = http
        self._trust = trust
        self._budget = budget
        self._progress = progress
        self._indices = Indices(store.root)
        self._held = held_files(store)
        self._chunks = chunks_of(self._held, self._indices.of(self._held.values()))
        self._failed: set[tuple[str, str]] = set()
        self._learned = False

    def plan(self, payloads: Sequence[ReleasePayload]) -> list[Way]:
        """How each payload comes; fetches the indices it takes to know.

        Raises:
            BudgetError: it would cost more than may be spent; the message says how much it takes.
            PackageError: nothing published makes a payload here.
            and as `Http.stream`.
        """
        while True:
            ways = self._ways(payloads)
            if self._learn(ways):
                continue
            groups = index_runs(ways)
            if not groups:
                self._afford(sum(way.wire_bytes for way in ways))
                return ways
            for group in groups:
                self._fetch_indices(group)

    def bring(self, ways: Sequence[Way]) -> None:
        """Stage payloads.

        Raises:
            DeviceError: no room, or the disk failed; what is staged stays.
            TrustError: bytes are not what is signed.
            and as `plan`.
        """
        self._check_room(ways)
        with disk_errors(self._store):
            for way in ways:
                self._bring(way)
            self.download.sync()

    def read(self, payload: ReleasePayload) -> bytes:
        """A small staged payload.

        Raises:
            DeviceError: it was changed meanwhile.
        """
        with disk_errors(self._store), self.download.opened(payload.path) as descriptor:
            data = b"" if descriptor is None else os.pread(descriptor, payload.size_bytes + 1, 0)
        if hashlib.sha256(data).hexdigest() != payload.sha256:
            raise DeviceError(f"{self.download.directory / payload.path} was changed by somebody; try again")
        return data

    def prune(self) -> None:
        """Forget indices of what is neither in a slot nor in this release."""
        self._indices.prune([*self._held, *(payload.sha256 for payload in self.release.payloads)])

    def _ways(self, payloads: Sequence[ReleasePayload]) -> list[Way]:
        known = Known(
            held=self._held,
            chunks=self._chunks,
            index=self._indices.get,
            lacking=self.download.lacking,
            complete=self.download.complete,
            failed=frozenset(self._failed),
        )
        with disk_errors(self._store):
            return ways_to(payloads, known, self._staged)

    def _staged(self, payload: ReleasePayload) -> Held:
        return Held(self.download.directory / payload.path, payload.size_bytes, payload.sha256, None)

    def _afford(self, wire_bytes: int) -> None:
        if not wire_bytes:
            return
        try:
            self._budget.check(wire_bytes, f"release {self.release.name}")
        except BudgetError as error:
            if not self.notes:
                raise
            raise type(error)(f"{error}; before that: {'; '.join(self.notes)}") from error

    def _check_room(self, ways: Iterable[Way]) -> None:
        with disk_errors(self._store):
            need = disk_bytes(ways, self.download.staged_bytes)
            disk = os.statvfs(self._store.root)
        free = disk.f_bavail * disk.f_frsize
        if need and need + _SLACK_BYTES > free:
            raise DeviceError(
                f"{self._store.root} needs {need + _SLACK_BYTES} bytes free for the download, found {free}; make room "
                "on the device"
            )

    def _learn(self, ways: Sequence[Way]) -> bool:
        """Fetch what the slots' payloads were published in, where that is little beside what they may spare."""
        cost = sum(way.wire_bytes for way in ways if way.kind == "chunks")
        if self._learned or cost < _WORTH_BYTES:
            return False
        self._learned = True
        known = {chunk.held.sha256 for chunk in self._chunks.values()}
        wanted = [one for one in self._held.values() if one.sha256 not in known and one.size_bytes >= _WORTH_BYTES]
        learned = False
        for name in sorted({one.release for one in wanted if one.release and one.release != self.release.name}):
            try:
                if (self._trust.release_bytes(name) + REQUEST_BYTES) * _WORTH > cost:
                    continue
                old = self._trust.release(name)
            except RepositoryError as error:
                self.notes.append(f"what {name} was published in cannot be told: {error}")
                continue
            its = {one.sha256 for one in wanted if one.release == name}
            unknown = [
                Way(payload, "chunks", 0, payload.recipes[0]) for payload in old.payloads if payload.sha256 in its
            ]
            if sum(_recipe(way).index.length + REQUEST_BYTES for way in unknown) * _WORTH <= cost:
                for group in index_runs(unknown):
                    self._fetch_indices(group)
                learned = True
        self._chunks = chunks_of(self._held, self._indices.of(self._held.values()))
        return learned

    def _fetch_indices(self, group: Sequence[Way]) -> None:
        """Fetch indices that lie side by side; one of a delta that cannot be read is a delta that is not there."""
        blobs = [_recipe(way).index for way in group]
        start, end = blobs[0].offset, blobs[-1].offset + blobs[-1].length
        self._afford(end - start + REQUEST_BYTES)
        url = self._http.url(pack_path(blobs[0].pack))
        blocks = self._http.stream(url, start, end - start)
        try:
            passing = Passing(blocks, start)
            for way, blob in zip(group, blobs, strict=True):
                data = passing.take(blob.offset, blob.length)
                try:
                    self._keep_index(way, data, url)
                except (PackageError, TrustError) as error:
                    self._give_up(way, error)
        finally:
            blocks.close()

    def _keep_index(self, way: Way, data: bytes, url: str) -> None:
        recipe = _recipe(way)
        if hashlib.sha256(data).hexdigest() != recipe.index.sha256:
            raise TrustError(
                f"{url}, {len(data)} bytes at {recipe.index.offset}: an index that is not the one that is signed; "
                "damaged on the server or on the way, or an attack; nothing of it is used"
            )
        read_index(data, recipe.index_bytes, way.payload.size_bytes, way.held.size_bytes if way.held else 0)
        self._indices.put(way.payload, recipe, data)

    def _give_up(self, way: Way, error: Exception) -> None:
        """Note that a way does not work, and let another be found; without one, that is the end.

        Raises:
            PackageError, TrustError, DeviceError: what went wrong.
        """
        if way.kind == "chunks":
            raise error
        self.notes.append(f"{way.payload.path}: {way.kind} from {way.held.path if way.held else ''} failed: {error}")
        base = way.payload.sha256 if way.kind == "same" else _recipe(way).base or ""
        self._failed.add((way.payload.sha256, base))

    def _bring(self, way: Way) -> None:
        while True:
            try:
                self._make(way)
            except (PieceError, TrustError, DeviceError) as error:
                if isinstance(error, BudgetError):
                    raise
                self._give_up(way, self._blamed(way, error))
            else:
                return
            (way,) = self.plan([way.payload])
            self._check_room([way])

    def _blamed(self, way: Way, error: Exception) -> Exception:
        """Whose fault it is that a piece does not verify: the base can be asked."""
        if not isinstance(error, PieceError) or way.held is None:
            return error
        if not way.held.intact():
            return DeviceError(f"{way.held.path} is damaged on this device ({error})")
        return TrustError(f"the base is intact, so its pieces are damaged on the server or on the way ({error})")

    def _make(self, way: Way) -> None:
        if way.kind == "same" and way.held is not None:
            if not way.held.intact():
                raise DeviceError(f"{way.held.path} is damaged on this device")
            try:
                self.download.link(way.payload, way.held)
            except OSError:
                self.download.copy(way.payload, way.held)
        elif way.kind != "staged":
            self._by_recipe(way)

    def _by_recipe(self, way: Way) -> None:
        index, payload = way.index, way.payload
        assert index is not None  # noqa: S101  # `plan` saw to it
        with self.download.opened(payload.path, write=True) as target:
            assert target is not None  # noqa: S101  # it was made
            writer = Writer(target, index, self._http, self._progress)
            try:
                writer.allocate(payload.size_bytes)
            except OSError:
                os.ftruncate(target, 0)
                raise
            left = writer.from_chunks(way.lacking, self._chunks)
            if writer.damaged:
                self._note_damaged(writer.damaged, payload)
                self._afford(sum(run.end - run.start + REQUEST_BYTES for run in runs(index, left)))
            if way.held is not None:
                with way.held.opened() as base:
                    writer.from_base(left, base)
                    for run in runs(index, left):
                        writer.from_wire(run, base)
            else:
                for run in runs(index, left):
                    writer.from_wire(run, None)
            writer.finish()
        if not self.download.complete(payload):
            raise PieceError(f"the pieces of {payload.path} hold, and the whole does not have the hash that is signed")
        self._chunks = {**chunks_of({payload.sha256: self._staged(payload)}, {payload.sha256: index}), **self._chunks}

    def _note_damaged(self, damaged: Iterable[Path], payload: ReleasePayload) -> None:
        names = ", ".join(sorted(map(str, damaged)))
        self.notes.append(f"{payload.path}: {names} is damaged on this device; its pieces are fetched instead")


def _recipe(way: Way) -> Recipe:
    assert way.recipe is not None  # noqa: S101  # of ways by recipes alone
    return way.recipe

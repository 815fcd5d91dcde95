"""A plain TUF client that reads a repository's folder, or a URL, at any time of day; it knows nothing of ferryman."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import Updater, UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface


class DiskFetcher(FetcherInterface):
    """Answers from a folder, as a static server would."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(unquote(url.removeprefix("file:")))
        if not path.is_file():
            raise DownloadHTTPError("not found", 404)
        yield path.read_bytes()


class TufClient:
    """One device's trust: its metadata folder lives on between refreshes."""

    def __init__(self, folder: Path, repository: Path, root: bytes) -> None:
        self.folder = folder
        self.repository = repository
        self.root: bytes | None = root
        folder.mkdir(parents=True)

    def updater(self, now: datetime | None = None) -> Updater:
        """Refreshed as of `now`."""
        base = f"file:{self.repository}"
        made = Updater(
            str(self.folder),
            f"{base}/metadata/",
            str(self.folder),
            f"{base}/targets/",
            DiskFetcher(),
            UpdaterConfig(),
            bootstrap=self.root,
        )
        self.root = None  # from now on it has its own
        if now is not None:
            made._trusted_set.reference_time = now
        made.refresh()
        return made

    def release(self, name: str, now: datetime | None = None) -> bytes | None:
        """What the repository holds of `family/version`."""
        updater = self.updater(now)
        found = updater.get_targetinfo(f"{name}.json")
        return None if found is None else Path(updater.download_target(found)).read_bytes()

"""What a device's owner decides about updates."""

from __future__ import annotations

from urllib.parse import urlsplit

from ferryman.runtime.contracts.errors import CallerError, LinkError
from ferryman.runtime.contracts.record import Record


class Cancelled(CallerError):
    """Whoever asked for an update asked to stop; what was fetched and verified is kept."""


class LaterError(LinkError):
    """The server asks to be left alone for a while; the next try goes on from what is verified."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(message)
        self.after_s = after_s
        """Wait so long; a part of it is by chance, or all of a fleet would come back at once."""


class UpdateConfig(Record):
    """Where updates come from, and what they may cost."""

    url: str
    """Of the repository: the folder that holds `metadata`, `targets` and `packs`."""
    proxy: str | None = None
    """URL of an HTTP proxy; empty: none; None: as the environment says (`http_proxy`, `https_proxy`, `no_proxy`)."""
    rate_bytes_s: int | None = None
    """Bandwidth cap; None: none."""
    update_max_bytes: int | None = None
    """What one update may cost on the wire, retries included; None: no matter."""
    day_max_bytes: int | None = None
    """What all of them may cost within 24 hours; None: no matter."""
    timeout_s: float = 20.0
    """For a connection, and for the next byte."""
    patience_s: float = 120.0
    """Without any progress, a fetch gives up after so long; it goes on from there the next time."""
    floor_bytes_s: int = 128
    """A slower link, over `timeout_s`, counts as a dead one."""


def check_config(config: UpdateConfig) -> UpdateConfig:
    """Return `config`.

    Raises:
        CallerError: nothing can be fetched with it.
    """
    for what, url in {"repository": config.url, "proxy": config.proxy or "http://none"}.items():
        try:
            parts = urlsplit(url)
            fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fine = False
        if not fine or (what == "repository" and (parts.query or parts.fragment)):
            raise CallerError(f"{what} {url!r}: expected a URL such as https://host/folder")
    for name in ("rate_bytes_s", "update_max_bytes", "day_max_bytes", "timeout_s", "patience_s"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise CallerError(f"{name} must be more than 0, found {value}")
    return config

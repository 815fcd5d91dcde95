"""Where the broker is, read from one URL."""

from __future__ import annotations

from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from ferryman.runtime.contracts.errors import CallerError
from ferryman.runtime.contracts.record import Record


class BrokerConfig(Record):
    """Where the broker is and how to be let in."""

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = None
    tls_ca: str | None = None
    """PEM file of the authority to trust; None: the system's."""
    tls_cert: str | None = None
    tls_key: str | None = None
    only_3_1_1: bool = False
    """Do not try MQTT 5: for a broker that stays silent instead of refusing it."""

    @property
    def address(self) -> str:
        """For people and logs: without the password."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"BrokerConfig({self.address})"


def parse_broker(url: str) -> BrokerConfig:
    """Read `mqtt[s]://[user[:password]@]host[:port][?ca=FILE&cert=FILE&key=FILE&version=3.1.1]`.

    Raises:
        CallerError: it is something else.
    """
    expected = "expected mqtt://[user:password@]host[:port] or mqtts://...?ca=FILE&cert=FILE&key=FILE"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise CallerError(f"broker: {expected}, found a URL that cannot be read ({error})") from error
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    tls = parts.scheme == "mqtts"
    if parts.scheme not in {"mqtt", "mqtts"} or not parts.hostname or parts.path.strip("/") or parts.fragment:
        raise CallerError(f"broker: {expected}, found scheme {parts.scheme!r} and host {parts.hostname!r}")
    known = {"version", "ca", "cert", "key"} if tls else {"version"}
    if set(options) - known or options.get("version", "3.1.1") != "3.1.1":
        raise CallerError(f"broker: {expected}, optionally version=3.1.1; found {', '.join(options)}")
    return BrokerConfig(
        host=parts.hostname,
        port=port or (8883 if tls else 1883),
        tls=tls,
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        tls_ca=options.get("ca"),
        tls_cert=options.get("cert"),
        tls_key=options.get("key"),
        only_3_1_1="version" in options,
    )


def without_password(url: str) -> str:
    """The URL for people and logs.

    Raises:
        CallerError: it is no broker's.
    """
    if parse_broker(url).password is None:
        return url
    parts = urlsplit(url)
    name, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{name.partition(':')[0]}:***@{place}"))

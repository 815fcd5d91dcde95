"""A whole authority, its mosquitto, and devices and hosts that it knows, in one folder."""

from __future__ import annotations

import datetime as dt
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from ferryman.devices import certificates, enrolment
from ferryman.devices.broker import BrokerConfig
from ferryman.devices.certificates import utc_now
from ferryman.devices.fleet.authority.authority import Authority, init
from ferryman.devices.fleet.authority.broker_files import BrokerOptions, refresh, write_broker, write_server
from ferryman.devices.identity import CURRENT, folder_of, of_file, write_secret
from tests.support.mosquitto import BINARY, free_port, wait_for_port
from tests.support.telemetry import until


@contextmanager
def realm_folder() -> Iterator[Path]:
    """A folder that mosquitto may reach, which is not root even where we are."""
    with tempfile.TemporaryDirectory(prefix="ferryman-realm-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Realm:
    """Use with `with`: mosquitto runs, from the configuration that `ferryman ca broker` writes."""

    def __init__(
        self,
        folder: Path,
        *,
        names: Sequence[str] = ("localhost", "127.0.0.1"),
        hosts: Mapping[str, Sequence[str]] | None = None,
        **options: object,
    ) -> None:
        """Make it all.

        Args:
            folder: mosquitto's user can read it (`realm_folder`).
            names: of the broker.
            hosts: name -> roles, made before the broker starts: what comes later takes a reload, and that is not free
                of danger with mosquitto 2.0.11 (docs/telemetry/security.md).
            options: of `BrokerOptions`.
        """
        if BINARY is None:
            pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
        self.folder = folder
        self.ports = free_port(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        init(folder / "ca", utc_now())
        self.authority = Authority(folder / "ca")
        self.broker_folder = folder / "broker"
        write_server(self.authority, self.broker_folder, names, utc_now())
        write_broker(
            self.authority,
            self.broker_folder,
            BrokerOptions(
                path=str(self.broker_folder),
                devices_port=self.ports[0],
                hosts_port=self.ports[1],
                bind="127.0.0.1",
                **options,
            ),
            utc_now(),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._hosts: dict[str, set[str]] = {}
        for name, roles in (hosts or {}).items():
            self.host(name, *roles)
        self.log = folder / "mosquitto.log"

    def root(self, device: str) -> Path:
        return self.folder / "devices" / device

    def enrolled(self, device: str, now: dt.datetime | None = None) -> BrokerConfig:
        """Enroll a device, by hand; how it reaches the broker."""
        root = self.root(device)
        csr = enrolment.request(root, device).csr.encode()
        enrolment.accept(root, self.authority.sign_device(csr, now or utc_now()))
        return self.device(device)

    def forged(self, device: str, when: dt.datetime) -> BrokerConfig:
        """An identity signed at another time, which `accept` would not take."""
        key = certificates.new_key()
        pem = self.authority.sign_device(certificates.make_request(key, device), when)
        path = self.folder / f"{device}-{when:%Y}.pem"
        write_secret(path, certificates.key_to_pem(key) + pem)
        return of_file(self.at(self.ports[0]), path)

    def device(self, device: str) -> BrokerConfig:
        return of_file(self.at(self.ports[0]), folder_of(self.root(device)) / CURRENT)

    def host(self, name: str, *roles: str) -> BrokerConfig:
        """Make a host's identity; how it reaches the broker."""
        path = self.folder / f"{name}.pem"
        if self._hosts.get(name) == set(roles):
            return of_file(self.at(self.ports[1]), path)
        self._hosts[name] = set(roles)
        path.write_bytes(self.authority.make_host(name, roles, utc_now()))
        path.chmod(0o600)
        self.refresh()
        return of_file(self.at(self.ports[1]), path)

    def at(self, port: int, host: str = "127.0.0.1") -> BrokerConfig:
        """Without any certificate."""
        return BrokerConfig(host=host, port=port, tls=True, tls_ca=str(self.folder / "ca" / "devices.pem"))

    def revoke(self, name: str) -> None:
        self.authority.revoke(name, utc_now())
        self.refresh()

    def refresh(self) -> None:
        """Write rules and lists, and have mosquitto read them."""
        refresh(self.authority, self.broker_folder, utc_now())
        if self._process is not None:
            before = self._reloads()
            self._process.send_signal(signal.SIGHUP)
            until(lambda: self._reloads() > before)

    def _reloads(self) -> int:
        return self.log.read_bytes().count(b"Reloading config.")

    def start(self, arguments: Sequence[str] = ("-v",)) -> None:
        command = [BINARY, "-c", str(self.broker_folder / "mosquitto.conf"), *arguments]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for port in self.ports:
                wait_for_port(port)
        except OSError as error:
            raise AssertionError(f"mosquitto did not start: {self.log.read_text()}") from error

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.authority.close()

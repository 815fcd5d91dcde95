from __future__ import annotations

import socket

import pytest

from ferryman.devices.fleet.host_key import offered
from ferryman.devices.fleet.inventory import SshDevice, connect
from ferryman.runtime.contracts.errors import LinkError


@pytest.fixture
def no_names(monkeypatch):
    def getaddrinfo(*_words, **_more):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize("reach", [connect, offered])
@pytest.mark.parametrize(("host", "hint"), [("Pi.local", "libnss-mdns"), ("pi.lan", "check power and network")])
def test_a_local_name_that_is_not_found_wants_a_resolver_for_them(no_names, reach, host, hint):
    with pytest.raises(LinkError, match=f"Name or service not known.*{hint}"):
        reach(SshDevice(name="pi", host=host, user="u"), timeout_s=5.0)

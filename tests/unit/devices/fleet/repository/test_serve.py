import contextlib
import http.client
import os
import socket
import threading
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.devices.fleet.repository import serve as serving_module
from ferryman.devices.fleet.repository.serve import RepositoryServer, _span
from ferryman.runtime.contracts.errors import CallerError
from tests.support.repository import serving

DATA = bytes(range(256)) * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("served") / "repository"
    for name in ("metadata", "targets/digits", "packs/ab", "keys", ".work"):
        (root / name).mkdir(parents=True)
    (root / "metadata" / "timestamp.json").write_bytes(b"{}")
    (root / "packs" / "ab" / "x.pack").write_bytes(DATA)
    (root / "packs" / "ab" / "empty.pack").write_bytes(b"")
    (root / "keys" / "secret.pem").write_bytes(b"secret")
    (root.parent / "secret").write_bytes(b"secret")
    (root / ".work" / "half").write_bytes(b"secret")
    (root / "lock").write_bytes(b"1")
    (root / "packs" / "ab" / "link.pack").symlink_to(root.parent / "secret")
    (root / "packs" / "out").symlink_to(root.parent)
    os.mkfifo(root / "packs" / "ab" / "pipe.pack")
    return root


@pytest.fixture(scope="module")
def address(folder):
    with serving(folder) as url:
        yield urlsplit(url).netloc


@pytest.fixture
def connection(address):
    made = http.client.HTTPConnection(address, timeout=60)
    yield made
    made.close()


def _ask(connection, path, method="GET", **headers):
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, response.read(), response.headers


def test_a_file_and_parts_of_it_on_one_connection(connection):
    path = "/packs/ab/x.pack"
    assert _ask(connection, path)[:2] == (200, DATA)
    sock = connection.sock
    status, body, headers = _ask(connection, path, Range="bytes=100-199")
    assert (status, body, headers["Content-Range"]) == (206, DATA[100:200], f"bytes 100-199/{len(DATA)}")
    assert _ask(connection, path, Range=f"bytes={len(DATA) - 5}-")[:2] == (206, DATA[-5:])
    assert _ask(connection, path, Range="bytes=-7")[:2] == (206, DATA[-7:])
    assert _ask(connection, path, Range="bytes=0-99999999")[:2] == (206, DATA)
    status, body, headers = _ask(connection, path, Range=f"bytes={len(DATA)}-")
    assert (status, body, headers["Content-Range"]) == (416, b"", f"bytes */{len(DATA)}")
    for ignored in ("bytes=0-1,5-6", "items=0-1", "bytes=-", "bytes=9-1", "nonsense"):
        assert _ask(connection, path, Range=ignored)[:2] == (200, DATA)
    assert _ask(connection, "/packs/ab/empty.pack")[:2] == (200, b"")
    assert _ask(connection, "/packs/ab/empty.pack", Range="bytes=0-")[0] == 416
    status, body, headers = _ask(connection, path, "HEAD")
    assert (status, body, headers["Content-Length"], headers["Accept-Ranges"]) == (200, b"", str(len(DATA)), "bytes")
    assert connection.sock is sock


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/packs",
        "/packs/",
        "/packs/ab",
        "/keys/secret.pem",
        "/lock",
        "/.work/half",
        "/packs/../keys/secret.pem",
        "/packs/ab/../../../secret",
        "/packs/%2e%2e/keys/secret.pem",
        "/packs/..%2fkeys/secret.pem",
        "/packs//ab/x.pack",
        "/packs/ab/x.pack/",
        "/packs/ab/x.pack?x=1",
        "/packs/ab/x.pack%00",
        "/packs\\ab\\x.pack",
        "/packs/ab/link.pack",
        "/packs/out/secret",
        "/packs/ab/pipe.pack",
        "/packs/ab/none.pack",
        "http://other/packs/ab/x.pack",
        "/metadata/../lock",
        "/targets/digits",
    ],
)
def test_nothing_else_is_served(connection, path):
    for method in ("GET", "HEAD"):
        status, body, _ = _ask(connection, path, method)
        assert (status, body) == (404, b"")


def test_other_methods_are_refused(address):
    for method in ("POST", "PUT", "DELETE"):
        made = http.client.HTTPConnection(address, timeout=60)
        made.request(method, "/packs/ab/x.pack", body=b"x")
        assert made.getresponse().status == 501
        made.close()


def test_a_body_is_not_read_as_the_next_request(address):
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as raw:
        smuggled = b"GET /packs/ab/x.pack HTTP/1.1\r\nHost: x\r\n\r\n"
        raw.sendall(b"GET /none HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(smuggled), smuggled))
        answer = b""
        while data := raw.recv(65536):
            answer += data
    assert answer.count(b"HTTP/1.1") == 1


def test_a_client_that_goes_away_or_says_nothing_costs_nobody_else(folder, address, monkeypatch, capfd):
    host, port = address.split(":")
    for data in (b"", b"GET /packs", b"\x16\x03\x01\xff\xff", b"GET /packs/ab/x.pack HTTP/1.1\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=60) as raw:
            raw.sendall(data)
    with monkeypatch.context() as patch, serving(folder) as url:
        patch.setattr(serving_module._Handler, "timeout", 0.1)
        silent = socket.create_connection(urlsplit(url).netloc.split(":"), timeout=60)
        assert silent.recv(10) == b""  # closed
        silent.close()
    made = http.client.HTTPConnection(address, timeout=60)
    assert _ask(made, "/packs/ab/x.pack")[0] == 200
    made.close()
    assert "Traceback" not in "".join(capfd.readouterr())


def test_more_connections_than_threads_wait(folder, monkeypatch):
    monkeypatch.setattr(serving_module, "CONNECTIONS_MAX", 2)
    with serving(folder) as url:
        held = [socket.create_connection(urlsplit(url).netloc.split(":"), timeout=60) for _ in range(2)]
        third = http.client.HTTPConnection(urlsplit(url).netloc, timeout=0.3)
        with pytest.raises(TimeoutError):
            _ask(third, "/packs/ab/x.pack")
        third.close()
        for one in held:
            one.close()
        fourth = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        assert _ask(fourth, "/packs/ab/x.pack")[0] == 200
        fourth.close()


@pytest.mark.parametrize("answered_before", [False, True])
def test_a_head_that_drips_holds_its_place_for_no_longer_than_one_that_is_silent(folder, monkeypatch, answered_before):
    monkeypatch.setattr(serving_module, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(serving_module._Handler, "timeout", 1.0)
    with serving(folder) as url:
        address = urlsplit(url).netloc
        dripping = http.client.HTTPConnection(address, timeout=60)
        dripping.connect()
        if answered_before:
            assert _ask(dripping, "/packs/ab/x.pack")[1] == DATA
        dripping.sock.sendall(b"GET /packs/ab/x.pack HTTP/1.1\r\nX: ")
        ended = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not ended.wait(0.05):
                    dripping.sock.sendall(b"a")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            other = http.client.HTTPConnection(address, timeout=30)
            assert _ask(other, "/packs/ab/x.pack")[:2] == (200, DATA)
            other.close()
        finally:
            ended.set()
            thread.join()
            dripping.close()


def test_an_answer_may_take_longer_than_a_head(folder, monkeypatch):
    """What is left of the time for a head is no bound for the answer."""
    bound_s = []
    monkeypatch.setattr(serving_module._Handler, "timeout", 50.0)
    answer = serving_module._Handler._say
    monkeypatch.setattr(
        serving_module._Handler,
        "_say",
        lambda self, *given: bound_s.append(self.connection.gettimeout()) or answer(self, *given),
    )
    with serving(folder) as url:
        made = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        assert _ask(made, "/packs/ab/x.pack")[0] == 200
        made.close()
    assert bound_s == [50.0]


def test_a_taken_port_and_no_repository_are_a_callers_error(folder, tmp_path):
    with RepositoryServer(folder) as server, pytest.raises(CallerError, match="cannot listen"):
        RepositoryServer(folder, port=server.server_address[1])
    with pytest.raises(CallerError, match="no repository"):
        RepositoryServer(tmp_path)


@given(st.text(max_size=30) | st.from_regex(r"bytes=\d{0,20}-\d{0,20}", fullmatch=True), st.integers(0, 1000))
def test_a_span_lies_within_the_file(asked, size):
    span = _span(asked, size)
    if span is not None:
        start, length, partial = span
        assert 0 <= start <= start + length <= size
        assert partial or (start, length) == (0, size)

"""GET against servers that drop, lie, stall and never end."""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from ferryman.devices.agent.update import http as http_module
from ferryman.devices.agent.update.budget import DataBudget
from ferryman.devices.agent.update.config import Cancelled, LaterError, UpdateConfig
from ferryman.devices.agent.update.http import Http
from ferryman.devices.agent.update.pace import retry_after_s
from ferryman.runtime.contracts.errors import BudgetError, CallerError, LinkError, RepositoryError
from tests.support.bad_server import Bad, proxying, serving

DATA = os.urandom(300_000)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hasty(monkeypatch):
    """Backoff as ever, only faster."""
    monkeypatch.setattr(http_module, "_BACKOFF_S", 0.002)


class Client:
    def __init__(self, tmp_path, url, *, update_max=None, **config):
        self.budget = DataBudget(tmp_path / "usage.json")
        self.budget.begin("u", update_max)
        self.cancelled = threading.Event()
        self.http = Http(UpdateConfig(url=url, **{"timeout_s": 30.0, **config}), self.budget, self.cancelled)

    def get(self, path="f", start=0, length=None, limit=1 << 30):
        try:
            return self.http.read(self.http.url(path), start, length, limit)
        finally:
            self.http.close()


def get(tmp_path, bad, start=0, length=None, **config):
    with serving({"f": DATA}, bad) as server:
        client = Client(tmp_path, server.url, **config)
        return client.get("f", start, length), server, client


def test_a_span(tmp_path):
    read, server, client = get(tmp_path, None, 1000, 200_000)
    assert read == DATA[1000:201_000]
    assert server.asked == [("f", "bytes=1000-200999")]
    assert 200_000 < client.budget.total_bytes < 200_700
    assert client.http.server_date is not None


def test_a_whole_file(tmp_path):
    assert get(tmp_path, None)[0] == DATA


def test_heads_are_counted_close_to_what_they_are(tmp_path):
    """The estimate against the bytes a raw socket sees."""
    import socket

    with serving({"f": b"abc"}) as server:
        client = Client(tmp_path, server.url)
        client.get("f", 0, 3)
        with socket.create_connection(server.server_address) as raw:
            request = (
                b"GET /f HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept-Encoding: identity\r\nUser-Agent: ferryman\r\n"
                b"Range: bytes=0-2\r\nConnection: close\r\n\r\n" % server.server_address[1]
            )
            raw.sendall(request)
            answer = b"".join(iter(lambda: raw.recv(4096), b""))
        truth = len(request) - len("Connection: close\r\n") + len(answer)
        assert abs(client.budget.total_bytes - truth) < 100


@pytest.mark.parametrize("drop_every", [700, 4096, 65_536])
def test_a_link_that_drops_is_resumed_at_the_very_byte(tmp_path, hasty, drop_every):
    read, server, client = get(tmp_path, Bad(drop_every=drop_every), 5, 200_000 if drop_every > 700 else 20_000)
    assert read == DATA[5 : 5 + len(read)]
    assert server.sent == len(read), "a byte was sent twice"
    assert client.http.retries == len(server.asked) - 1 >= len(read) // drop_every - 1


def test_a_whole_file_is_resumed_too(tmp_path, hasty):
    read, server, _ = get(tmp_path, Bad(drop_every=100_000))
    assert read == DATA
    assert server.asked == [("f", ""), ("f", "bytes=100000-"), ("f", "bytes=200000-")]


def test_an_answer_cut_short_is_asked_for_again(tmp_path, hasty):
    assert get(tmp_path, Bad(truncate=90_000), 0, 200_000)[0] == DATA[:200_000]


def test_a_server_that_ignores_range_is_read_where_that_is_cheap(tmp_path, hasty):
    read, _, client = get(tmp_path, Bad(ignore_range=True), 50_000, 100_000)
    assert read == DATA[50_000:150_000]
    assert client.budget.total_bytes > 150_000, "skipped bytes count"


def test_a_server_that_ignores_range_is_refused_where_it_is_not(tmp_path):
    with pytest.raises(RepositoryError, match="ignores Range: 250000 bytes would come"):
        get(tmp_path, Bad(ignore_range=True), 250_000, 10_000)


def test_a_server_that_answers_another_range_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match="bytes from 5 on were asked for, it answers 'bytes 6-14/300000'"):
        get(tmp_path, Bad(wrong_range=True), 5, 10)


def nothing_is_sent_any_more(server):
    """The client's end is closed."""
    deadline, sent = time.monotonic() + 30, -1
    while sent != server.sent:
        assert time.monotonic() < deadline, "the connection is open still"
        sent = server.sent
        time.sleep(0.2)


def test_endless_data_is_cut_off_where_the_span_ends(tmp_path):
    read, server, client = get(tmp_path, Bad(endless=True), 0, 100_000)
    assert read == b"x" * 100_000
    assert client.budget.total_bytes < 101_000
    nothing_is_sent_any_more(server)


def test_endless_data_is_cut_off_at_the_limit(tmp_path):
    with (
        serving({"f": DATA}, Bad(endless=True)) as server,
        pytest.raises(RepositoryError, match="after the 10000 bytes"),
    ):
        Client(tmp_path, server.url).get(limit=10_000)


def test_closing_cuts_what_is_under_way(tmp_path):
    """Whose reader gave up by an error: as long as somebody keeps that, its frames keep the reader."""
    with serving({"f": DATA}, Bad(endless=True)) as server:
        client = Client(tmp_path, server.url)
        blocks = client.http.stream(client.http.url("f"))
        next(blocks)
        client.http.close()
        assert client.http._current._response is None
        blocks.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416])
def test_4xx_is_final(tmp_path, status):
    with serving({"f": DATA}, Bad(status_of={"f": status})) as server:
        with pytest.raises(RepositoryError, match=rf"http://.*/f answers {status}"):
            Client(tmp_path, server.url).get()
        assert len(server.asked) == 1


def fetching_since(before):
    return [one for one in set(threading.enumerate()) - before if one.name.startswith("fetch")]


def until(true):
    deadline_s = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize("reached", ["at once", "on a connection that served", "through a proxy", "by a redirect"])
def test_a_head_that_never_ends_is_cut_with_all_that_waits_for_it(tmp_path, hasty, monkeypatch, reached):
    """Its bytes come too often for a read to time out."""
    monkeypatch.setattr(http_module, "_FAILURES_MAX", 1)
    before = set(threading.enumerate())
    with serving({"f": DATA}) as server, serving({"g": DATA}, Bad(redirects={"g": f"{server.url}/f"})) as other:
        url, proxy = ("https://nowhere.invalid", server.url) if reached == "through a proxy" else (server.url, None)
        url, path = (other.url, "g") if reached == "by a redirect" else (url, "f")
        client = Client(tmp_path, url, proxy=proxy, timeout_s=0.3)
        if reached == "on a connection that served":
            client.http.read(client.http.url("f"))
        server.bad.drip = True
        with pytest.raises(LinkError, match=r"no answer within 0\.6 s; gave up after 2 tries") as kept:
            client.get(path)
        until(lambda: not fetching_since(before))
        until(lambda: not server.dripping)
        assert kept.value.__cause__ is not None  # an error that somebody keeps keeps no connection


def test_a_cancel_cuts_a_head_that_never_ends(tmp_path):
    before = set(threading.enumerate())
    with serving({"f": DATA}, Bad(drip=True)) as server:
        client = Client(tmp_path, server.url)
        threading.Thread(target=lambda: (until(lambda: server.dripping), client.cancelled.set())).start()
        with pytest.raises(Cancelled):
            client.get()
        until(lambda: not fetching_since(before))
        until(lambda: not server.dripping)


def test_an_answer_that_comes_once_all_is_over_changes_no_account(tmp_path, hasty, monkeypatch):
    """The thread that waited for it may have missed being cut: a name was looked up, say."""
    monkeypatch.setattr(http_module, "_FAILURES_MAX", 0)
    answer, told = threading.Event(), threading.Event()
    with serving({"f": DATA}) as server:
        late = Client(tmp_path, server.url, timeout_s=0.1)
        look_up = late.http._pool

        def slowly(url):
            told.set()
            answer.wait(30)
            return look_up(url)

        monkeypatch.setattr(late.http, "_pool", slowly)
        before = set(threading.enumerate())
        with pytest.raises(LinkError, match="no answer"):
            late.get()
        assert told.is_set()
        Client(tmp_path, server.url).get()
        account = (tmp_path / "usage.json").read_bytes()
        answer.set()
        until(lambda: not fetching_since(before))
        assert (tmp_path / "usage.json").read_bytes() == account
        assert len(server.asked) == 1, "asked for though nobody waits"


@pytest.mark.parametrize("status", [204, 304])
def test_other_answers_are_final_too(tmp_path, status):
    with pytest.raises(RepositoryError, match=f"answers {status}"):
        get(tmp_path, Bad(status_of={"f": status}))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(tmp_path, hasty, status):
    read, _, client = get(tmp_path, Bad(statuses=[status] * 3), 0, 10)
    assert read == DATA[:10]
    assert client.http.retries == 3


def test_5xx_for_ever_is_a_dead_link(tmp_path, hasty):
    with serving({"f": DATA}, Bad(status_of={"f": 503})) as server:
        with pytest.raises(LinkError, match="answers 503; gave up after 11 tries"):
            Client(tmp_path, server.url).get()
        assert len(server.asked) == 11


def test_a_server_may_ask_for_patience(tmp_path, hasty):
    began = time.monotonic()
    assert get(tmp_path, Bad(statuses=[503], headers={"Retry-After": "1"}), 0, 10)[0] == DATA[:10]
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("status", [408, 429, 503])
@pytest.mark.parametrize(("asked", "most_s"), [("1800", 1800), ("999999999", 3600)])
def test_a_server_that_asks_for_much_patience_is_left_alone(tmp_path, status, asked, most_s):
    """For so long that another attempt is what comes then; not all of a fleet at the same moment."""
    with serving({"f": DATA}, Bad(status_of={"f": status}, headers={"Retry-After": asked})) as server:
        with pytest.raises(LinkError, match=rf"answers {status}; asks to come back in {most_s} s") as caught:
            Client(tmp_path, server.url).get()
        assert isinstance(caught.value, LaterError)
        assert most_s <= caught.value.after_s <= 1.25 * most_s
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("asked", "after_s"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("Wed, 21 Oct 2015 07:28:30 GMT", 30.0),
        ("Wed, 21 Oct 2015 07:27:00 GMT", 0.0),
        ("Thu, 22 Oct 2015 07:28:00 GMT", 3600.0),
        *(
            (text, 0.0)
            for text in ("", "soon", "-5", "1.5", "1e9", "9" * 5000, "\u0667", "Wed, 99 Oct 2015 07:28:30 GMT")
        ),
    ],
)
def test_how_long_a_server_asks_to_wait(asked, after_s):
    assert retry_after_s({"Retry-After": asked, "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}) == after_s
    if asked.startswith(("Wed", "Thu")):
        assert retry_after_s({"Retry-After": asked}) == 0.0


def test_patience_ends(tmp_path, hasty):
    """Before 10 tries do."""
    with serving({"f": DATA}, Bad(silent_after=1000)) as server:
        client = Client(tmp_path, server.url, timeout_s=0.7, patience_s=0.7)
        blocks = client.http.stream(client.http.url("f"))
        assert next(blocks) == DATA[:1000]
        server.bad.silent_after = 0
        with pytest.raises(LinkError, match=r"gave up after \d tries and \d+ s without progress, at byte 1000"):
            next(blocks)


def test_backoff_grows_is_jittered_and_capped(tmp_path, monkeypatch):
    waits = []
    client = Client(tmp_path, "http://127.0.0.1:9")
    monkeypatch.setattr(http_module.random, "uniform", lambda low, high: waits.append((low, high)) or 0.0)
    for failures in range(1, 11):
        client.http._pause(failures, 0.0)
    assert waits[:4] == [(0, 0.2), (0, 0.4), (0, 0.8), (0, 1.6)]
    assert waits[-1] == (0, 20.0)


def test_nobody_listens(tmp_path, hasty):
    with pytest.raises(LinkError, match="refused"):
        Client(tmp_path, "http://127.0.0.1:9").get()


def test_a_slow_answer_is_a_dead_link(tmp_path, hasty, monkeypatch):
    monkeypatch.setattr(http_module, "_FAILURES_MAX", 1)
    with pytest.raises(LinkError, match="bytes/s are fewer than 5000"):
        get(tmp_path, Bad(bytes_s=400), timeout_s=1.0, floor_bytes_s=5000)


def test_no_answer_at_all(tmp_path, hasty, monkeypatch):
    monkeypatch.setattr(http_module, "_FAILURES_MAX", 1)
    with pytest.raises(LinkError, match="timed out"):
        get(tmp_path, Bad(delay_s=1.0), timeout_s=0.3)


def test_redirects_are_followed_and_keep_the_range(tmp_path):
    with serving({"real/f": DATA}, Bad(redirects={"f": "/real/f"})) as server:
        assert Client(tmp_path, server.url).get("f", 100, 50) == DATA[100:150]
        assert server.asked[1] == ("real/f", "bytes=100-149")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/f", "redirects more than 3 times"),
        ("file:///etc/passwd", "no web address"),
        ("gopher://x/", "no web address"),
    ],
)
def test_redirects_that_lead_nowhere(tmp_path, target, message):
    with pytest.raises(RepositoryError, match=message):
        get(tmp_path, Bad(redirects={"f": target}))


def test_a_compressed_answer_is_refused(tmp_path):
    with pytest.raises(RepositoryError, match="comes compressed"):
        get(tmp_path, Bad(headers={"Content-Encoding": "gzip"}))


def test_a_budget_is_hard(tmp_path, hasty):
    with serving({"f": DATA}) as server:
        client = Client(tmp_path, server.url, update_max=50_000)
        got = bytearray()

        def take():
            for block in client.http.stream(client.http.url("f"), 0, 200_000):
                got.extend(block)

        with pytest.raises(BudgetError, match=r"150\d\d\d bytes on the wire, and an update may cost 50000, of which"):
            take()
        assert got == DATA[: len(got)]
        assert 48_000 < server.sent <= client.budget.update_bytes <= 50_000


def test_retries_count_against_the_budget(tmp_path, hasty):
    with serving({"f": DATA}, Bad(drop_every=600)) as server, pytest.raises(BudgetError):
        Client(tmp_path, server.url, update_max=15_000).get("f", 0, 14_000)


def test_a_bandwidth_cap_holds(tmp_path):
    with serving({"f": DATA}) as server:
        client = Client(tmp_path, server.url, rate_bytes_s=100_000)
        began = time.monotonic()
        assert len(client.get("f", 0, 150_000)) == 150_000
        assert time.monotonic() - began > 1.1


@pytest.mark.parametrize(
    "bad", [Bad(bytes_s=5_000), Bad(silent_after=5000), Bad(delay_s=40), Bad(statuses=[503] * 99)], ids=str
)
def test_a_cancel_ends_it_at_once(tmp_path, bad):
    with serving({"f": DATA}, bad) as server:
        client = Client(tmp_path, server.url, timeout_s=60.0)
        threading.Timer(0.4, client.cancelled.set).start()
        began = time.monotonic()
        with pytest.raises(Cancelled, match="cancelled"):
            client.get()
        assert time.monotonic() - began < 15, "something else ended it"


def test_a_reader_that_leaves_cuts_the_connection(tmp_path):
    before = set(threading.enumerate())
    with serving({"f": bytes(20_000_000)}) as server:
        client = Client(tmp_path, server.url)
        blocks = client.http.stream(client.http.url("f"))
        next(blocks)
        blocks.close()
        nothing_is_sent_any_more(server)
        assert server.sent < 20_000_000
        assert not [one for one in fetching_since(before) if one.name == "fetch"]


def test_connections_are_kept(tmp_path):
    with serving({"f": DATA}) as server:
        opened = []
        before = server.process_request
        server.process_request = lambda *given: opened.append(1) or before(*given)
        client = Client(tmp_path, server.url)
        for number in range(5):
            client.http.read(client.http.url("f"), number, 10)
            with pytest.raises(RepositoryError):
                client.http.read(client.http.url("none"))
        client.http.close()
        assert len(opened) == 1


def test_a_proxy_by_setting(tmp_path):
    with serving({"f": DATA}) as server, proxying() as proxy:
        url = proxy.url.replace("http://", "http://me:secret@")
        assert Client(tmp_path, server.url, proxy=url).get("f", 0, 99) == DATA[:99]
        assert proxy.asked == [f"{server.url}/f"]
        assert proxy.authorization == ["Basic bWU6c2VjcmV0"]


def test_a_proxy_by_the_environment(tmp_path, monkeypatch):
    with serving({"f": DATA}) as server, proxying() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert Client(tmp_path, server.url).get("f", 0, 99) == DATA[:99]
        assert len(proxy.asked) == 1
        assert Client(tmp_path, server.url, proxy="").get("f", 0, 99) == DATA[:99]
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert Client(tmp_path, server.url).get("f", 0, 99) == DATA[:99]
        assert len(proxy.asked) == 1


def test_a_proxy_that_refuses_is_final(tmp_path):
    with proxying(refuse=407) as proxy:
        with pytest.raises(LinkError, match="the proxy refuses: 407"):
            Client(tmp_path, "https://nowhere.invalid", proxy=proxy.url).get()
        assert len(proxy.asked) == 1


@pytest.fixture
def certificate(tmp_path):
    """Of 127.0.0.1, signed by itself: (certificate with its key, certificate)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "both.pem").write_bytes(secret + pem)
    (tmp_path / "ca.pem").write_bytes(pem)
    return tmp_path / "both.pem", tmp_path / "ca.pem"


def test_https_with_ranges_through_a_proxy(tmp_path, certificate, monkeypatch, hasty):
    both, ca = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    with serving({"f": DATA}, Bad(drop_every=70_000), certificate=both) as server, proxying() as proxy:
        assert Client(tmp_path, server.url, proxy=proxy.url).get("f", 10, 200_000) == DATA[10:200_010]
        assert set(proxy.asked) == {server.url.removeprefix("https://")}
        assert server.sent == 200_000


def test_a_head_that_never_ends_is_cut_under_tls_too(tmp_path, certificate, monkeypatch, hasty):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[1]))
    monkeypatch.setattr(http_module, "_FAILURES_MAX", 0)
    before = set(threading.enumerate())
    with serving({"f": DATA}, Bad(drip=True), certificate=certificate[0]) as server:
        with pytest.raises(LinkError, match="no answer within"):
            Client(tmp_path, server.url, timeout_s=1.0).get()
        until(lambda: not fetching_since(before))
        until(lambda: not server.dripping)


def test_a_server_that_nobody_vouches_for(tmp_path, certificate, monkeypatch, hasty):
    monkeypatch.setattr(http_module, "_FAILURES_MAX", 1)
    with (
        serving({"f": DATA}, certificate=certificate[0]) as server,
        pytest.raises(LinkError, match="CERTIFICATE_VERIFY"),
    ):
        Client(tmp_path, server.url).get()


@pytest.mark.parametrize(
    "config",
    [
        {"url": "ftp://x/"},
        {"url": "http://"},
        {"url": "http://x/?a=b"},
        {"url": "http://x:y/"},
        {"url": "http://x", "proxy": "socks5://x"},
        {"url": "http://x", "rate_bytes_s": 0},
        {"url": "http://x", "day_max_bytes": -1},
    ],
)
def test_a_config_that_cannot_be(tmp_path, config):
    with pytest.raises(CallerError, match=re.escape(str(next(iter(reversed(config.values())))))):
        Http(UpdateConfig(**config), DataBudget(tmp_path / "u"))


def test_memory_stays_flat(tmp_path):
    """However slowly it is taken, no more than some blocks wait."""
    import tracemalloc

    with serving({"f": bytes(30_000_000)}) as server:
        client = Client(tmp_path, server.url)
        digest = hashlib.sha256()
        tracemalloc.start()
        base, _ = tracemalloc.get_traced_memory()
        for block in client.http.stream(client.http.url("f"), 0, 30_000_000):
            digest.update(block)
        peak = tracemalloc.get_traced_memory()[1] - base
        tracemalloc.stop()
    assert peak < 3_000_000, peak

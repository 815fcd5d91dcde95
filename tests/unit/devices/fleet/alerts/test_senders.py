"""Whoever is told, as real servers: SMTP, and HTTP that is well, fails, is slow, hangs or is not there."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ferryman.devices.fleet.alerts import senders
from ferryman.devices.fleet.alerts.book import Book, notice
from ferryman.devices.fleet.alerts.config import Config, Grouping, Tell
from ferryman.devices.fleet.alerts.senders import Sender, deliver_to
from ferryman.runtime.contracts.errors import CallerError
from tests.support.mosquitto import free_port
from tests.support.servers import mail_server, web_hook
from tests.support.telemetry import until
from tests.unit.devices.fleet.alerts.test_book import row, target


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for name, value in (("LOOK_S", 0.02), ("RETRY_FIRST_S", 0.05), ("RETRY_CAP_S", 0.1)):
        monkeypatch.setattr(senders, name, value)


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(senders, "TIMEOUT_S", 0.5)


@contextmanager
def telling(*urls: str) -> Iterator[tuple[Book, list[Sender]]]:
    tells = tuple(Tell(url=url) for url in urls)
    book = Book(None)
    book.configure(Config(group=Grouping(wait_s=0, every_s=0), tells=tells))
    some = [Sender(book, at, tell) for at, tell in enumerate(tells)]
    for one in some:
        one.start()
    try:
        yield book, some
    finally:
        for one in some:
            one.ask_to_stop()
        for one in some:
            one.join()


def test_a_webhook_gets_the_notice_and_a_mailbox_a_mail():
    with mail_server() as (mail_url, box), web_hook() as (url, hook), telling(mail_url, url) as (book, _):
        book.update([row(1, "lab-1"), row(2, "lab-2")], target, time.monotonic())
        until(lambda: book.take_told() == [(1, False), (2, False)])
    (body,) = hook.bodies
    assert body["title"] == "critical: offline: 2 devices at site=lab"
    assert [alert["device"] for alert in body["alerts"]] == ["lab-1", "lab-2"]
    (mail,) = box.mails
    assert mail["Subject"] == body["title"]
    assert "lab-2: is offline" in str(mail)


def test_a_dead_a_failing_and_a_hanging_webhook_hold_up_nobody_and_are_told_once_they_answer(hasty, caplog):
    dead = f"http://127.0.0.1:{free_port()}/"
    with web_hook() as (failing, fails), web_hook() as (hanging, hangs), mail_server() as (mail_url, box):
        fails.answers = [500, 302, 404]
        hangs.hangs = True
        with telling(dead, failing, hanging, mail_url) as (book, some):
            book.update([row(1, "pi")], target, time.monotonic())
            until(lambda: len(box.mails) == 1)
            until(lambda: some[1].told == 1)
            until(lambda: some[0].failed > 2 and some[2].failed > 0)
            assert book.take_told() == []
            hangs.hangs = False
            hangs.hang.set()
            until(lambda: some[2].told == 1)
            assert some[1].failed >= 3
            assert (some[1].told, some[3].told) == (1, 1)
    assert "the webhook answers 500" in caplog.text
    assert dead not in caplog.text  # a URL may hold a password


def test_a_mail_server_that_takes_connections_and_is_silent_is_given_up_after_a_time():
    with socket.create_server(("127.0.0.1", 0)) as silent, web_hook() as (url, hook):
        mail_url = f"mailto://127.0.0.1:{silent.getsockname()[1]}?from=a@example.com&to=b@example.com&mode=insecure"
        with telling(f"{mail_url}&cto=0.3&rto=0.3", url) as (book, some):
            book.update([row(1, "pi")], target, time.monotonic())
            until(lambda: len(hook.bodies) == 1 and some[0].failed > 0)
    assert some[0].told == 0


def test_a_notice_that_is_refused_holds_up_no_other(caplog):
    """Not one that is always refused, whichever comes first."""
    with web_hook() as (url, hook), telling(url) as (book, some):
        hook.refuses = "bad-1"
        book.update([row(1, "bad-1"), row(2, "lab-1"), row(3, "barn-1")], target, time.monotonic())
        until(lambda: some[0].failed > 2)
        book.update([row(1, "bad-1"), row(4, "attic-1")], target, time.monotonic())
        until(lambda: some[0].told == 3)
        assert [body["alerts"][0]["device"] for body in hook.bodies] == ["lab-1", "barn-1", "attic-1"]
        hook.refuses = None
        until(lambda: some[0].told == 4)
    assert "the webhook answers 413" in caplog.text


def test_one_that_only_apprise_knows_to_fail_holds_up_others_for_a_moment_only(monkeypatch):
    with mail_server() as (url, box), telling(url) as (book, some):
        deliver = some[0]._deliver

        def fail(notice):
            if "bad-1" in notice.title:
                raise OSError("no")
            deliver(notice)

        monkeypatch.setattr(some[0], "_deliver", fail)
        book.update([row(1, "bad-1"), row(2, "lab-1"), row(3, "barn-1")], target, time.monotonic())
        until(lambda: len(box.mails) == 2 and some[0].failed > 2)


@pytest.mark.parametrize("said", [b"HTTP/1.1 100 Continue\r\n\r\n", b"H"])
def test_a_webhook_that_never_comes_to_its_answer_is_given_up(hasty, said):
    begun, stop = threading.Event(), threading.Event()

    def drip(server: socket.socket) -> None:
        begun.set()
        connection, _ = server.accept()
        with connection, contextlib.suppress(OSError):
            while not stop.wait(0.05):
                connection.sendall(said)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        assert begun.wait(60)
        deliver = deliver_to(Tell(url=f"http://127.0.0.1:{server.getsockname()[1]}/"), "tell[0]")
        with pytest.raises(TimeoutError, match=r"within 0\.5 s"):
            deliver(notice([row(1, "pi").alert], "offline", "", over=False))
        stop.set()
        thread.join()


def test_what_a_receiver_says_is_one_short_line_of_the_log(caplog):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"HTTP/1.1 500 \x1b[2J" + b"x" * 30_000 + b"\r\n\r\n")
                connection.recv(1 << 16)

        thread = threading.Thread(target=answer)
        thread.start()
        with telling(f"http://127.0.0.1:{server.getsockname()[1]}/") as (book, some):
            book.update([row(1, "pi")], target, time.monotonic())
            until(lambda: some[0].failed > 0)
        thread.join()
    assert max(len(record.getMessage()) for record in caplog.records) < 1000
    assert "\x1b" not in caplog.text


@pytest.mark.parametrize(
    "url", ["https://", "http://host:port/", "http://host:99999/", "http://[::1", "http://host/a b", "http://host/ä"]
)
def test_what_is_no_webhook_is_the_callers(url):
    with pytest.raises(CallerError, match=r"tell\[0\]: no URL of a webhook"):
        deliver_to(Tell(url=url), "tell[0]")


def test_a_webhook_is_let_in_with_a_password():
    with web_hook() as (url, hook), telling(url.replace("127.0.0.1", "me:p%40ss@127.0.0.1")) as (book, _):
        book.update([row(1, "pi")], target, time.monotonic())
        until(lambda: len(hook.bodies) == 1)
    assert hook.authorization == "Basic bWU6cEBzcw=="


def test_a_url_that_apprise_does_not_know_is_the_callers():
    with pytest.raises(CallerError, match=r"tell\[3\]") as caught:
        deliver_to(Tell(url="nonsense://user:secret@host"), "tell[3]")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["bogus://topsecret/x", "mailto://[topsecret", "slack://topsecret", "mailto://me:topsecret@h?to=x%40y&mode=z"],
)
def test_apprise_logs_no_password(caplog, url):
    caplog.set_level("DEBUG")
    with contextlib.suppress(CallerError):
        deliver_to(Tell(url=url), "tell[0]")
    assert any(record.name == "apprise" for record in caplog.records)
    assert "topsecret" not in caplog.text

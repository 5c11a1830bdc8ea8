"""The server under the dashboard: how it ends, and what strangers may do to it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hpo.dashboard import web_server
from hpo.dashboard.web_server import LARGEST_BODY, MOST_CONNECTIONS, WebServer

_SLOW = """
import signal, socket, sys, time
from hpo.dashboard.web_server import WebServer

def answer(environ, start_response):
    print("asked", flush=True)
    time.sleep(1)
    start_response("200 OK", [("Content-Length", "4")])
    return [b"done"]

listener = socket.create_server(("127.0.0.1", 0))
server = WebServer(answer, listener, threads=2, trusted=lambda _: True, large_bodies=False)
signal.signal(signal.SIGTERM, lambda *_: server.close())
print(listener.getsockname()[1], flush=True)
server.run()
"""


def test_it_ends_however_often_it_is_asked_to() -> None:
    """Also while it answers: what supervises it may say SIGTERM more than once, and Ctrl-C comes twice as well."""
    with subprocess.Popen([sys.executable, "-c", _SLOW], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as asking:
            asking.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert process.stdout.readline() == "asked\n"
            try:
                for _ in range(3):
                    process.send_signal(signal.SIGTERM)
                    with pytest.raises(subprocess.TimeoutExpired):
                        process.wait(0.1)
                assert process.wait(timeout=10) == 0
            finally:
                process.kill()


@contextmanager
def serving(*, large_bodies: bool = False) -> Iterator[int]:
    """Run a server that trusts who sends the cookie `ours`, and answers with how much it got; give its port."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)

    def answer(environ, start_response):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - as in WSGI
        got = str(len(environ["wsgi.input"].read())).encode()
        start_response("200 OK", [("Content-Length", str(len(got)))])
        return [got]

    server = WebServer(
        answer, listener, threads=2, trusted=lambda cookies: cookies == "ours", large_bodies=large_bodies
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.close()
        thread.join(10)
    assert not thread.is_alive()


def exchange(port: int, said: bytes) -> bytes:
    """Say something, and return the answer until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as asking:
        asking.sendall(said)
        return rest(asking)


def rest(asking: socket.socket) -> bytes:
    """Return what comes until the connection ends."""
    return b"".join(iter(lambda: asking.recv(1 << 16), b""))


@pytest.mark.parametrize(("cookie", "large_bodies"), [(b"other", True), (b"ours", False), (b"ours", True)])
def test_only_who_is_trusted_may_send_much(cookie: bytes, large_bodies: bool) -> None:
    """Of who is not, a large body is refused by what it says of its length, before any of it is kept."""
    size = LARGEST_BODY + 1
    head = b"POST / HTTP/1.1\r\nConnection: close\r\nCookie: %b\r\nContent-Length: %d\r\n\r\n"
    with serving(large_bodies=large_bodies) as port:
        if cookie == b"ours" and large_bodies:
            assert exchange(port, head % (cookie, size) + bytes(size)).endswith(str(size).encode())
        else:
            assert exchange(port, head % (cookie, size)).split()[1] == b"413"


def test_idle_connections_of_strangers_shut_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than waitress takes by itself; and one that says its request letter by letter is cut off, other than a friend's."""
    monkeypatch.setattr(web_server, "REQUEST_S", 0.5)
    friend = b"POST / HTTP/1.1\r\nConnection: close\r\nCookie: ours\r\nContent-Length: 2\r\n\r\na"
    idle: list[socket.socket] = []
    with serving() as port:
        try:
            idle += [socket.create_connection(("127.0.0.1", port)) for _ in range(MOST_CONNECTIONS // 2)]
            slow = socket.create_connection(("127.0.0.1", port), timeout=10)
            idle.append(slow)
            slow.sendall(friend)
            assert exchange(port, b"GET / HTTP/1.1\r\nHost: x") == b""
            assert exchange(port, b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\na") == b""
            slow.sendall(b"b")
            assert rest(slow).endswith(b"\r\n\r\n2")
        finally:
            for each in idle:
                each.close()

"""
Optuna's dashboard behind a door: a password, and nothing but reading unless asked for more.

optuna-dashboard has no authentication and has endpoints that delete. Here nothing of it answers without a session, and
without `writable` only GET and HEAD pass: none of its GET endpoints writes (read in the source of 0.21: creating, renaming,
deleting, telling, notes, attributes, preferences, uploads and migration are POST, PUT or DELETE). Bottle knows no header
that changes a request's method.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import waitress
from optuna.storages import BaseStorage
from optuna_dashboard import wsgi
from waitress.wasyncore import close_all

FAILURE_DELAY_S = 1.0
"""How long a wrong password keeps everybody from trying another."""

_READING = {"GET", "HEAD"}
_LARGEST_FORM = 4096  # bytes of a login form
_LARGEST_BODY = {False: 1 << 20, True: 128 << 20}  # bytes of a request, by `writable`: uploads need room
_THREADS = 8
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>mammography-hpo</title>{head}
<style>body{{font:16px sans-serif;margin:20vh auto;max-width:22em}}input,button{{font:inherit;padding:.4em}}</style></head>
<body><h1>mammography-hpo</h1>{body}</body></html>"""
_FORM = """<form method="post" action="/login"><label>Password <input type="password" name="password" autofocus
autocomplete="current-password"></label> <button>Open</button></form>"""
_PAGE_HEADERS = [
    ("Content-Type", "text/html; charset=utf-8"),
    ("Cache-Control", "no-store"),
    (
        "Content-Security-Policy",
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'",
    ),
    ("Referrer-Policy", "no-referrer"),  # the link's token is in the address
]


def kept_password(path: Path) -> str:
    """Return the password in the file at *path*, which is made with a random one, for its owner alone, if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="utf-8").strip()
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(password := secrets.token_urlsafe(16))
    return password


class Gate:
    """
    A WSGI application that lets through to *application* who has a session, and writing only where *writable*.

    A session begins with the password, or with `token`, which works once. It lasts as long as this object.
    """

    def __init__(self, application: WSGIApplication, *, password: str, writable: bool, cookie: str) -> None:
        self.token: str = secrets.token_urlsafe(32)
        """Opens the first session, as part of a link."""
        self._application = application
        self._password = password
        self._writable = writable
        self._cookie = cookie
        self._sessions: set[str] = set()
        self._token_used = False
        self._trying = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        offered = parse_qs(environ.get("QUERY_STRING", "")).get("token")
        if method == "POST" and path == "/login":
            return self._log_in(_form_password(environ), start_response)
        if method == "GET" and path == "/" and offered:
            return self._log_in_by_link(offered[0], environ, start_response)
        if not self._has_session(environ):
            return _page(start_response, "401 Unauthorized", _FORM)
        if method not in _READING and not (self._writable and _same_origin(environ)):
            return _page(start_response, "403 Forbidden", "<p>This dashboard is read-only.</p>")
        return self._application(environ, start_response)

    def _has_session(self, environ: WSGIEnvironment) -> bool:
        try:
            cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(self._cookie)
        except CookieError:
            return False
        return cookie is not None and cookie.value in self._sessions  # 256 random bits: no timing finds them

    def _log_in(self, password: str, start_response: StartResponse) -> Iterable[bytes]:
        """One try at a time, and a wrong one costs a second: guessing gets nowhere, and ties up one thread at most."""
        if not self._trying.acquire(blocking=False):
            return _page(start_response, "429 Too Many Requests", f"<p>Wait a moment, then try again.</p>{_FORM}")
        try:
            if _equal(password, self._password):
                return self._enter(start_response)
            time.sleep(FAILURE_DELAY_S)
        finally:
            self._trying.release()
        return _page(start_response, "401 Unauthorized", f"<p>That is not the password.</p>{_FORM}")

    def _log_in_by_link(self, token: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self._trying:
            right = _equal(token, self.token) and not self._token_used
            self._token_used = self._token_used or right
        if right or self._has_session(environ):
            return self._enter(start_response)
        return _page(
            start_response, "401 Unauthorized", f"<p>This link was used, or is of an earlier start.</p>{_FORM}"
        )

    def _enter(self, start_response: StartResponse) -> Iterable[bytes]:
        session = secrets.token_urlsafe(32)
        self._sessions.add(session)
        cookie = ("Set-Cookie", f"{self._cookie}={session}; HttpOnly; SameSite=Strict; Path=/")
        # Not a redirect: a browser that came by a link on another site would follow it without the new cookie.
        head = '<meta http-equiv="refresh" content="0;url=/dashboard">'
        return _page(start_response, "200 OK", '<p><a href="/dashboard">Open</a></p>', head=head, extra=[cookie])


class Dashboard:
    """A dashboard that listens already and answers once it runs."""

    def __init__(self, gate: Gate, listener: socket.socket, host: str, *, writable: bool) -> None:
        self._gate = gate
        port = listener.getsockname()[1]
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - what a browser can open
        self.url: str = f"http://[{shown}]:{port}/" if ":" in shown else f"http://{shown}:{port}/"
        """Where it is; asks for the password."""
        self._channels: dict[int, Any] = {}
        self._server = waitress.create_server(
            gate,
            map=self._channels,
            sockets=[listener],
            threads=_THREADS,
            ident=None,
            max_request_body_size=_LARGEST_BODY[writable],
        )

    @property
    def url_with_token(self) -> str:
        """A link that opens it without the password, once."""
        return f"{self.url}?token={self._gate.token}"

    def run(self) -> None:
        """Answer until interrupted, or until `close` is called by another thread."""
        try:
            self._server.run()
        finally:
            self._end()

    def close(self) -> None:
        """Stop listening and let `run` return."""
        self._server.trigger.pull_trigger(self._end)  # in the loop's own thread: no descriptor goes under its select

    def _end(self) -> None:
        self._server.task_dispatcher.shutdown()
        close_all(self._channels)


def serve(
    storage: BaseStorage, *, password: str, host: str = "127.0.0.1", port: int = 8080, writable: bool = False
) -> Dashboard:
    """
    Return a dashboard of all studies in *storage* that listens on *host* and *port* (0: any free one).

    Raises:
        ValueError: The password is empty.
        OSError: The address cannot be listened on.
    """
    if not password:
        raise ValueError("a dashboard needs a password")
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    # Cookies know no ports: two dashboards on one machine must not overwrite each other's.
    cookie = f"mammography_{listener.getsockname()[1]}"
    gate = Gate(wsgi(storage), password=password, writable=writable, cookie=cookie)
    return Dashboard(gate, listener, host, writable=writable)


def _form_password(environ: WSGIEnvironment) -> str:
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > _LARGEST_FORM:
        return ""
    form = environ["wsgi.input"].read(int(length)).decode("utf-8", errors="replace")
    return str(parse_qs(form).get("password", [""])[0])


def _equal(offered: str, right: str) -> bool:
    """Compare in a time that tells nothing, not even the length."""
    return hmac.compare_digest(hashlib.sha256(offered.encode()).digest(), hashlib.sha256(right.encode()).digest())


def _same_origin(environ: WSGIEnvironment) -> bool:
    """Return whether a request comes from our own pages; another port of this host counts as the same *site*."""
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or urlsplit(origin).netloc == environ.get("HTTP_HOST")


def _page(
    start_response: StartResponse, status: str, body: str, *, head: str = "", extra: list[tuple[str, str]] | None = None
) -> Iterable[bytes]:
    start_response(status, [*_PAGE_HEADERS, *(extra or [])])
    return [_PAGE.format(head=head, body=body).encode()]

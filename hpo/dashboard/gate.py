"""
A door before a WSGI application: a password, sessions, and nothing but reading unless asked for more.

What is behind it may trust that whoever asks has the password, and that no page of another site made a browser ask.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from urllib.parse import parse_qs, urlsplit
from wsgiref.headers import Headers
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from hpo.dashboard.address import Address
from hpo.dashboard.sessions import Sessions

FAILURE_DELAY_S = 1.0
"""How long a wrong password keeps everybody from trying another."""
MOST_TRYING = 4
"""How many may try the password: one does, the others wait for it, and each holds a thread."""

_READING = {"GET", "HEAD"}
_LARGEST_FORM = 4096  # bytes of a login form
_PAGES = re.compile(r"/dashboard[A-Za-z0-9/?=&,.%_-]*")
_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>mammography-hpo</title>{head}
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><style>
body{{font:16px system-ui,sans-serif;margin:20vh auto;max-width:24em;padding:0 1em;color:#1c2b36;background:#f4f6f8}}
h1{{font-size:1.4em}}p{{color:#8a2b0f}}a{{color:#0c6198}}
input,button{{font:inherit;padding:.45em;border-radius:4px;border:1px solid #9ab}}
button{{background:#0c6198;color:#fff;border-color:#0c6198}}</style></head>
<body><h1>mammography-hpo</h1>{body}</body></html>"""
_FORM = """<form method="post" action="{prefix}/login"><input type="hidden" name="page" value="{page}"><label>Password
<input type="password" name="password" autofocus autocomplete="current-password"></label> <button>Open</button></form>"""
_LOG_OUT = '<form method="post" action="{prefix}/logout"><button>Log out</button></form>'
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'"
_EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # a link's token is in the address; with "no-referrer" forms have no Origin either
    "Cross-Origin-Resource-Policy": "same-origin",  # other ports of this machine are the same *site* to a browser
    "Cross-Origin-Opener-Policy": "same-origin",
}
_FRAMES = "; frame-ancestors 'none'; base-uri 'none'"
_LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
_READ_ONLY = "This dashboard is read-only."
_OTHER_NAME = "This dashboard answers to localhost and 127.0.0.1 only; behind a reverse proxy it needs --base-url."
_OTHER_PAGE = (
    "A page of another address asked for this; where this is that of a reverse proxy, it belongs in --base-url."
)


class Gate:
    """
    A WSGI application that lets through to *application* who has a session, and writing only where *writable*.

    A session begins with the password, or with `token`, which works once.

    Args:
        application: What is behind it. It sees paths without the address's prefix.
        password: Opens it; only a hash of it is kept.
        writable: Whether anything but GET and HEAD passes.
        cookie: The name of the session's cookie.
        address: Where browsers find it; None where that is whatever they say, with no proxy between.
        local: Whether without an *address* only the names of this machine are answered to: a site whose name is made to
            mean 127.0.0.1 then gets nothing.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        application: WSGIApplication,
        *,
        password: str,
        writable: bool,
        cookie: str,
        address: Address | None = None,
        local: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.token: str = secrets.token_urlsafe(32)
        """Opens the first session, as part of a link."""
        self._application = application
        self._password = _digest(password)
        self._writable = writable
        self._address = address
        self._local = local and address is None
        self._prefix = "" if address is None else address.prefix
        self._sessions = Sessions(cookie, clock)
        self._token_used = False
        self._room = threading.BoundedSemaphore(MOST_TRYING)
        self._trying = threading.Lock()
        self._entering = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        path = environ["PATH_INFO"] = path if self._address is None else self._address.inside(path)
        begin = self._shield(start_response)
        if self._local and not _LOCAL.fullmatch(environ.get("HTTP_HOST", "localhost")):
            return _refuse(path, begin, _OTHER_NAME)
        ours = self._is_ours(environ)
        offered = parse_qs(environ.get("QUERY_STRING", "")).get("token")
        if method == "POST" and path == "/login":
            return self._log_in(_form(environ), begin) if ours else _refuse(path, begin, _OTHER_PAGE)
        if method == "GET" and path == "/" and offered:
            return self._log_in_by_link(offered[0], environ, begin)
        if not self.knows(environ.get("HTTP_COOKIE", "")):
            return self._turn_away(environ, begin)
        if method not in _READING and not ours:
            return _refuse(path, begin, _OTHER_PAGE)
        return self._let_in(environ, begin)

    def knows(self, cookies: str) -> bool:
        """Return whether who sends these *cookies* has a session."""
        return self._sessions.hold(cookies)

    def _is_ours(self, environ: WSGIEnvironment) -> bool:
        """Return whether a request comes from our own pages; another port of this host counts as the same *site*."""
        if environ.get("HTTP_SEC_FETCH_SITE") in {"cross-site", "same-site"}:
            return False
        origin = environ.get("HTTP_ORIGIN")
        if origin is None or (self._address is not None and origin == self._address.origin):
            return True
        return self._address is None and origin.partition("://")[2] == environ.get("HTTP_HOST")

    def _let_in(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer who has a session."""
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/logout":
            return self._log_out(environ, start_response)
        if method not in _READING and not self._writable:
            return _refuse(path, start_response, _READ_ONLY)
        environ["HTTP_HOST"] = "dashboard"  # whatever it says, nobody behind the door has to understand it
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # optuna-dashboard counts on it
        return self._application(environ, start_response)

    def _log_in(self, form: dict[str, str], start_response: StartResponse) -> Iterable[bytes]:
        """
        Let one try in at a time; a wrong one costs a second, so that guessing gets nowhere. Few wait for their turn.

        It is one door for all: behind a proxy all clients have one address, and what a header says of them anybody can write.
        """
        page = form.get("page", "")
        if not self._room.acquire(blocking=False):
            return self._ask(start_response, "429 Too Many Requests", page, "Wait a moment, then try again.")
        try:
            with self._trying:
                if hmac.compare_digest(_digest(form.get("password", "")), self._password):
                    return self._enter(start_response, page)
                time.sleep(FAILURE_DELAY_S)
        finally:
            self._room.release()
        return self._ask(start_response, "401 Unauthorized", page, "That is not the password.")

    def _log_in_by_link(self, token: str, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self._entering:
            right = hmac.compare_digest(_digest(token), _digest(self.token)) and not self._token_used
            self._token_used = self._token_used or right
        if right or self.knows(environ.get("HTTP_COOKIE", "")):
            return self._enter(start_response, "")
        return self._ask(start_response, "401 Unauthorized", "", "This link was used, or is of an earlier start.")

    def _enter(self, start_response: StartResponse, page: str) -> Iterable[bytes]:
        # Not a redirect: a browser that came by a link on another site would follow it without the new cookie.
        goal = html.escape(f"{self._prefix}{page if _PAGES.fullmatch(page) else '/dashboard'}", quote=True)
        head = f'<meta http-equiv="refresh" content="0;url={goal}">'
        cookie = self._cookie(self._sessions.begin())
        return _page(start_response, "200 OK", f'<a href="{goal}">Open</a>', head=head, extra=[cookie])

    def _log_out(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in _READING:
            return _page(start_response, "200 OK", _LOG_OUT.format(prefix=self._prefix))
        cookie = self._cookie(self._sessions.end(environ.get("HTTP_COOKIE", "")))
        return _page(start_response, "200 OK", _FORM.format(prefix=self._prefix, page=""), extra=[cookie])

    def _cookie(self, pair: str) -> tuple[str, str]:
        secure = "; Secure" if self._address is not None and self._address.encrypted else ""
        return "Set-Cookie", f"{pair}; HttpOnly; SameSite=Strict; Path={self._prefix or '/'}{secure}"

    def _turn_away(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        if path.startswith("/api/"):  # a page that is open in a browser shows the reason
            return _reason(start_response, "401 Unauthorized", "log in again: reload this page")
        return self._ask(start_response, "401 Unauthorized", f"{path}?{query}" if query else path)

    def _ask(self, start_response: StartResponse, status: str, page: str, problem: str = "") -> Iterable[bytes]:
        """Show the login form, which leads to *page* where it is one of ours."""
        goal = html.escape(page, quote=True) if _PAGES.fullmatch(page) else ""
        form = _FORM.format(prefix=self._prefix, page=goal)
        return _page(start_response, status, f"<p>{problem}</p>{form}" if problem else form)

    def _shield(self, start_response: StartResponse) -> StartResponse:
        """Return a `start_response` that adds what keeps browsers from doing harm with an answer."""

        def begin(status: str, headers: list[tuple[str, str]], *error: object) -> Callable[[bytes], object]:
            shielded = Headers(list(headers))
            del shielded["Access-Control-Allow-Origin"]  # optuna-dashboard lets every page read artifacts
            for name, value in _EVERYWHERE.items():
                shielded[name] = value
            policy = shielded["Content-Security-Policy"] or "default-src 'none'; sandbox"
            shielded["Content-Security-Policy"] = policy + _FRAMES
            shielded.setdefault("Cache-Control", "no-store")
            if (goal := shielded["Location"]) is not None:  # whatever host and scheme a header made of it
                shielded["Location"] = self._prefix + urlsplit(goal).path
            return start_response(status, shielded.items(), *error)  # type: ignore[arg-type]

        return begin


def _form(environ: WSGIEnvironment) -> dict[str, str]:
    """Return the fields of a small form; none of a large one."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if not length.isdecimal() or int(length) > _LARGEST_FORM:
        return {}
    form = environ["wsgi.input"].read(int(length)).decode("utf-8", errors="replace")
    return {name: values[0] for name, values in parse_qs(form).items()}


def _digest(text: str) -> bytes:
    """Return what is compared in place of *text*: its length tells nothing."""
    return hashlib.sha256(text.encode()).digest()


def _refuse(path: str, start_response: StartResponse, reason: str) -> Iterable[bytes]:
    if path.startswith("/api/"):
        return _reason(start_response, "403 Forbidden", reason)
    return _page(start_response, "403 Forbidden", f"<p>{reason}</p>")


def _reason(start_response: StartResponse, status: str, reason: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json")])
    return [f'{{"reason": "{reason}"}}'.encode()]


def _page(
    start_response: StartResponse, status: str, body: str, *, head: str = "", extra: list[tuple[str, str]] | None = None
) -> Iterable[bytes]:
    headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Security-Policy", _PAGE_POLICY), *(extra or [])]
    start_response(status, headers)
    return [_PAGE.format(head=head, body=body).encode()]

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.util import setup_testing_defaults

import pytest

from hpo import gate
from hpo.address import Address
from hpo.gate import MOST_SESSIONS, SESSION_S, Gate

PASSWORD = "open sesame"  # noqa: S105 - of a test


@dataclass
class Inside:
    """What is behind the door: it says what it was asked for, under headers that are too generous."""

    seen: list[str] = field(default_factory=list)
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("Access-Control-Allow-Origin", "*")])
    status: str = "200 OK"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        self.seen.append(environ["PATH_INFO"])
        start_response(self.status, self.headers)
        return [b"inside"]


@dataclass
class Time:
    """A clock that a test moves."""

    now: float = 1000.0

    def __call__(self) -> float:
        """Return the seconds."""
        return self.now


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: str

    @property
    def cookie(self) -> str:
        """The session, as a browser sends it back."""
        return self.headers["Set-Cookie"].partition(";")[0]


def door(inside: Inside, clock: Time | None = None, base_url: str | None = None, *, writable: bool = False) -> Gate:
    """Return a gate before *inside*."""
    address = None if base_url is None else Address.parse(base_url)
    return Gate(inside, password=PASSWORD, writable=writable, cookie="c", address=address, clock=clock or Time())


def ask(gate: Gate, method: str, target: str, *, form: dict[str, str] | None = None, **headers: str) -> Answer:
    """Ask *gate* for *target*."""
    path, _, query = target.partition("?")
    body = urlencode(form or {}).encode()
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, **headers}
    environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
    setup_testing_defaults(environ)
    begun: list[Any] = []
    content = b"".join(gate(environ, lambda *arguments: begun.extend(arguments)))  # type: ignore[arg-type, func-returns-value]
    return Answer(int(begun[0].split()[0]), dict(begun[1]), content.decode())


def log_in(gate: Gate, page: str = "") -> Answer:
    """Send the form."""
    return ask(gate, "POST", "/login", form={"password": PASSWORD, "page": page})


def test_a_session_lasts_a_week() -> None:
    """And not a second longer."""
    clock = Time()
    gate = door(Inside(), clock)
    cookie = log_in(gate).cookie
    clock.now += SESSION_S - 1
    assert ask(gate, "GET", "/", HTTP_COOKIE=cookie).status == 200
    clock.now += 2
    assert ask(gate, "GET", "/", HTTP_COOKIE=cookie).status == 401


def test_sessions_are_bounded() -> None:
    """Who logs in for ever, with the right password, fills no memory: the oldest session ends."""
    gate = door(Inside())
    first, *_, last = [log_in(gate).cookie for _ in range(MOST_SESSIONS + 1)]
    assert ask(gate, "GET", "/", HTTP_COOKIE=first).status == 401
    assert ask(gate, "GET", "/", HTTP_COOKIE=last).status == 200


@pytest.mark.parametrize("target", ["/", "/dashboard", "/api/studies", "/artifacts/1/2/a"])
def test_every_answer_is_shielded(target: str) -> None:
    """Nothing is framed, sniffed, cached or readable from another origin, inside or at the door."""
    gate = door(Inside())
    cookie = log_in(gate).cookie
    for answer in (ask(gate, "GET", target), ask(gate, "GET", target, HTTP_COOKIE=cookie)):
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_what_has_no_policy_runs_no_script() -> None:
    """An artifact that is HTML is no page of ours; a page keeps the policy that it brings."""
    answers = []
    for headers in ([], [("Content-Security-Policy", "script-src 'self'")]):
        gate = door(Inside(headers=headers))
        answers.append(ask(gate, "GET", "/", HTTP_COOKIE=log_in(gate).cookie).headers["Content-Security-Policy"])
    assert answers[0].startswith("default-src 'none'; sandbox;")
    assert answers[1].startswith("script-src 'self';")


def test_behind_a_proxy_the_cookie_is_the_paths_own_and_encrypted() -> None:
    """Other services of that host never see it, nor does anybody on the way."""
    cookie = log_in(door(Inside(), base_url="https://lab.example/hpo/")).headers["Set-Cookie"]
    assert cookie.endswith("; HttpOnly; SameSite=Strict; Path=/hpo; Secure")
    assert log_in(door(Inside())).headers["Set-Cookie"].endswith("; HttpOnly; SameSite=Strict; Path=/")


def test_behind_a_proxy_paths_lose_the_prefix_and_redirects_gain_it() -> None:
    """Whatever host a forged header made the redirect name."""
    inside = Inside(status="302 Found", headers=[("Location", "http://elsewhere.example/dashboard")])
    gate = door(inside, base_url="https://lab.example/hpo")
    cookie = log_in(gate).cookie
    for path in ("/hpo/", "/hpo", "/"):
        assert ask(gate, "GET", path, HTTP_COOKIE=cookie).headers["Location"] == "/hpo/dashboard"
    assert inside.seen == ["/", "/", "/"]


@pytest.mark.parametrize(
    ("base_url", "origin", "host", "status"),
    [
        (None, "http://127.0.0.1:8080", "127.0.0.1:8080", 200),
        (None, "http://127.0.0.1:9999", "127.0.0.1:8080", 403),
        (None, "null", "127.0.0.1:8080", 403),
        ("https://lab.example/hpo", "https://lab.example", "127.0.0.1:8080", 200),
        ("https://lab.example/hpo", "http://lab.example", "lab.example", 403),
        ("https://lab.example/hpo", "https://other.example", "other.example", 403),
    ],
)
def test_only_our_own_pages_write(base_url: str | None, origin: str, host: str, status: int) -> None:
    """The proxy's address is the origin where there is one, whatever the request says of its host."""
    gate = door(Inside(), base_url=base_url, writable=True)
    cookie = log_in(gate).cookie
    answer = ask(gate, "DELETE", "/api/studies/1", HTTP_COOKIE=cookie, HTTP_ORIGIN=origin, HTTP_HOST=host)
    assert answer.status == status


def test_logging_in_leads_to_the_page_that_was_asked_for() -> None:
    """A link to a trial, sent to a colleague, opens that trial; a link to elsewhere does not."""
    gate = door(Inside(), base_url="https://lab.example/hpo")
    form = ask(gate, "GET", "/hpo/dashboard/studies/1/trials?numbers=2").body
    assert 'value="/dashboard/studies/1/trials?numbers=2"' in form
    assert 'action="/hpo/login"' in form
    assert (
        "0;url=/hpo/dashboard/studies/1/trials?numbers=2" in log_in(gate, "/dashboard/studies/1/trials?numbers=2").body
    )
    for page in ("https://elsewhere.example", "//elsewhere.example", '/dashboard"><script>', "/dashboard/\n"):
        assert '0;url=/hpo/dashboard"' in log_in(gate, page).body
        assert "elsewhere" not in ask(gate, "GET", page).body
        assert "<script>" not in ask(gate, "GET", page).body


def test_an_open_page_says_why_it_gets_nothing_more() -> None:
    """Its calls get JSON, as it expects, also when they would write."""
    gate = door(Inside())
    assert "log in again" in ask(gate, "GET", "/api/studies").body
    refused = ask(gate, "DELETE", "/api/studies/1", HTTP_COOKIE=log_in(gate).cookie)
    assert (refused.status, refused.headers["Content-Type"]) == (403, "application/json")
    assert "read-only" in refused.body


def test_a_wrong_password_holds_up_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever guesses cannot keep the person with the link out."""
    opened: list[int] = []
    gates = door(Inside())

    def meanwhile(_seconds: float) -> None:
        opened.append(ask(gates, "GET", f"/?token={gates.token}").status)

    monkeypatch.setattr(gate.time, "sleep", meanwhile)
    assert ask(gates, "POST", "/login", form={"password": "x"}).status == 401
    assert opened == [200]

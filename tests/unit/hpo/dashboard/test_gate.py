from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode
from wsgiref.types import StartResponse, WSGIEnvironment
from wsgiref.util import setup_testing_defaults

import pytest

from hpo.dashboard import gate
from hpo.dashboard.address import Address
from hpo.dashboard.gate import FAILURE_DELAY_S, MOST_TRYING, Gate
from hpo.dashboard.sessions import MOST_SESSIONS, SESSION_S

PASSWORD = "open sesame"  # noqa: S105 - of a test


@dataclass
class Inside:
    """What is behind the door: it says what it was asked for, under headers that are too generous."""

    seen: list[str] = field(default_factory=list)
    environ: WSGIEnvironment = field(default_factory=dict)
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("Access-Control-Allow-Origin", "*")])
    status: str = "200 OK"

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        self.seen.append(environ["PATH_INFO"])
        self.environ = environ
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


def door(
    inside: Inside,
    clock: Time | None = None,
    base_url: str | None = None,
    *,
    writable: bool = False,
    local: bool = False,
) -> Gate:
    """Return a gate before *inside*."""
    address = None if base_url is None else Address.parse(base_url)
    clock = clock or Time()
    return Gate(inside, password=PASSWORD, writable=writable, cookie="c", address=address, local=local, clock=clock)


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
        assert answer.headers["Referrer-Policy"] == "same-origin"
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
    assert ("another address" in answer.body) is (status == 403)


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


@pytest.mark.parametrize(
    "cookies",
    [
        'a={"x": 1}; %s',
        "theme=a b; %s",
        "flag; %s",
        "path=/; %s",
        "[x]=1; %s",
        "a=\xe4; %s",
        "c=evil; %s",
        "%s; c=evil",
        "%s;a=b",
    ],
)
def test_cookies_of_others_keep_nobody_out(cookies: str) -> None:
    """Another server of this host, on whatever port, may have set them; our name among theirs opens nothing by itself."""
    gate = door(Inside())
    assert ask(gate, "GET", "/", HTTP_COOKIE=cookies % log_in(gate).cookie).status == 200
    assert ask(gate, "GET", "/", HTTP_COOKIE=cookies % "c=x").status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_SEC_FETCH_SITE": "cross-site"},
        {"HTTP_SEC_FETCH_SITE": "same-site"},
        {"HTTP_ORIGIN": "https://elsewhere.example"},
        {"HTTP_ORIGIN": "http://["},
    ],
)
def test_a_page_of_another_site_cannot_try_passwords(headers: dict[str, str]) -> None:
    """It is refused at once, and keeps nobody from trying."""
    gate = door(Inside())
    began = time.monotonic()
    answer = ask(gate, "POST", "/login", form={"password": "x"}, **headers)
    assert (answer.status, "another address" in answer.body) == (403, True)
    assert ask(gate, "POST", "/login", form={"password": PASSWORD}, **headers).status == 403
    assert time.monotonic() - began < FAILURE_DELAY_S


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9000", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:8080", 200),
        ("elsewhere.example", 403),
        ("127.0.0.1.elsewhere.example:8080", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_on_loopback_only_the_names_of_this_machine_are_answered_to(host: str, status: int) -> None:
    """A site that makes its own name mean 127.0.0.1 reaches no form; a tunnel of another port reaches everything."""
    gate = door(Inside(), local=True)
    form = {"password": PASSWORD}
    assert ask(gate, "POST", "/login", form=form, HTTP_HOST=host, HTTP_ORIGIN=f"http://{host}").status == status


@pytest.mark.parametrize("host", ["lab.example", "127.0.0.1:8080", "["])
def test_whatever_host_a_proxy_or_a_container_gets_is_answered(host: str) -> None:
    """With an address the host says nothing, without one any is somebody's; what is behind never has to understand it."""
    inside = Inside()
    for each in (door(inside, base_url="https://lab.example/hpo", local=True), door(inside)):
        assert ask(each, "GET", "/", HTTP_COOKIE=log_in(each).cookie, HTTP_HOST=host).status == 200
        assert inside.environ["HTTP_HOST"] == "dashboard"
        assert inside.environ["HTTP_ACCEPT_ENCODING"] == ""


def test_the_right_password_waits_behind_wrong_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not turned away while there is room; only so many wait that there are threads for everybody else."""
    paying, go_on = threading.Event(), threading.Event()

    def pay(_seconds: float) -> None:
        paying.set()
        go_on.wait(10)

    monkeypatch.setattr(gate.time, "sleep", pay)
    gates = door(Inside())
    statuses: list[int] = []

    def attempt(password: str) -> None:
        statuses.append(ask(gates, "POST", "/login", form={"password": password}).status)

    tries = [threading.Thread(target=attempt, args=(each,)) for each in ("x", *[PASSWORD] * (MOST_TRYING - 1))]
    tries[0].start()
    assert paying.wait(10)
    for each in tries[1:]:
        each.start()
    while gates._room.acquire(blocking=False):  # not all of them are there yet
        gates._room.release()
    attempt(PASSWORD)
    assert statuses == [429]
    go_on.set()
    for each in tries:
        each.join()
    assert statuses[1:] == [401, *[200] * (MOST_TRYING - 1)]


def test_logging_out_ends_the_session() -> None:
    """Read-only too, by a button at /logout that only our own page can press; the cookie opens nothing any more."""
    gate = door(Inside(), base_url="https://lab.example/hpo")
    cookie, other = log_in(gate).cookie, log_in(gate).cookie
    assert 'action="/hpo/logout"' in ask(gate, "GET", "/hpo/logout", HTTP_COOKIE=cookie).body
    assert ask(gate, "POST", "/hpo/logout", HTTP_COOKIE=cookie, HTTP_ORIGIN="https://x.example").status == 403
    assert ask(gate, "GET", "/hpo/", HTTP_COOKIE=cookie).status == 200
    answer = ask(gate, "POST", "/hpo/logout", HTTP_COOKIE=cookie, HTTP_ORIGIN="https://lab.example")
    assert "Max-Age=0; HttpOnly; SameSite=Strict; Path=/hpo; Secure" in answer.headers["Set-Cookie"]
    assert ask(gate, "GET", "/hpo/", HTTP_COOKIE=cookie).status == 401
    assert ask(gate, "GET", "/hpo/", HTTP_COOKIE=other).status == 200

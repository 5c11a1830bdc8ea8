from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.cookiejar import CookieJar

import optuna
import psutil
import pytest
from optuna.storages import BaseStorage
from sqlalchemy import URL

from hpo.dashboard import FAILURE_DELAY_S, Dashboard, serve
from storage.study_storage import open_storage

PASSWORD = "päss wörd&=%"  # noqa: S105 - of a test


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    text: str
    headers: dict[str, str]


class Browser:
    """Asks as a browser does: keeps cookies, follows nothing that is not HTTP."""

    def __init__(self, dashboard: Dashboard) -> None:
        self.url = dashboard.url.rstrip("/")
        self.cookies = CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))

    def ask(self, path: str, method: str = "GET", data: bytes | None = None, **headers: str) -> Answer:
        """Return the answer, whatever its status."""
        url = path if path.startswith("http") else f"{self.url}{path}"
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - our own server's
        try:
            response = self._opener.open(request, timeout=20)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            return Answer(response.status, response.read().decode(errors="replace"), dict(response.headers))

    def log_in(self, password: str) -> Answer:
        """Send the login form."""
        form = urllib.parse.urlencode({"password": password}).encode()
        return self.ask("/login", "POST", form, **{"Content-Type": "application/x-www-form-urlencoded"})


@pytest.fixture
def studies(database_url: URL) -> Iterator[BaseStorage]:
    """A storage with one study of one finished trial."""
    storage = open_storage(database_url, application_name="dashboard")
    study = optuna.create_study(study_name="density", storage=storage.optuna, direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.6, user_attrs={"note": "kept"}))
    yield storage.optuna
    storage.engine.dispose()


def running(studies: BaseStorage, *, writable: bool) -> Iterator[Dashboard]:
    """Run a dashboard on a free port while a test uses it."""
    dashboard = serve(studies, password=PASSWORD, port=0, writable=writable)
    thread = threading.Thread(target=dashboard.run)
    thread.start()
    yield dashboard
    dashboard.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture
def dashboard(studies: BaseStorage) -> Iterator[Dashboard]:
    """A read-only dashboard."""
    yield from running(studies, writable=False)


@pytest.fixture
def writable_dashboard(studies: BaseStorage) -> Iterator[Dashboard]:
    """A dashboard that may write."""
    yield from running(studies, writable=True)


def test_nothing_without_the_password(dashboard: Dashboard) -> None:
    """No page, no endpoint and no file answers to who has no session."""
    browser = Browser(dashboard)
    paths = (
        "/",
        "/dashboard",
        "/api/studies",
        "//api/studies",
        "/api/studies/",
        "/csv/1",
        "/static/bundle.js",
        "/login",
    )
    asked = [("GET", path) for path in paths]
    asked += [("HEAD", "/api/studies"), ("DELETE", "/api/studies/1"), ("PUT", "/api/studies/1/note")]
    asked += [("POST", path) for path in ("/api/studies", "/login/../api/studies", "/incompatible-rdb-schema")]
    answers = {(method, path): browser.ask(path, method) for method, path in asked}
    assert {key: answer.status for key, answer in answers.items()} == dict.fromkeys(answers, 401)
    assert not any("density" in answer.text for answer in answers.values())


def test_the_password_opens_the_study(dashboard: Dashboard) -> None:
    """With the password the page opens, and the study is there; the cookie is out of reach of scripts and other sites."""
    browser = Browser(dashboard)
    entered = browser.log_in(PASSWORD)
    assert entered.status == 200
    assert "HttpOnly" in entered.headers["Set-Cookie"]
    assert "SameSite=Strict" in entered.headers["Set-Cookie"]
    page = browser.ask("/")
    assert page.status == 200
    assert "bundle.js" in page.text
    assert browser.ask("/static/bundle.js").status == 200
    (study,) = json.loads(browser.ask("/api/studies").text)["study_summaries"]
    assert study["study_name"] == "density"
    detail = json.loads(browser.ask(f"/api/studies/{study['study_id']}").text)
    assert detail["best_trials"][0]["values"] == [0.6]


def test_the_link_works_once(dashboard: Dashboard) -> None:
    """The printed link opens without the password; used again, by somebody else, it opens nothing."""
    assert dashboard.url_with_token.startswith("http://127.0.0.1:")
    first, second = Browser(dashboard), Browser(dashboard)
    assert first.ask(dashboard.url_with_token).status == 200
    assert first.ask("/api/studies").status == 200
    assert first.ask(dashboard.url_with_token).status == 200  # whoever is in stays in
    assert second.ask(dashboard.url_with_token).status == 401
    assert second.ask("/?token=").status == 401
    assert second.ask("/api/studies").status == 401


@pytest.mark.parametrize("password", ["", "päss wörd&=", f"{PASSWORD} ", "x" * 10_000])
def test_a_wrong_password_costs_time_and_opens_nothing(dashboard: Dashboard, password: str) -> None:
    """What is not the password is answered late, with 401, and no session."""
    browser = Browser(dashboard)
    began = time.monotonic()
    answer = browser.log_in(password)
    assert time.monotonic() - began >= FAILURE_DELAY_S
    assert answer.status == 401
    assert not list(browser.cookies)
    assert browser.ask("/api/studies").status == 401


def test_guesses_do_not_run_side_by_side(dashboard: Dashboard) -> None:
    """While a wrong password is being paid for, another try is turned away at once, and the pages still answer."""
    insider = Browser(dashboard)
    insider.log_in(PASSWORD)
    statuses: list[int] = []
    guessers = [
        threading.Thread(target=lambda: statuses.append(Browser(dashboard).log_in("x").status)) for _ in range(12)
    ]
    for guesser in guessers:
        guesser.start()
    assert insider.ask("/api/studies").status == 200
    for guesser in guessers:
        guesser.join()
    assert set(statuses) == {401, 429}


@pytest.mark.parametrize(
    "cookie", ["mammography_{port}=", "mammography_{port}=x", "a;b=;;=", "mammography_{port}={token}"]
)
def test_a_made_up_cookie_opens_nothing(dashboard: Dashboard, cookie: str) -> None:
    """Cookies that are wrong or no cookies at all are no session."""
    port = str(urllib.parse.urlsplit(dashboard.url).port)
    token = dashboard.url_with_token.partition("token=")[2]
    answer = Browser(dashboard).ask("/api/studies", Cookie=cookie.format(port=port, token=token))
    assert answer.status == 401


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("DELETE", "/api/studies/{study}", b"{}"),
        ("POST", "/api/studies", b'{"study_name": "new", "directions": ["maximize"]}'),
        ("POST", "/api/studies/{study}/rename", b'{"study_name": "new"}'),
        ("PUT", "/api/studies/{study}/note", b'{"version": 1, "body": "x"}'),
        ("POST", "/api/trials/{trial}/user-attrs", b'{"user_attrs": {"note": "x"}}'),
        ("PATCH", "/api/studies/{study}", b""),
        ("OPTIONS", "/api/studies/{study}", None),
    ],
)
def test_read_only_refuses_what_writes(
    dashboard: Dashboard, studies: BaseStorage, method: str, path: str, body: bytes | None
) -> None:
    """Whoever has the password of a read-only dashboard reads, and changes nothing."""
    browser = Browser(dashboard)
    browser.log_in(PASSWORD)
    (study,) = studies.get_all_studies()
    (trial,) = studies.get_all_trials(study._study_id)
    override = {"Content-Type": "application/json", "X-HTTP-Method-Override": "DELETE"}
    place = path.format(study=study._study_id, trial=trial._trial_id)
    assert browser.ask(place, method, body, **override).status == 403
    assert browser.ask(f"/api/studies/{study._study_id}", "GET", **override).status == 200
    assert [s.study_name for s in studies.get_all_studies()] == ["density"]
    assert studies.get_trial(trial._trial_id).user_attrs == {"note": "kept"}
    assert studies.get_study_system_attrs(study._study_id) == {}


def test_reading_writes_nothing(dashboard: Dashboard, studies: BaseStorage) -> None:
    """Every page and endpoint that can be read leaves the study as it was."""
    browser = Browser(dashboard)
    browser.log_in(PASSWORD)
    (study,) = studies.get_all_studies()
    number = study._study_id
    before = (
        studies.get_all_trials(number),
        studies.get_study_system_attrs(number),
        studies.get_study_user_attrs(number),
    )
    for path in (
        "/",
        "/api/meta",
        "/api/studies",
        f"/api/studies/{number}",
        f"/csv/{number}",
        "/incompatible-rdb-schema",
    ):
        assert browser.ask(path).status == 200
    browser.ask(f"/api/studies/{number}/param_importances")
    after = (
        studies.get_all_trials(number),
        studies.get_study_system_attrs(number),
        studies.get_study_user_attrs(number),
    )
    assert after == before


def test_writable_writes_for_its_own_pages_only(writable_dashboard: Dashboard, studies: BaseStorage) -> None:
    """Where it was asked for, the dashboard deletes; a page of another port on this machine cannot make it."""
    browser = Browser(writable_dashboard)
    browser.log_in(PASSWORD)
    (study,) = studies.get_all_studies()
    path = f"/api/studies/{study._study_id}"
    json_type = {"Content-Type": "application/json"}
    assert browser.ask(path, "DELETE", b"{}", Origin="http://127.0.0.1:1", **json_type).status == 403
    assert Browser(writable_dashboard).ask(path, "DELETE", b"{}", **json_type).status == 401
    assert len(studies.get_all_studies()) == 1
    assert browser.ask(path, "DELETE", b"{}", Origin=browser.url, **json_type).status == 204
    assert studies.get_all_studies() == []


def test_it_listens_on_loopback_only(dashboard: Dashboard) -> None:
    """By default no other machine reaches it."""
    port = urllib.parse.urlsplit(dashboard.url).port
    listening = {c.laddr.ip for c in psutil.Process().net_connections("inet") if c.laddr.port == port and not c.raddr}
    assert listening == {"127.0.0.1"}


def test_a_taken_port_and_an_empty_password_are_refused(studies: BaseStorage) -> None:
    """Neither a door without a lock nor a port that somebody else has."""
    with pytest.raises(ValueError, match="password"):
        serve(studies, password="", port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(studies, password=PASSWORD, port=taken.getsockname()[1])

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar
from pathlib import Path

import optuna
import psutil
import pytest
import sqlalchemy as sa
from optuna.storages import BaseStorage
from sqlalchemy import URL

from hpo.dashboard.address import Address
from hpo.dashboard.gate import FAILURE_DELAY_S
from hpo.dashboard.serving import Dashboard, serve
from storage.artifact_store import open_artifacts
from storage.study_storage import StudyStorage, open_storage
from storage.tree import OutputTree
from tests.exhibition import CSV, artifact, register, trial
from tests.reverse_proxy import reverse_proxy

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
def storage(database_url: URL) -> Iterator[StudyStorage]:
    """A storage with one study of one finished trial."""
    opened = open_storage(database_url, application_name="dashboard")
    study = optuna.create_study(study_name="density", storage=opened.optuna, direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=0.6, user_attrs={"note": "kept"}))
    yield opened
    opened.engine.dispose()


@pytest.fixture
def studies(storage: StudyStorage) -> BaseStorage:
    """The same, as Optuna sees it."""
    return storage.optuna


def tree(folder: Path) -> OutputTree:
    """Return the output tree of a test."""
    return OutputTree(folder / "outputs")


@contextmanager
def running(dashboard: Dashboard) -> Iterator[Dashboard]:
    """Run a dashboard while a test uses it."""
    thread = threading.Thread(target=dashboard.run)
    thread.start()
    try:
        yield dashboard
    finally:
        dashboard.close()
        thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture
def dashboard(storage: StudyStorage, tmp_path: Path) -> Iterator[Dashboard]:
    """A read-only dashboard."""
    with running(serve(storage, tree(tmp_path), password=PASSWORD, port=0)) as served:
        yield served


@pytest.fixture
def writable_dashboard(storage: StudyStorage, tmp_path: Path) -> Iterator[Dashboard]:
    """A dashboard that may write."""
    with running(serve(storage, tree(tmp_path), password=PASSWORD, port=0, writable=True)) as served:
        yield served


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
    """While wrong passwords are being paid for, few wait, the others are turned away, and the pages still answer."""
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


def test_a_taken_port_and_an_empty_password_are_refused(storage: StudyStorage, tmp_path: Path) -> None:
    """Neither a door without a lock nor a port that somebody else has."""
    with pytest.raises(ValueError, match="password"):
        serve(storage, tree(tmp_path), password="", port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        serve(storage, tree(tmp_path), password=PASSWORD, port=taken.getsockname()[1])


@pytest.mark.parametrize("strips", [True, False])
def test_below_a_path_of_a_reverse_proxy(storage: StudyStorage, tmp_path: Path, strips: bool) -> None:
    """Page, script, calls, redirects and writes work below the path, whether or not the proxy takes it away."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = Address.parse(f"http://127.0.0.1:{port}/lab/hpo")
    served = serve(storage, tree(tmp_path), password=PASSWORD, port=0, writable=True, address=address)
    assert served.url == f"http://127.0.0.1:{port}/lab/hpo/"
    target = f"http://127.0.0.1:{served.port}"
    with running(served), reverse_proxy(target, "/lab/hpo", strips=strips, port=port):
        browser = Browser(served)
        form = browser.ask("/dashboard/studies/1")
        assert form.status == 401
        assert 'action="/lab/hpo/login"' in form.text
        assert browser.log_in(PASSWORD).status == 200
        assert {cookie.path for cookie in browser.cookies} == {"/lab/hpo"}
        page = browser.ask("/")  # redirected
        assert ' src="/lab/hpo/static/bundle.js"' in page.text
        script = browser.ask("/static/bundle.js")
        assert 'url_prefix:"/lab/hpo/dashboard"' in script.text
        assert browser.ask("/static/bundle.js", **{"If-None-Match": script.headers["Etag"]}).status == 304
        (study,) = json.loads(browser.ask("/api/studies").text)["study_summaries"]
        path = f"/api/studies/{study['study_id']}"
        json_type = {"Content-Type": "application/json"}
        assert browser.ask(path, "DELETE", b"{}", Origin=target, **json_type).status == 403
        assert browser.ask(path, "DELETE", b"{}", Origin=address.origin, **json_type).status == 204


def test_what_a_client_says_of_itself_is_not_believed(dashboard: Dashboard) -> None:
    """Forwarded hosts and schemes change no redirect, and an address that is claimed does not shorten the wait."""
    browser = Browser(dashboard)
    browser.log_in(PASSWORD)
    page = browser.ask("/", **{"X-Forwarded-Host": "elsewhere.example", "X-Forwarded-Proto": "https"})
    assert (page.status, "bundle.js" in page.text) == (200, True)


def test_a_defect_shows_no_traceback(dashboard: Dashboard) -> None:
    """What goes wrong inside is an error without a word of our source."""
    browser = Browser(dashboard)
    browser.log_in(PASSWORD)
    for path in (
        "/api/studies/1?after=x",
        "/api/studies/99999/plot/contour",
        "/csv/1?trial_ids=x",
        "/api/studies/1?after=-1",
    ):
        answer = browser.ask(path)
        assert answer.status in {400, 404, 500}
        assert "Traceback" not in answer.text
        assert "site-packages" not in answer.text


def test_artifacts_open_as_what_cannot_do_harm(storage: StudyStorage, tmp_path: Path) -> None:
    """A picture is shown; HTML and SVG are downloads in a sandbox; nobody else's page reads them; what is missing is said."""
    store = open_artifacts(str(tmp_path / "artifacts"))
    study_id = register(storage, "ours")
    kinds = {
        "a.png": "image/png",
        "b.csv": "text/csv",
        "c.html": "text/html",
        "d.svg": "image/svg+xml",
        'e\r\n".x': "a b",
    }
    attributes = [artifact(store, name, kind, CSV.encode()) for name, kind in kinds.items()]
    study = optuna.load_study(study_name="ours", storage=storage.optuna)
    study.add_trial(trial(0, {key: value for each in attributes for key, value in each.items()}))
    (seen,) = study.get_trials(deepcopy=False)
    path = f"/artifacts/{study_id}/{seen._trial_id}"
    names = [next(iter(each)).removeprefix("artifacts:") for each in attributes]
    with running(serve(storage, tree(tmp_path), password=PASSWORD, port=0, artifacts=store)) as served:
        browser = Browser(served)
        assert browser.ask(f"{path}/{names[0]}").status == 401
        browser.log_in(PASSWORD)
        answers = {kind: browser.ask(f"{path}/{name}") for name, kind in zip(names, kinds.values(), strict=True)}
        assert {answer.text for answer in answers.values()} == {CSV}
        shown = {kind for kind, answer in answers.items() if "Content-Disposition" not in answer.headers}
        assert shown == {"image/png"}
        assert {answer.headers["Content-Type"] for answer in answers.values()} == {
            "image/png",
            "text/csv",
            "text/html",
            "image/svg+xml",
            "application/octet-stream",
        }
        assert all("sandbox" in answer.headers["Content-Security-Policy"] for answer in answers.values())
        assert not any("Access-Control-Allow-Origin" in answer.headers for answer in answers.values())
        store.remove(names[0])
        assert browser.ask(f"{path}/{names[0]}").status == 404
        assert browser.ask(f"/artifacts/{study_id}/{seen._trial_id}/00").status == 404
        assert browser.ask(f"/artifacts/{study_id + 1}/{seen._trial_id}/{names[1]}").status == 404
        assert browser.ask("/artifacts/999999999999999999/1/00").status == 404
        # What belongs to the study, as Optuna's upload_artifact writes it down, is answered by the same rules.
        (own,) = (key for key in attributes[2])
        storage.optuna.set_study_system_attr(study_id, own, attributes[2][own])
        for place in (f"/artifacts/{study_id}/{names[2]}", f"{path}/{names[2]}"):
            page = browser.ask(place)
            assert (page.status, page.text) == (200, CSV)
            assert page.headers["Content-Disposition"].startswith("attachment")
            head = browser.ask(place, "HEAD")
            assert (head.status, head.text, head.headers["Content-Type"]) == (200, "", "text/html")
            assert head.headers["Content-Disposition"].startswith("attachment")
        assert browser.ask(f"{path}/{names[0]}", "HEAD").status == 404
        assert browser.ask(f"/artifacts/{study_id}/{names[1]}").status == 404


@dataclass
class Away:
    """A way to the database that a test cuts."""

    url: URL

    def cut(self) -> None:
        """Let no one in any more, and throw out who is in."""
        with self._outside().connect() as connection:
            name = self.url.database
            connection.execute(sa.text(f'alter database "{name}" allow_connections false'))
            connection.execute(
                sa.text("select pg_terminate_backend(pid) from pg_stat_activity where datname = :name"), {"name": name}
            )

    def mend(self) -> None:
        """Let everybody in again."""
        with self._outside().connect() as connection:
            connection.execute(sa.text(f'alter database "{self.url.database}" allow_connections true'))

    def _outside(self) -> sa.Engine:
        return sa.create_engine(self.url.set(database="postgres"), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")


def test_a_database_that_is_away_is_said(
    dashboard: Dashboard, studies: BaseStorage, database_url: URL, caplog: pytest.LogCaptureFixture
) -> None:
    """As an answer that pages understand, in one line of the log each; and later everything is as before."""
    browser = Browser(dashboard)
    browser.log_in(PASSWORD)
    (study,) = studies.get_all_studies()
    paths = ("/api/studies", f"/api/studies/{study._study_id}", f"/csv/{study._study_id}", "/artifacts/1/2/00")
    away = Away(database_url)
    away.cut()
    try:
        answers = [browser.ask(path) for path in paths]
    finally:
        away.mend()
    assert {answer.status for answer in answers} == {503}
    assert {answer.text for answer in answers} == {'{"reason": "the database is away"}'}
    said = [record for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
    assert [record.exc_info for record in said] == [None] * len(paths)
    assert all("\n" not in record.getMessage() for record in said)
    assert browser.ask(paths[1]).status == 200


def test_a_study_whose_name_is_no_file_name_has_no_csv(dashboard: Dashboard, studies: BaseStorage) -> None:
    """A line break in it would end a header."""
    study_id = studies.create_new_study([optuna.study.StudyDirection.MINIMIZE], "a\r\nb")
    browser = Browser(dashboard)
    browser.log_in(PASSWORD)
    assert browser.ask(f"/csv/{study_id}").status == 404
    assert browser.ask("/csv/99999").status == 404
    (ours,) = (each._study_id for each in studies.get_all_studies() if each.study_name == "density")
    assert "0.6" in browser.ask(f"/csv/{ours}").text


def test_a_client_that_says_little_gets_pages(dashboard: Dashboard) -> None:
    """No encodings that it accepts, as a script asks, and a host that nobody can read."""
    browser = Browser(dashboard)
    browser.log_in(PASSWORD)
    (cookie,) = (f"{each.name}={each.value}" for each in browser.cookies)
    for path in ("/static/bundle.js", "/favicon.ico"):
        with socket.create_connection(("127.0.0.1", dashboard.port), timeout=10) as asking:
            asking.sendall(f"HEAD {path} HTTP/1.1\r\nCookie: {cookie}\r\nConnection: close\r\n\r\n".encode())
            assert asking.recv(1 << 16).split()[1] == b"200"
    assert browser.ask("/", Host="[").status == 403
    assert browser.ask("/", Host="localhost:1").status == 200

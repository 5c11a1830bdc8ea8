"""What people see on the dashboard, in a real browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from sqlalchemy import URL

from storage.artifact_store import open_artifacts
from storage.study_storage import StudyStorage, open_storage
from tests.conftest import PROJECT
from tests.exhibition import exhibit, note
from tests.reverse_proxy import reverse_proxy

PASSWORD = "in here, please"  # noqa: S105 - of a test
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(_PROGRAMS)})")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the pages complained about."""
    return []


@pytest.fixture
def page(chromium: Browser, complaints: list[str]) -> Iterator[Page]:
    """A page with cookies of its own; it keeps what the browser complains about, content policies among it."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    page = _watched(context, complaints)
    yield page
    context.close()


def _watched(context: BrowserContext, complaints: list[str]) -> Page:
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.append(f"{said.text} {said.location}") if said.type == "error" else None)
    return page


@pytest.fixture
def storage(database_url: URL, tmp_path: Path) -> Iterator[StudyStorage]:
    """A study of six finished trials, with artifacts beside it."""
    opened = open_storage(database_url, application_name="browser")
    exhibit(opened, open_artifacts(str(tmp_path / "artifacts")), PROJECT / "docs" / "phantom.png", trials=6)
    yield opened
    opened.engine.dispose()


@dataclass(frozen=True)
class Served:
    """A dashboard in a process of its own."""

    url: str
    """As it was printed; on a terminal it opens without the password, once."""
    said: str
    """All that was printed."""


@contextmanager
def serving(database_url: URL, outputs: Path, *flags: str, terminal: bool = False) -> Iterator[Served]:
    """Run `mammography dashboard` while a test uses it, maybe on a terminal; it ends in order when it is asked to."""
    where = ["--database", database_url.render_as_string(hide_password=False), "--outputs", str(outputs)]
    ours, theirs = os.openpty() if terminal else os.pipe()
    with os.fdopen(ours, encoding="utf-8", closefd=True) as said, os.fdopen(theirs, "w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "hpo.cli", "dashboard", *where, *flags], cwd=PROJECT, stdout=out
        )
        try:
            lines = said.readline() + said.readline()
            yield Served(lines.split()[1], lines)
            process.terminate()
            assert process.wait(timeout=15) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def log_in(page: Page, url: str) -> None:
    """Open *url*, fill in the form and wait for the page behind it."""
    page.goto(url)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Open").click()
    page.wait_for_url(re.compile(r"/dashboard"))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def look_around(page: Page, base: str) -> None:
    """Find the study, read its note, look at its plot, open a trial, and see its note, picture and table."""
    page.get_by_text("density").first.click()
    page.wait_for_url(f"{base}/dashboard/studies/*")
    expect(page.locator("[id='user-defined-plot:fold-scores'] .main-svg").first).to_be_visible()
    study = page.url.rstrip("/")
    page.goto(f"{study}/note")
    expect(page.get_by_text("60 images of 30 patients")).to_be_visible()
    page.goto(f"{study}/analytics")
    expect(page.locator(".main-svg").first).to_be_visible()
    page.goto(f"{study}/trials?numbers=2")
    expect(page.get_by_role("heading", name="Trial 2", exact=True)).to_be_visible()
    assert "configuration and" in note(2)
    expect(page.get_by_text("configuration and")).to_be_visible()
    picture = page.locator("img[src*='/artifacts/']").first
    picture.scroll_into_view_if_needed()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture.element_handle())
    page.get_by_label("show artifact table").first.click()
    expect(page.get_by_role("cell", name="77bc")).to_be_visible()


def test_the_password_opens_a_study_with_pictures_and_notes(
    page: Page, complaints: list[str], storage: StudyStorage, database_url: URL, tmp_path: Path
) -> None:
    """Nothing without it; with it the study, a trial, its pictures, note and table; nothing can be deleted; and out again."""
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n", encoding="utf-8")
    file.chmod(0o600)
    with serving(database_url, tmp_path, "--port", "0", "--password-file", str(file)) as served:
        assert PASSWORD not in served.said
        assert "token" not in served.said  # that is for a terminal
        base = served.url.rstrip("/")
        page.goto(f"{base}/dashboard/studies/1")
        expect(page.get_by_label("Password")).to_be_visible()
        assert "density" not in page.content()
        page.get_by_label("Password").fill("guessed")
        page.get_by_role("button", name="Open").click()
        expect(page.get_by_text("That is not the password.")).to_be_visible()
        log_in(page, served.url)
        complaints.clear()  # of 401, as it should be
        look_around(page, base)
        assert complaints == []
        statuses = page.evaluate(
            """async () => Promise.all([["/api/studies/1", "DELETE"], ["/api/studies/1/note", "PUT"], ["/api/studies", "POST"]]
               .map(async ([path, method]) => (await fetch(path, {method, body: "{}"})).status))"""
        )
        assert statuses == [403, 403, 403]
        page.goto(f"{base}/dashboard")
        expect(page.get_by_text("density").first).to_be_visible()
        page.goto(f"{base}/logout")
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Password")).to_be_visible()
        page.goto(f"{base}/dashboard")
        expect(page.get_by_label("Password")).to_be_visible()
    assert [each.study_name for each in storage.optuna.get_all_studies()] == ["density"]


def test_a_link_on_a_terminal_opens_it_below_a_path_of_a_reverse_proxy(
    page: Page, complaints: list[str], storage: StudyStorage, database_url: URL, tmp_path: Path
) -> None:
    """The same at a proxy's address, by the link that a terminal shows; and what may be written is written from there."""
    port, inner = free_port(), free_port()
    base = f"http://127.0.0.1:{port}/lab/hpo"
    flags = ("--port", str(inner), "--base-url", base, "--writable")
    with (
        serving(database_url, tmp_path, *flags, terminal=True) as served,
        reverse_proxy(f"http://127.0.0.1:{inner}", "/lab/hpo", strips=True, port=port),
    ):
        assert served.url.startswith(f"{base}/?token=")
        kept = tmp_path / ".dashboard-password"
        assert str(kept) in served.said
        assert kept.read_text(encoding="utf-8").strip() not in served.said
        page.goto(served.url)
        page.wait_for_url(f"{base}/dashboard")
        look_around(page, base)
        assert complaints == []
        body = json.dumps({"version": 1, "body": "written by a person"})
        status = page.evaluate(
            """async body => (await fetch("/lab/hpo/api/studies/1/note",
               {method: "PUT", body, headers: {"Content-Type": "application/json"}})).status""",
            body,
        )
        assert status == 204
        page.goto(f"{base}/dashboard/studies/1/note")
        expect(page.get_by_text("written by a person")).to_be_visible()
    assert storage.optuna.get_study_system_attrs(1)["dashboard:note_ver"] == 1

"""What the command line says before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.cli import run
from hpo.settings import dashboard_password


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--password-file", "nothing"), "nothing: the dashboard's password cannot be read"),
        (("--password-file", "empty"), "empty: no password is in it"),
        (("--base-url", "lab.example/hpo"), "expected https://HOST[:PORT][/PATH]"),
        (("--base-url", "https://lab.example/api"), "choose another path"),
    ],
)
def test_what_cannot_be_is_one_line(
    flags: tuple[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, before any database is looked for."""
    monkeypatch.chdir(tmp_path)
    Path("empty").touch()
    assert run(["dashboard", "--outputs", "outputs", *flags]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not Path("outputs").exists()


def test_the_environment_names_the_password_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a container is told of it."""
    monkeypatch.setenv("MAMMOGRAPHY_DASHBOARD_PASSWORD_FILE", str(tmp_path / "missing"))
    assert run(["dashboard", "--outputs", str(tmp_path / "outputs")]) == 2
    assert str(tmp_path / "missing") in capsys.readouterr().err


def test_the_password_in_the_environment_is_taken_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database server that is started, and whatever else, does not inherit it; nobody sees it printed."""
    monkeypatch.setenv("MAMMOGRAPHY_DASHBOARD_PASSWORD", "tell-nobody")
    said = dashboard_password()
    assert said.secret == "tell-nobody"  # noqa: S105 - of a test
    assert "tell-nobody" not in repr(said)
    assert dashboard_password().secret is None
    monkeypatch.setenv("MAMMOGRAPHY_DASHBOARD_PASSWORD", "")
    assert dashboard_password().secret is None

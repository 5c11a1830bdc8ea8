"""The first run of the compose stack: passwords made once, for one user, whatever interrupts it."""

from __future__ import annotations

import os
import runpy
import stat
from collections.abc import Callable
from pathlib import Path

import psycopg2.extensions
import pytest

SCRIPT = Path(__file__).parents[3] / "docker" / "first_run.py"
SCRIPT_NAMES = runpy.run_path(str(SCRIPT))
RefusedError: type[Exception] = SCRIPT_NAMES["RefusedError"]
first_run: Callable[[Path, str, list[str]], None] = SCRIPT_NAMES["main"]


def mode(path: Path) -> int:
    """Return the permission bits of *path*."""
    return stat.S_IMODE(path.stat().st_mode)


def contents(project: Path) -> dict[str, str]:
    """Return what is in the folder of passwords, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in (project / "secrets").iterdir()}


def test_passwords_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    """Three files of mode 600 in a folder of mode 700, one password in two of them; a second run changes nothing."""
    (tmp_path / "secrets").mkdir(mode=0o755)
    first_run(tmp_path, "", [])
    made = contents(tmp_path)
    assert set(made) == {"database-password", "database.pgpass", "dashboard-password"}
    assert made["database.pgpass"] == f"*:*:*:mammography:{made['database-password']}"
    assert min(map(len, made.values())) > 20
    assert len(set(made.values())) == 3
    assert mode(tmp_path / "secrets") == 0o700
    assert {mode(path) for path in (tmp_path / "secrets").iterdir()} == {0o600}
    first_run(tmp_path, "", [])
    assert contents(tmp_path) == made


def test_a_password_of_ones_own_is_kept(tmp_path: Path) -> None:
    """It is closed to others, and the passfile of the clients is made from it, as libpq reads such a file."""
    (tmp_path / "secrets").mkdir()
    own = tmp_path / "secrets" / "database-password"
    own.write_text("a:b\\c\n", encoding="utf-8")
    own.chmod(0o644)
    first_run(tmp_path, "", [])
    assert contents(tmp_path)["database.pgpass"] == "*:*:*:mammography:a\\:b\\\\c\n"
    assert mode(own) == 0o600


def test_a_killed_run_is_continued(tmp_path: Path) -> None:
    """What a kill left half written is made again; what was complete stays."""
    first_run(tmp_path, "", [])
    made = contents(tmp_path)
    (tmp_path / "secrets" / "database.pgpass").unlink()
    (tmp_path / "secrets" / ".database.pgpass.new").write_text("*:*", encoding="utf-8")
    first_run(tmp_path, "", [])
    assert contents(tmp_path) == made


def test_an_empty_password_is_none(tmp_path: Path) -> None:
    """A file in which nothing is would let everybody in, or nobody: it is refused by its name."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "dashboard-password").touch()
    with pytest.raises(RefusedError, match=r"secrets/dashboard-password is empty"):
        first_run(tmp_path, "", [])


def test_another_user_is_told_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whom the folder does not belong to makes nothing in it; the one line names what to write and where."""
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    with pytest.raises(RefusedError) as caught:
        first_run(tmp_path, "", ["./outputs"])
    owner = tmp_path.stat()
    assert f"write the line HOST_USER={owner.st_uid}:{owner.st_gid} into the file .env" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("given_away", ["secrets", "secrets/database-password"])
def test_passwords_of_somebody_else_are_not_used(tmp_path: Path, given_away: str) -> None:
    """A run as another user, before `.env` had the line, may have left them: the one line says how they are given back."""
    first_run(tmp_path, "", [])
    os.chown(tmp_path / given_away, 4711, 4711)
    with pytest.raises(RefusedError, match=rf"sudo chown -R 0:0 {given_away}$"):
        first_run(tmp_path, "", [])


def test_folders_of_the_project_are_made(tmp_path: Path) -> None:
    """Docker would make them as root; what lies outside is its owner's business."""
    project = tmp_path / "project"
    project.mkdir()
    first_run(project, "", ["./outputs", "./big/data", "../beside", str(tmp_path / "absolute")])
    assert {path.name for path in project.iterdir()} == {"secrets", "outputs", "big"}
    assert {path.name for path in tmp_path.iterdir()} == {"project"}
    first_run(project, "/home/me/clone", ["./relative", "/home/me/clone/absolute", "/home/me/clone-2", "/home/me"])
    assert {path.name for path in project.iterdir()} == {"secrets", "outputs", "big", "relative", "absolute"}


@pytest.mark.parametrize("folder", ["~/outputs", "outputs"])
def test_a_folder_that_compose_reads_otherwise_is_refused(tmp_path: Path, folder: str) -> None:
    """Compose would mount a folder of somebody's home, or a volume: the one line says how to write it, and nothing is made."""
    with pytest.raises(RefusedError, match=rf"the folder {folder} in \.env has to begin with \./"):
        first_run(tmp_path, "", ["./data", folder])
    assert not list(tmp_path.iterdir())


def test_libpq_reads_the_passfile(tmp_path: Path) -> None:
    """The driver knows the parameter with which the services' URLs name the file."""
    first_run(tmp_path, "", [])
    dsn = psycopg2.extensions.make_dsn(host="db", passfile=str(tmp_path / "secrets" / "database.pgpass"))
    assert "passfile=" in dsn

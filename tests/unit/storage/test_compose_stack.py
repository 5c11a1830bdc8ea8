"""Where commands find the compose stack's database."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from storage.compose_stack import ComposeStack, advice, find_stack, is_of_stack
from storage.database import parse_url


def stack_in(folder: Path) -> Path:
    """Make *folder* look as if a stack had run in it, and return it."""
    (folder / "secrets").mkdir(parents=True)
    (folder / "secrets" / "database.pgpass").touch()
    (folder / "docker-compose.yml").touch()
    return folder


@pytest.mark.parametrize("missing", ["docker-compose.yml", "secrets/database.pgpass"])
def test_without_a_first_run_there_is_no_stack(tmp_path: Path, missing: str) -> None:
    """A fresh clone has no passwords yet, and passwords elsewhere are somebody else's."""
    (stack_in(tmp_path) / missing).unlink()
    assert find_stack(tmp_path, {}) is None


def found_in(folder: Path, **environment: str) -> ComposeStack:
    """Return the stack in *folder*, which is there."""
    stack = find_stack(folder, environment)
    assert stack is not None
    return stack


@pytest.mark.parametrize(
    ("settings", "port"),
    [
        ("", 5432),
        ("DATABASE_PORT=5433\n", 5433),
        ("#DATABASE_PORT=1\nDATABASE_PORT=2\n export DATABASE_PORT = '5434'  # mine\nDASHBOARD_PORT=3\n", 5434),
    ],
)
def test_the_port_is_the_one_that_compose_takes(tmp_path: Path, settings: str, port: int) -> None:
    """From `.env`, where the last line that says it counts."""
    (stack_in(tmp_path) / ".env").write_text(settings, encoding="utf-8")
    url = parse_url(found_in(tmp_path).database)
    assert (url.username, url.password, url.host, url.port) == ("mammography", None, "127.0.0.1", port)


@pytest.mark.parametrize(
    ("settings", "outputs"),
    [
        ("", "outputs"),
        ("#OUTPUTS=./no\nOUTPUTS=./big/outs  # here\n", "big/outs"),
        ("OUTPUTS = '/srv/out puts' # there\n", "/srv/out puts"),
        ('OUTPUTS="./a#b"\n', "a#b"),
        ("OUTPUTS=\nDATA=./data\n", "outputs"),
    ],
)
def test_outputs_are_where_the_containers_write_them(tmp_path: Path, settings: str, outputs: str) -> None:
    """Relative to the stack's folder, quoted or not; a setting of the shell comes first."""
    (stack_in(tmp_path) / ".env").write_text(settings, encoding="utf-8")
    assert found_in(tmp_path).outputs == tmp_path / outputs
    assert found_in(tmp_path, OUTPUTS="./shell").outputs == tmp_path / "shell"
    assert found_in(tmp_path, OUTPUTS="").outputs == tmp_path / "outputs"


def test_artifacts_are_where_the_containers_keep_them(tmp_path: Path) -> None:
    """In a bucket, if `.env` names one."""
    file = stack_in(tmp_path) / ".env"
    assert found_in(tmp_path).artifacts is None
    file.write_text("ARTIFACTS=s3://films/of studies\n", encoding="utf-8")
    assert found_in(tmp_path).artifacts == "s3://films/of studies"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "latin-1", "cp1252"])
def test_any_editor_may_have_saved_the_settings(tmp_path: Path, encoding: str) -> None:
    """A byte order mark hides no port, and a name in another encoding stops no command."""
    (stack_in(tmp_path) / ".env").write_text("DATABASE_PORT=5433\nDATA=/Aufnahmen/Köln\n", encoding=encoding)
    assert parse_url(found_in(tmp_path).database).port == 5433


@pytest.mark.parametrize("name", ["plain", "with space", "a@b:c?d=e&f#g%h+i", "ü"])
def test_any_folder_can_hold_a_stack(tmp_path: Path, name: str) -> None:
    """The passfile's path arrives at the driver whatever characters it has, and the URL is known for the stack's."""
    folder = stack_in(tmp_path / name)
    url = parse_url(found_in(folder).database)
    assert url.query["passfile"] == str(folder / "secrets" / "database.pgpass")
    assert is_of_stack(url)


@pytest.mark.parametrize("query", ["", "?passfile=/nowhere/secrets/database.pgpass", "?passfile=/run/passwords"])
def test_other_databases_are_not_the_stacks(query: str) -> None:
    """Neither one without a passfile nor one in a container, where no compose file is."""
    assert not is_of_stack(parse_url(f"postgresql://user@host/d{query}"))


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("Connection refused", "`docker compose up -d` starts it"),
        (
            'FATAL:  password authentication failed for user "mammography"',
            "secrets/ is not what its volume was made with",
        ),
        ("FATAL:  the database system is starting up", "^$"),
    ],
)
def test_advice_fits_the_reason(reason: str, says: str) -> None:
    """Starting a database that answers helps nobody; lost passwords are named, and nothing is said of what is not known."""
    assert re.search(says, advice(reason))

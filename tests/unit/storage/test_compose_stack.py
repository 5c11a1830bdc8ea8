"""Where commands find the compose stack's database."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.compose_stack import is_of_stack, stack_url
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
    assert stack_url(tmp_path) is None


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
    url = parse_url(stack_url(tmp_path) or "")
    assert (url.username, url.password, url.host, url.port) == ("mammography", None, "127.0.0.1", port)


@pytest.mark.parametrize("name", ["plain", "with space", "a@b:c?d=e&f#g%h+i", "ü"])
def test_any_folder_can_hold_a_stack(tmp_path: Path, name: str) -> None:
    """The passfile's path arrives at the driver whatever characters it has, and the URL is known for the stack's."""
    folder = stack_in(tmp_path / name)
    url = parse_url(stack_url(folder) or "")
    assert url.query["passfile"] == str(folder / "secrets" / "database.pgpass")
    assert is_of_stack(url)


@pytest.mark.parametrize("query", ["", "?passfile=/nowhere/secrets/database.pgpass", "?passfile=/run/passwords"])
def test_other_databases_are_not_the_stacks(query: str) -> None:
    """Neither one without a passfile nor one in a container, where no compose file is."""
    assert not is_of_stack(parse_url(f"postgresql://user@host/d{query}"))

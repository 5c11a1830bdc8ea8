from __future__ import annotations

import tempfile
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.compose_stack import find_stack
from storage.database import check, choose, display, open_database, parse_url, with_password, without_password
from storage.errors import DatabaseUnavailableError, DatabaseUrlError

SECRET = "s3cr3t"  # noqa: S105 - of a test


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg2"])
def test_every_spelling_of_postgresql(scheme: str) -> None:
    """All three schemes name the same database through the same driver."""
    url = parse_url(f" {scheme}://user:{SECRET}@host:5433/studies\n")
    assert url.drivername == "postgresql+psycopg2"
    assert (url.username, url.password, url.host, url.port, url.database) == ("user", SECRET, "host", 5433, "studies")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_any_password_survives(password: str) -> None:
    """Whatever characters a password has, quoted as URLs want it, it arrives and is not displayed."""
    url = parse_url(f"postgresql://user:{quote(password, safe='')}@host/studies")
    assert url.password == password
    assert display(url) == "postgresql://user@host/studies"


def test_braces_in_a_password() -> None:
    """Braces need no quoting."""
    assert parse_url("postgresql://user:{a}%{b@host/studies").password == "{a}%{b"  # noqa: S105


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        (SECRET, "cannot be read"),
        (f"postgresql://user:{SECRET}@host:port/studies", "cannot be read"),
        (f"mysql://user:{SECRET}@host/studies", "not of PostgreSQL"),
        (f"sqlite:///{SECRET}", "not of PostgreSQL"),
        (f"postgresql+asyncpg://user:{SECRET}@host/studies", "not of PostgreSQL"),
        (f"postgresql://user:{SECRET}@host", "names no database"),
        (f"postgresql://user:{SECRET}@host:70000/studies", "70000"),
        (f"postgresql://user:a@{SECRET}@host/studies", "%40"),
        (f"postgresql://user:{SECRET}@host/studies?colour={SECRET}", "colour"),
    ],
)
def test_wrong_url_is_one_line_without_the_password(text: str, says: str) -> None:
    """A URL that is none is refused in one line, and not even the traceback repeats its password."""
    with pytest.raises(DatabaseUrlError, match=says) as caught:
        parse_url(text)
    assert "\n" not in str(caught.value)
    said = [*traceback.format_exception_only(caught.value), repr(caught.value.__cause__)]
    assert SECRET not in "".join(said)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql://user:{SECRET}@host:5433/d", "postgresql://user@host:5433/d"),
        (f"postgresql://user@host/d?password={SECRET}&sslmode=require", "postgresql://user@host/d"),
        ("postgresql://user@/d?host=/run/socket&port=5432", "postgresql://user@/run/socket:5432/d"),
        ("postgresql://user@/d?host=h1:1&host=h2:2", "postgresql://user@h1:1,h2:2/d"),
        ("postgresql:///d", "postgresql://localhost/d"),
    ],
)
def test_display_shows_the_place_alone(text: str, shown: str) -> None:
    """User, host, port and database are shown, however the URL gives them, and no password."""
    assert display(parse_url(text)) == shown


@pytest.mark.parametrize(
    "place",
    ["localhost:1/studies", "no-such-host.invalid/studies", "/studies?host=/nowhere", "localhost/d?sslmode=odd"],
)
def test_unreachable_database_is_one_line(place: str) -> None:
    """A database that does not answer is named in one line with the reason, without the password."""
    engine = open_database(f"postgresql://user:{SECRET}@{place}", application_name="test")
    with pytest.raises(DatabaseUnavailableError) as caught:
        check(engine)
    message = str(caught.value)
    assert message.startswith(f"the database {display(engine.url)} cannot be reached: ")
    assert "\n" not in message
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"postgresql://user:{SECRET}@host/d", "postgresql+psycopg2://user:***@host/d"),
        (f"postgresql://user@host/d?password={SECRET}&sslmode=require", "postgresql+psycopg2://user@host/d"),
        (f"postgresql://user@host/d?sslpassword={SECRET}", "postgresql+psycopg2://user@host/d"),
        ("postgresql://user@host/d?passfile=/run/pass", "postgresql+psycopg2://user@host/d?passfile=%2Frun%2Fpass"),
    ],
)
def test_the_url_for_people_has_no_password(text: str, shown: str) -> None:
    """Wherever in the URL it was put; the name of a file is none."""
    said = without_password(parse_url(text))
    assert said.startswith(shown)
    assert SECRET not in said


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1))
def test_the_url_for_programs_has_the_password_of_the_passfile(password: str) -> None:
    """Of the line that libpq would take, whatever characters the password has: it reads the same with and without the file."""
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as passfile:
        passfile.write(f"# of a test\nelsewhere:*:*:*:{SECRET}\nhost:5432:studies:user:{escaped}\n*:*:*:*:{SECRET}\n")
        passfile.flush()
        url = parse_url(f"postgresql://user@host/studies?passfile={passfile.name}&connect_timeout=3")
        again = parse_url(with_password(url))
    assert again == url.difference_update_query(["passfile"]).set(password=password)


def test_a_password_in_the_url_stays(tmp_path: Path) -> None:
    """It comes before a passfile, as it does for the driver; and a passfile without our line changes nothing."""
    (tmp_path / "pass").write_text("elsewhere:*:*:*:x\n", encoding="utf-8")
    for text in (f"postgresql+psycopg2://u:{SECRET}@host/d?passfile=nowhere", "postgresql+psycopg2://u@host/d"):
        assert with_password(parse_url(text)) == text
    url = parse_url(f"postgresql://user@host/d?passfile={tmp_path / 'pass'}")
    assert parse_url(with_password(url)) == url


def test_the_compose_stack_says_how_to_start_it(tmp_path: Path) -> None:
    """Its database does not answer: the line says what brings it up, and what does without it."""
    (tmp_path / "docker-compose.yml").touch()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "database.pgpass").touch()
    stack = find_stack(tmp_path, {"DATABASE_PORT": "1"})
    assert stack is not None
    with pytest.raises(
        DatabaseUnavailableError, match="`docker compose up -d` starts it, `--database private`"
    ) as caught:
        check(open_database(stack.database, application_name="test"))
    assert "\n" not in str(caught.value)


def test_a_given_url_wins(tmp_path: Path) -> None:
    """With a URL no private server is started."""
    assert choose("postgres://user@host/studies", tmp_path).host == "host"
    assert not list(tmp_path.iterdir())

"""
From a URL, or from nothing, to a database engine with the settings that every connection of ours has.

A password is in the URL, or in the passfile that the URL names, and in the driver's memory, and nowhere else: every message
shows `display(url)`.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extensions
import sqlalchemy as sa
from sqlalchemy import URL, Engine, make_url

from storage.compose_stack import advice, is_of_stack
from storage.errors import DatabaseUnavailableError, DatabaseUrlError
from storage.private_server import PrivateServer

SCHEMES = ("postgresql", "postgres", "postgresql+psycopg2")

_EXPECTED = "expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
_LARGEST_PORT = 65535
_TRANSACTION_TIMEOUT_SINCE = 170000
"""PostgreSQL 17, as the driver counts versions."""

_SESSION = {
    "timezone": "UTC",  # Optuna stores naive times of the session's zone
    "idle_in_transaction_session_timeout": "10s",  # a frozen client must not keep its locks
    "lock_timeout": "20s",  # longer than that, so that who waits for a frozen client outlasts it
}
_TRANSACTION_TIMEOUT = "60s"
"""Longer than a cold load of a study of 10 000 trials (7 s)."""
_CONNECTION = {
    "connect_timeout": 10,  # seconds
    "keepalives": 1,
    "keepalives_idle": 30,  # seconds of silence before the first probe
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,  # milliseconds until data without an answer end the connection
}


def parse_url(text: str) -> URL:
    """
    Return *text* as a URL of PostgreSQL with the driver that we use.

    Raises:
        DatabaseUrlError: It is none; one line, in which no part of *text* that may hold a password is repeated.
    """
    if text.count("@") > 1:  # the rest of such a password would pass for the host, and be shown
        raise DatabaseUrlError(f"the database URL has more than one @ (in a password write %40): {_EXPECTED}")
    try:
        url = make_url(text.strip())
    except (sa.exc.ArgumentError, ValueError):
        # `from None`: the parser's message repeats the whole text
        raise DatabaseUrlError(f"the database URL cannot be read: {_EXPECTED}") from None
    if url.drivername not in SCHEMES:
        raise DatabaseUrlError(f"the database URL is not of PostgreSQL: {_EXPECTED}")
    if not url.database:
        raise DatabaseUrlError(f"the database URL names no database: {_EXPECTED}")
    if url.port is not None and not 0 < url.port <= _LARGEST_PORT:
        raise DatabaseUrlError(f"the database URL has the port {url.port}, which does not exist: {_EXPECTED}")
    url = url.set(drivername="postgresql+psycopg2")
    try:
        psycopg2.extensions.make_dsn(**_parameters(url))
    except (psycopg2.ProgrammingError, sa.exc.ArgumentError):
        known = ", ".join(sorted(url.query))
        raise DatabaseUrlError(f"the database URL has a parameter that the driver does not know: {known}") from None
    return url


def display(url: URL) -> str:
    """Return user, host, port and database of *url*; never a password, wherever in the URL one was put."""
    host = url.host or ",".join(_values(url, "host")) or "localhost"
    port = url.port or ",".join(_values(url, "port"))
    user = f"{url.username}@" if url.username else ""
    return f"postgresql://{user}{host}{f':{port}' if port else ''}/{url.database or ''}"


def choose(database: str | None, outputs: Path) -> URL:
    """
    Return the URL that was given, else that of the private server under *outputs*, which then runs.

    Raises:
        DatabaseUrlError: What was given is no URL of PostgreSQL.
        PrivateServerError: The private server does not start.
    """
    if database is not None:
        return parse_url(database)
    server = PrivateServer(outputs)
    server.start()
    return server.url


def without_password(url: URL) -> str:
    """Return *url* as a text for people, `***` in place of every password: the driver takes them as parameters too."""
    hidden = {name: "***" for name in ("password", "sslpassword") if name in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def with_password(url: URL) -> str:
    """
    Return *url* as a text for programs, with the password that is in it or in the passfile that it names.

    Raises:
        OSError: The passfile cannot be read.
    """
    passfile = next(iter(_values(url, "passfile")), None)
    shown = url.render_as_string(hide_password=False)
    if url.password is not None or passfile is None:
        return shown
    wanted = (url.host or "localhost", str(url.port or 5432), url.database or "", url.username or "")
    for line in Path(passfile).read_text(encoding="utf-8").split("\n"):  # which alone ends a line for libpq
        if line.startswith("#"):
            continue
        # As libpq reads it: fields between colons, a backslash before one that is meant as such, * for any.
        *place, password = (re.sub(r"\\(.)", r"\1", part) for part in re.findall(r"(?:^|:)((?:\\.|[^:\\])*)", line))
        if len(place) == len(wanted) and all(ours in {"*", theirs} for ours, theirs in zip(place, wanted, strict=True)):
            return (
                url.difference_update_query(["passfile"]).set(password=password).render_as_string(hide_password=False)
            )
    return shown


def engine_options(url: URL, *, application_name: str) -> dict[str, Any]:
    """Return what `sqlalchemy.create_engine` takes beside *url*: a small pool of connections with our settings."""
    return {
        "pool_size": 2,
        "max_overflow": 2,
        "pool_pre_ping": True,  # a connection that a restarted server cut is replaced, not handed out
        "hide_parameters": True,  # an error repeats no value: folds name patients
        "creator": functools.partial(_connect, url, application_name),
    }


def open_database(url: str | URL, *, application_name: str) -> Engine:
    """
    Return an engine for *url*. It connects on first use; `check` says whether it can.

    Raises:
        DatabaseUrlError: *url* is a text and no URL of PostgreSQL.
    """
    parsed = parse_url(url) if isinstance(url, str) else url
    return sa.create_engine(parsed, **engine_options(parsed, application_name=application_name))


def check(engine: Engine) -> None:
    """Connect once. Raises DatabaseUnavailableError, one line with host, port and database, and what helps with the stack's."""
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql("select 1")
    except sa.exc.OperationalError as error:
        why = reason(error)
        if is_of_stack(engine.url):
            why += advice(why)
        raise DatabaseUnavailableError(why, display(engine.url)) from error


def reason(error: sa.exc.DBAPIError) -> str:
    """Return the driver's first line without the place, which `display` shows better."""
    line = (str(error.orig).strip() or "no reason given").splitlines()[0].strip()
    return line.partition(" failed: ")[2] or line


def _connect(url: URL, application_name: str) -> Any:
    """
    Return a driver's connection.

    The settings of the session go with the connection's start, so that no rollback takes them back; what the URL itself
    says of the connection wins.
    """
    given = _parameters(url)
    session = " ".join(f"-c {name}={value}" for name, value in _SESSION.items())
    options = f"{session} {given.pop('options', '')}".strip()
    connection = psycopg2.connect(**{**_CONNECTION, **given, "application_name": application_name, "options": options})
    if connection.server_version >= _TRANSACTION_TIMEOUT_SINCE:  # older servers refuse the whole connection over it
        with connection, connection.cursor() as cursor:
            cursor.execute("select set_config('transaction_timeout', %s, false)", (_TRANSACTION_TIMEOUT,))
    return connection


def _parameters(url: URL) -> dict[str, Any]:
    return dict(url.get_dialect()().create_connect_args(url)[1])


def _values(url: URL, name: str) -> tuple[str, ...]:
    value = url.query.get(name, ())
    return (value,) if isinstance(value, str) else value

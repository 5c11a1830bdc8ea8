from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import URL

from storage.database import check, open_database


def setting(engine: sa.Engine, name: str) -> str:
    """Return a setting of the session as PostgreSQL shows it."""
    with engine.connect() as connection:
        return str(connection.exec_driver_sql(f"show {name}").scalar())


def test_every_connection_has_our_settings(database_url: URL) -> None:
    """Times are UTC, and neither a frozen client nor a long transaction can block the others for ever."""
    engine = open_database(database_url, application_name="worker 3")
    check(engine)
    assert setting(engine, "timezone") == "UTC"
    assert setting(engine, "idle_in_transaction_session_timeout") == "10s"
    assert setting(engine, "lock_timeout") == "20s"
    assert setting(engine, "transaction_timeout") == "1min"
    assert setting(engine, "application_name") == "worker 3"
    with engine.connect() as connection:
        connection.rollback()
        assert connection.exec_driver_sql("show transaction_timeout").scalar() == "1min"
    engine.dispose()


def test_options_of_the_url_are_kept(database_url: URL) -> None:
    """What a URL asks of its session stands beside our settings."""
    url = database_url.update_query_dict({"options": "-c search_path=elsewhere", "connect_timeout": "3"})
    engine = open_database(url, application_name="test")
    assert setting(engine, "search_path") == "elsewhere"
    assert setting(engine, "timezone") == "UTC"
    engine.dispose()


def test_cut_connections_are_replaced(database_url: URL) -> None:
    """A connection that the server ended while it was in the pool is not handed out."""
    engine = open_database(database_url, application_name="test")
    admin = open_database(database_url, application_name="admin")
    with engine.connect() as connection:
        pid = connection.exec_driver_sql("select pg_backend_pid()").scalar()
    with admin.connect() as connection:
        connection.execute(sa.select(sa.func.pg_terminate_backend(pid, 5000)))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("select pg_backend_pid()").scalar() != pid
    engine.dispose()
    admin.dispose()


def test_a_missing_database_is_unavailable(database_url: URL) -> None:
    """The server answers, the database is not there: one line that says so."""
    engine = open_database(database_url.set(database="no_such"), application_name="test")
    with pytest.raises(Exception, match='no_such cannot be reached: FATAL:  database "no_such" does not exist'):
        check(engine)

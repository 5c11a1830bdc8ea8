"""What the tests share: a real PostgreSQL, and real mammograms where they are at hand."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import URL

from storage.private_server import PrivateServer
from storage.server_home import known_state

PROJECT = Path(__file__).parents[1]


def remove_server(server: PrivateServer) -> None:
    """Stop *server* and remove everything of it, also what root's server keeps outside the output folder."""
    state = known_state(server.folder)
    server.stop()
    if state is not None:
        shutil.rmtree(state)
    shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def database_server() -> Iterator[URL]:
    """The URL of a private server for the whole session, in a folder whose name is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="mdb-"))
    server = PrivateServer(folder)
    server.start()
    admin = sa.create_engine(server.url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):  # nothing here need outlast a power cut
            connection.exec_driver_sql(f"alter system set {name} = off")
        connection.exec_driver_sql("select pg_reload_conf()")
    yield server.url
    remove_server(server)
    folder.rmdir()


@pytest.fixture
def database_url(database_server: URL) -> Iterator[URL]:
    """The URL of a new, empty database on a real PostgreSQL."""
    name = f"test_{uuid.uuid4().hex}"
    admin = sa.create_engine(database_server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"create database {name}")
    yield database_server.set(database=name)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"drop database {name} with (force)")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real mammograms: MAMMOGRAPHY_REAL_DATA, else ../shared/data beside the project."""
    folder = Path(os.environ.get("MAMMOGRAPHY_REAL_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real mammograms at {folder} (MAMMOGRAPHY_REAL_DATA says where they are)")
    return folder

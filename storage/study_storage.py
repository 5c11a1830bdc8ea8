"""
Optuna's storage with our tables beside it, opened so that any number of processes may do it at once.

Optuna's own creation of tables is not safe against itself: of eight processes on an empty database up to five crash.
Here one creates under an advisory lock and the others wait; where the tables are there, nobody locks anything. Tables of an
earlier version are upgraded by whoever opens them first, in the same way; what is in them stays.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import sqlalchemy as sa
from optuna.storages import BaseStorage, RDBStorage, get_storage
from sqlalchemy import URL, Engine

from storage.database import check, display, engine_options, open_database, reason
from storage.errors import SchemaVersionError, StorageError
from storage.schema import SCHEMA_VERSION, can_upgrade, schema, upgrade

logger = logging.getLogger(__name__)

_CREATION_LOCK = 0x6D616D6D6F
"""Key of the advisory lock: "mammo" in ASCII."""


@dataclass(frozen=True)
class StudyStorage:
    """One process's way to the studies."""

    optuna: BaseStorage
    """Optuna's storage, cached, without its heartbeat."""
    engine: Engine
    """The same engine, for our own tables."""


def open_storage(engine_url: URL, *, application_name: str) -> StudyStorage:
    """
    Return the storage at *engine_url*, its tables made if they were not there, and upgraded if they are of an earlier version.

    Raises:
        DatabaseUnavailableError: The database cannot be reached.
        SchemaVersionError: It holds tables that this program does not understand.
        StorageError: It lets us make no tables.
    """
    engine = open_database(engine_url, application_name=application_name)
    try:
        check(engine)
        if _version(engine) != SCHEMA_VERSION:
            _prepare_tables(engine, engine_url)
    except (sa.exc.ProgrammingError, sa.exc.InternalError) as error:  # no right to; a server that only reads
        raise StorageError(f"the tables cannot be made in {display(engine_url)}: {reason(error)}") from error
    finally:
        engine.dispose()
    rdb = _open_optuna(engine_url, application_name, create=False)
    return StudyStorage(get_storage(rdb), rdb.engine)


def _version(engine: Engine) -> int | None:
    """
    Return the version of our tables; None where there are none. Ours come last and whole, so they stand for Optuna's too.

    Raises:
        SchemaVersionError: They are of a version that this program neither understands nor can upgrade.
    """
    with engine.connect() as connection:
        if connection.scalar(sa.text("select to_regclass('mammography.schema_version')")) is None:
            return None
        found: int = connection.execute(sa.text("select version from mammography.schema_version")).scalar_one()
    if found != SCHEMA_VERSION and not can_upgrade(found):
        raise SchemaVersionError("mammography-hpo", str(found), str(SCHEMA_VERSION))
    return found


def _prepare_tables(engine: Engine, url: URL) -> None:
    """Make Optuna's tables and ours, or upgrade ours, unless another process just did."""
    # The lock is the session's and no transaction is open, for one that idles while Optuna works would be cut off.
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as holder:
        holder.exec_driver_sql("set lock_timeout = '50s'")  # many may wait for each other here
        holder.execute(sa.select(sa.func.pg_advisory_lock(_CREATION_LOCK)))
        found = _version(engine)
        if found is None:
            _open_optuna(url, "mammography schema", create=True).engine.dispose()
            _run(engine, schema())
        elif found != SCHEMA_VERSION:
            _run(engine, upgrade(found))
            logger.info(
                "tables upgraded from version %d to %d", found, SCHEMA_VERSION, extra={"action": "schema_upgraded"}
            )
        holder.execute(sa.select(sa.func.pg_advisory_unlock(_CREATION_LOCK)))


def _run(engine: Engine, statements: str) -> None:
    """Run *statements* in one transaction."""
    with engine.begin() as connection:
        # no_parameters: a % in the SQL means itself
        connection.execution_options(no_parameters=True).exec_driver_sql(statements)


def _open_optuna(url: URL, application_name: str, *, create: bool) -> RDBStorage:
    """Return Optuna's storage without its heartbeat. Raises SchemaVersionError for tables of another Optuna."""
    template = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    rdb = RDBStorage(
        template,
        engine_kwargs=engine_options(url, application_name=application_name),
        skip_compatibility_check=True,  # checked below, with an error of ours
        skip_table_creation=not create,
    )
    found, expected = rdb.get_current_version(), rdb.get_head_version()
    if found != expected:
        rdb.engine.dispose()
        raise SchemaVersionError("Optuna", found, expected)
    return rdb

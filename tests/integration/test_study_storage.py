from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase
from sqlalchemy import URL

from storage import exhibits
from storage.claims import Claim, Ending
from storage.database import open_database
from storage.errors import DatabaseUnavailableError, SchemaVersionError, StorageError
from storage.ledger import Limits
from storage.schema import SCHEMA_VERSION
from storage.study_storage import open_storage
from tests.trivial import SPACE, claims_of, make_study

PROJECT = Path(__file__).parents[2]


def run_sql(url: URL, sql: str) -> list[sa.Row[tuple[object, ...]]]:
    """Return the rows of *sql*, committed."""
    engine = open_database(url, application_name="test")
    with engine.begin() as connection:
        result = connection.exec_driver_sql(sql)
        rows = list(result.all()) if result.returns_rows else []
    engine.dispose()
    return rows


class TestOptunasOwnContract(StorageTestCase):
    """Optuna's test class for storages, on ours."""

    @pytest.fixture
    def storage(self, database_url: URL) -> Iterator[BaseStorage]:
        """Our storage on an empty database."""
        opened = open_storage(database_url, application_name="test")
        yield opened.optuna
        opened.engine.dispose()


def test_eight_processes_on_an_empty_database(database_url: URL) -> None:
    """Processes that open an empty database at once all succeed, and the tables are made once."""
    code = (
        "import sys, sqlalchemy; from storage.study_storage import open_storage;"
        "s = open_storage(sqlalchemy.make_url(sys.argv[1]), application_name='w');"
        "import optuna; study = optuna.create_study(study_name=sys.argv[2], storage=s.optuna); study.add_trial("
        "optuna.trial.create_trial(value=1.0)); print(len(study.trials))"
    )
    text = database_url.render_as_string(hide_password=False)
    openers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", code, text, f"study {number}"],
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    said = [opener.communicate(timeout=120) for opener in openers]
    assert [out.strip() for out, _ in said] == ["1"] * 8, said
    assert run_sql(database_url, "select version from mammography.schema_version") == [(SCHEMA_VERSION,)]
    assert len(run_sql(database_url, "select * from version_info")) == 1
    assert len(run_sql(database_url, "select * from alembic_version")) == 1
    assert run_sql(database_url, "select count(*) from pg_locks where locktype = 'advisory'") == [(0,)]


def test_both_ways_share_one_pool_with_our_settings(database_url: URL) -> None:
    """Optuna and our own tables use the same connections, in UTC, and Optuna's heartbeat is off."""
    storage = open_storage(database_url, application_name="worker 3")
    study = optuna.create_study(study_name="density", storage=storage.optuna, direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    with storage.engine.connect() as connection:
        asked = (
            "select current_setting('timezone'), current_setting('application_name'), current_setting('lock_timeout')"
        )
        assert connection.exec_driver_sql(asked).one() == ("UTC", "worker 3", "20s")
        count = "select count(*) from pg_stat_activity where application_name = 'worker 3'"
        assert connection.exec_driver_sql(count).scalar() <= 2
        assert connection.exec_driver_sql("select count(*) from trial_heartbeats").scalar() == 0
    again = open_storage(database_url, application_name="worker 4")
    assert len(optuna.load_study(study_name="density", storage=again.optuna).trials) == 3
    storage.engine.dispose()
    again.engine.dispose()


def test_braces_in_the_password(database_url: URL) -> None:
    """Braces and per cent signs in a password mean nothing to Optuna's template."""
    braces = "a{b}%{SCHEMA_VERSION}c"
    url = database_url.set(password=braces)
    storage = open_storage(url, application_name="test")
    assert storage.engine.url.password == braces
    assert storage.optuna.get_all_studies() == []
    storage.engine.dispose()


@pytest.mark.parametrize("version", [1, 999])
def test_our_tables_of_another_version_are_refused(database_url: URL, version: int) -> None:
    """Tables that this program does not understand, of an older or of a newer one, are not touched."""
    open_storage(database_url, application_name="test").engine.dispose()
    run_sql(database_url, f"update mammography.schema_version set version = {version}")  # noqa: S608 - a number from above
    with pytest.raises(SchemaVersionError, match=f"mammography-hpo's tables of version {version};") as caught:
        open_storage(database_url, application_name="test")
    assert caught.value.found == str(version)


def make_version_2(url: URL) -> None:
    """Take from our tables what version 2 had not yet: what finished trials show."""
    functions = ("detach(int)", "attach_all(int, jsonb)", "attach(int, uuid, jsonb)", "attach_late(int, jsonb)")
    run_sql(url, "".join(f"drop function mammography.{each};" for each in functions))
    run_sql(url, "update mammography.schema_version set version = 2")


def test_an_upgrade_keeps_the_data_and_lets_workers_work(database_url: URL, caplog: pytest.LogCaptureFixture) -> None:
    """Several processes that open version 2 at once upgrade it once; a worker of before goes on with the trial that it has."""
    before = open_storage(database_url, application_name="worker of before")
    study_id = make_study(before, Limits(2))
    make_version_2(database_url)
    claims = claims_of(before, study_id)
    claim = claims.claim()
    assert isinstance(claim, Claim)
    claims.settle_parameters(claim, {"x": 0.5}, SPACE)
    with caplog.at_level(logging.INFO), ThreadPoolExecutor(8) as openers:
        opened = list(openers.map(lambda _: open_storage(database_url, application_name="test"), range(8)))
    assert caplog.text.count("tables upgraded from version 2 to") == 1
    claims.publish_fold(claim, 0, 0.5, ())
    claims.finish(claim, Ending.COMPLETE, value=0.5, attributes={})
    (trial,) = opened[0].optuna.get_all_trials(study_id)
    assert (trial.value, trial.params, trial.intermediate_values) == (0.5, {"x": 0.5}, {0: 0.5})
    assert exhibits.attach_late(opened[0].engine, claim.trial_id, {exhibits.NOTE: "hello"})
    assert run_sql(database_url, "select version from mammography.schema_version") == [(SCHEMA_VERSION,)]
    for each in (before, *opened):
        each.engine.dispose()


def test_an_upgrade_makes_what_a_new_database_has(database_url: URL) -> None:
    """Function by function, table by table."""
    open_storage(database_url, application_name="test").engine.dispose()
    new = describe(database_url)
    make_version_2(database_url)
    assert describe(database_url) != new
    open_storage(database_url, application_name="test").engine.dispose()
    assert describe(database_url) == new


def describe(url: URL) -> list[sa.Row[tuple[object, ...]]]:
    """Return the functions and the columns of our schema."""
    functions = (
        "select pg_get_functiondef(p.oid) from pg_proc p join pg_namespace n on n.oid = pronamespace"
        " where nspname = 'mammography' order by 1"
    )
    columns = (
        "select table_name, column_name, data_type, is_nullable, column_default from information_schema.columns"
        " where table_schema = 'mammography' order by 1, 2"
    )
    return [*run_sql(url, functions), *run_sql(url, columns)]


def test_optunas_tables_of_another_version_are_refused(database_url: URL) -> None:
    """Tables of another Optuna are not touched either."""
    open_storage(database_url, application_name="test").engine.dispose()
    run_sql(database_url, "update alembic_version set version_num = 'v2.4.0.a'")
    with pytest.raises(SchemaVersionError, match=r"Optuna's tables of version v2\.4\.0\.a"):
        open_storage(database_url, application_name="test")


@pytest.mark.parametrize("restriction", ["role={database}", "default_transaction_read_only=on"])
def test_a_database_that_lets_us_make_no_tables(database_url: URL, restriction: str) -> None:
    """Who has no right to create tables, or reaches a server that only reads, is told so in one line."""
    role = database_url.database
    run_sql(database_url, f"create role {role}")
    url = database_url.update_query_dict({"options": f"-c {restriction.format(database=role)}"})
    with pytest.raises(StorageError, match=r"tables cannot be made in .*(permission denied|read-only)") as caught:
        open_storage(url, application_name="test")
    assert "\n" not in str(caught.value)
    run_sql(database_url, f"drop role {role}")


def test_no_database(database_url: URL) -> None:
    """A database that is not there is unavailable, in one line."""
    with pytest.raises(DatabaseUnavailableError, match="does not exist"):
        open_storage(database_url.set(database="no_such"), application_name="test")


def test_storage_never_loads_torch() -> None:
    """Opening a study does not pay for torch."""
    code = "import sys, storage.study_storage, storage.private_server; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"

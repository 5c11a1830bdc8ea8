"""
What the dashboard's answer about a large study takes: plain, with notes as optuna-dashboard keeps them, and with ours.

    python -m benchmarks.dashboard [--trials 2000]

The studies are the same but for the notes: ten parameters, five fold scores and four artifacts a trial, a note of 1.5 kB each.
Timed is the whole answer to GET /api/studies/<id> in this process, the first and the best of five more: of all trials, as a page
that is opened asks, and of the last ten, as an open page asks every few seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import sqlalchemy as sa
from optuna.distributions import FloatDistribution, distribution_to_json
from optuna.study import StudyDirection
from optuna_dashboard import wsgi

from hpo.dashboard.presentation import Presentation
from storage import exhibits, ledger
from storage.private_server import PrivateServer
from storage.server_home import known_state
from storage.study_storage import StudyStorage, open_storage
from storage.tree import OutputTree

NOTE = ("| parameter | value |\n| --- | --- |\n" + "| weight_decay | 0.00123 |\n" * 55)[:1500]
RESOLVED = {
    "study": "ours",
    "search": {"lr": {"type": "float", "low": 1e-5, "high": 1e-2}},
    "budget": {"trials": 10_000},
}


_TRIALS = """
with made as (
    insert into trials (number, study_id, state, datetime_start, datetime_complete)
    select n, :study, 'COMPLETE', now(), now() from generate_series(0, :trials - 1) n returning trial_id, number
), scored as (
    insert into trial_values (trial_id, objective, value, value_type)
    select trial_id, 0, (number * 0.618) - floor(number * 0.618), 'FINITE' from made
), folds as (
    insert into trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)
    select trial_id, fold, (number * 0.618) - floor(number * 0.618), 'FINITE' from made, generate_series(0, 4) fold
), params as (
    insert into trial_params (trial_id, param_name, param_value, distribution_json)
    select trial_id, 'field_' || i, (number * 0.618) - floor(number * 0.618), :distribution from made, generate_series(0, 9) i
), notes as (
    insert into trial_system_attributes (trial_id, key, value_json)
    select trial_id, :key, :note from made where cast(:note as text) is not null
)
insert into trial_system_attributes (trial_id, key, value_json)
select trial_id, 'artifacts:' || id, to_json(json_build_object(
    'artifact_id', id, 'filename', i || '.png', 'mimetype', 'image/png', 'encoding', null)::text)
from made, generate_series(0, 3) i, lateral (select md5(trial_id || '-' || i)::uuid::text as id) one
"""


def make_study(storage: StudyStorage, name: str, trials: int, *, note: bool) -> int:
    """Create a study, and return its id; with *note* it is ours."""
    study_id = storage.optuna.create_new_study([StudyDirection.MAXIMIZE], study_name=name)
    rows = "".join(f"{index}.dcm,{index // 4},{index % 4},{index % 5}\n" for index in range(5000))
    with storage.engine.begin() as connection:
        if note:
            ledger.register(
                connection,
                study_id=study_id,
                resolved=RESOLVED,
                data_hash="d" * 64,
                folds_hash="f" * 64,
                folds_csv=f"image,patient,label,fold\n{rows}",
                limits=ledger.Limits(10_000),
            )
        values = {"study": study_id, "trials": trials, "key": exhibits.NOTE, "note": json.dumps(NOTE) if note else None}
        connection.execute(
            sa.text(_TRIALS), {**values, "distribution": distribution_to_json(FloatDistribution(0.0, 1.0))}
        )
    with storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("vacuum analyze")
    return study_id


def add_official_notes(storage: StudyStorage, study_id: int) -> None:
    """Give every trial of a study a note as `optuna_dashboard.save_note` does, which for so many would take an hour."""
    with storage.engine.begin() as connection:
        for key, value in (("note_ver", "1"), ("note_str:0", json.dumps(NOTE))):
            connection.execute(
                sa.text(
                    "insert into study_system_attributes (study_id, key, value_json)"
                    " select study_id, 'dashboard:' || trial_id || ':' || :key, :value from trials where study_id = :study"
                ),
                {"study": study_id, "key": key, "value": value},
            )


def ask(application: Any, study_id: int, after: int) -> int:
    """Ask for a study's trials from number *after* on, and return the answer's bytes."""
    environ: dict[str, Any] = {"PATH_INFO": f"/api/studies/{study_id}", "QUERY_STRING": f"after={after}"}
    environ["wsgi.input"] = io.BytesIO()
    setup_testing_defaults(environ)
    return len(b"".join(application(environ, lambda *_: None)))


@dataclass(frozen=True)
class Timing:
    """What an answer takes."""

    first_s: float
    """With nothing in memory."""
    least_s: float
    """Of five more."""
    cpu_s: float
    """Of this process, for the quickest in that respect of those five."""
    megabytes: float


def take_time(call: Callable[[], int]) -> Timing:
    """Return what *call* takes, which returns the bytes of an answer."""
    seconds, cpu_seconds, size = [], [], 0
    for _ in range(6):
        began, cpu_began = time.perf_counter(), time.process_time()
        size = call()
        seconds.append(time.perf_counter() - began)
        cpu_seconds.append(time.process_time() - cpu_began)
    return Timing(seconds[0], min(seconds[1:]), min(cpu_seconds[1:]), size / 1e6)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    trials = parser.parse_args().trials
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="mdb-"))
    server = PrivateServer(folder)
    server.start()
    try:
        storage = open_storage(server.url, application_name="benchmark")
        bare = make_study(storage, "bare", trials, note=False)
        official = make_study(storage, "official", trials, note=False)
        add_official_notes(storage, official)
        ours = make_study(storage, "ours", trials, note=True)
        storage.engine.dispose()
        for name, study_id in (("no notes", bare), ("notes as study attributes", official), ("ours", ours)):
            for after in (0, trials - 10):
                fresh = open_storage(server.url, application_name="benchmark")
                application: Any = wsgi(fresh.optuna)
                if name == "ours":
                    application = Presentation(application, fresh, OutputTree(folder))
                took = take_time(lambda: ask(application, study_id, after))  # noqa: B023 - called here
                print(
                    f"{name:26} after {after:5}: first {took.first_s:6.2f} s, then {took.least_s * 1000:7.1f} ms"
                    f" ({took.cpu_s * 1000:7.1f} ms of this process), {took.megabytes:5.2f} MB",
                    flush=True,
                )
                fresh.engine.dispose()
    finally:
        state = known_state(server.folder)  # root's server keeps its data elsewhere
        server.stop()
        for each in filter(None, (state, folder)):
            shutil.rmtree(each, ignore_errors=True)


if __name__ == "__main__":
    main()

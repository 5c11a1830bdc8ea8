"""The commands that change a study while it runs, on a real PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from hpo import cli
from hpo.status import status, worker_name
from hpo.study import load
from hpo.study_file import StudyFile
from storage import ledger
from storage.claims import Claim, Claims, Ending, Idle
from storage.errors import StudyDeletedError
from storage.study_storage import StudyStorage, open_storage
from storage.summaries import efforts
from storage.tree import OutputTree

SEARCH = {
    "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
    "class_weights": {"type": "categorical", "choices": ["none", "auto"]},
    "label_smoothing": {"type": "float", "low": 0.0, "high": 0.5, "when": {"class_weights": "none"}},
}


def unblock_signals() -> None:
    """Undo what an earlier test may have left, which had a command in this process wait for signals in a thread."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))


@dataclass
class Bench:
    """A database, an output folder, and the command line in this process."""

    storage: StudyStorage
    outputs: Path
    flags: tuple[str, ...]
    capsys: pytest.CaptureFixture[str]
    _started: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start `study ...` as a process of its own."""
        command = [sys.executable, "-m", "hpo.cli", "study", *arguments, *self.flags]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=unblock_signals,  # noqa: PLW1509 - async-signal-safe: one system call
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        """End every process that still runs, and every connection."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.communicate()
        self.storage.engine.dispose()

    def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Run `study ...`, which must end with that code, and return what it printed."""
        assert cli.run(["study", *arguments, *self.flags]) == code, self.capsys.readouterr().err
        return self.capsys.readouterr()

    def refused(self, *arguments: str) -> str:
        """Return the one line with which a command refuses what it was given."""
        out, err = self.run(*arguments, code=2)
        assert (out, len(err.splitlines())) == ("", 1)
        return err

    def create(self, name: str = "small", **budget: Any) -> int:
        """Create a study without data, with files in its folder, and return its id."""
        content = {"study": name, "search": SEARCH, "budget": budget or {"trials": 3}}
        file = StudyFile.model_validate(content)
        made = optuna.create_study(study_name=name, storage=self.storage.optuna, direction="maximize")
        with self.storage.engine.begin() as connection:
            ledger.register(
                connection, study_id=made._study_id, resolved=file.model_dump(mode="json"), data_hash="d",
                folds_hash="f", folds_csv="", limits=file.budget.limits(None),
            )  # fmt: skip
        (self.outputs / name / "trial_0000" / "fold_0").mkdir(parents=True)
        (self.outputs / name / "study.json").write_text("{}")
        return made._study_id

    def claims(self, study_id: int, *, gpus: float = 0.0) -> Claims:
        """Return the claims of a study as this process sees them."""
        return Claims(self.storage.engine, study_id, worker_name(os.getpid()), "cpu", "cpu", grace_s=30, gpus=gpus)

    def status(self, name: str = "small") -> Any:
        """Return what `study status --json` says."""
        return json.loads(self.run("status", name, "--json")[0])


@pytest.fixture
def bench(database_url: sa.URL, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    """A bench on a fresh database."""
    url = database_url.render_as_string(hide_password=False)
    storage = open_storage(database_url, application_name="bench")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    made = Bench(storage, tmp_path / "outputs", ("--database", url, "--outputs", str(tmp_path / "outputs")), capsys)
    yield made
    made.close()


def claimed(claims: Claims) -> Claim:
    """Return a claim, which there must be."""
    claim = claims.claim()
    assert isinstance(claim, Claim)
    return claim


def test_queue(bench: Bench) -> None:
    """What was asked for is checked, queued once, and tried next; what does not fit in the budget is said."""
    study_id = bench.create()
    assert bench.run("enqueue", "small", "class_weights=auto", "lr=0.001") == ("0\n", "")
    assert "trial 0 has exactly this configuration" in bench.refused(
        "enqueue", "small", "lr=1e-3", "class_weights=auto"
    )
    assert bench.run("enqueue", "small", "lr=0.002") == ("1\n", "")
    for wrong, complaint in (
        ("lr=1", "lr=1: expected a number from 0.0001 to 0.01"),
        ("lr=fast", "lr=fast: expected a number"),
        ("learning_rate=1", "does not search 'learning_rate'"),
        ("lr", "expected FIELD=VALUE"),
    ):
        assert complaint in bench.refused("enqueue", "small", wrong)
    clash = bench.refused("enqueue", "small", "class_weights=auto", "label_smoothing=0.1")
    assert "label_smoothing=0.1: exists only where class_weights is none" in clash
    assert bench.run("enqueue", "small", "lr=0.003") == ("2\n", "")
    out, err = bench.run("enqueue", "small", "lr=0.004")
    assert out == "3\n"
    assert "trial 3 will not be tried unless `study extend` gives study 'small' more to do" in err
    assert claimed(bench.claims(study_id)).number == 0
    assert bench.status()["trials"] == {"running": 1, "waiting": 3, "complete": 0, "pruned": 0, "fail": 0}


def test_stopped_study_finishes_what_has_begun_and_goes_on_when_it_is_extended(bench: Bench) -> None:
    """Nothing begins after the stop; the worker then leaves; more trials bring it back."""
    study_id = bench.create()
    claims = bench.claims(study_id)
    first = claimed(claims)
    assert "workers finish the 1 under way and leave" in bench.run("stop", "small")[0]
    assert claims.claim() is Idle.WAIT
    claims.finish(first, Ending.COMPLETE, value=0.5, attributes={})
    assert claims.claim() is Idle.STOPPED
    assert bench.status()["state"] == "stopped"
    assert "workers leave" in bench.run("stop", "small")[0], "asked twice is asked once"
    assert bench.run("extend", "small", "--trials", "+2") == ("small: 1 of 5 trials finished\n", "")
    for _ in range(4):
        claims.finish(claimed(claims), Ending.COMPLETE, value=0.5, attributes={})
    assert claims.claim() is Idle.SPENT
    assert bench.status()["state"] == "finished"
    assert bench.run("extend", "small", "--trials", "1") == ("small: 5 of 6 trials finished\n", ""), (
        "+1 and 1 are the same"
    )


def test_only_limits_that_there_are_can_be_extended(bench: Bench) -> None:
    """Hours, GPU-hours and a deadline too; anything else is one line that names it."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    bench.create(hours=2, gpu_hours=1, deadline=soon)
    refused = "there is no such limit to extend; it has hours, gpu_hours, deadline"
    assert f"trials of study 'small': {refused}" in bench.refused("extend", "small", "--trials", "+5")
    assert "expected at least one of --trials" in bench.refused("extend", "small")
    earlier = (soon - timedelta(minutes=5)).isoformat()
    assert "expected a later moment" in bench.refused("extend", "small", "--deadline", earlier)
    later = (soon + timedelta(days=1)).astimezone(UTC)
    more = ("--hours", "+0.5", "--gpu-hours", "3", "--deadline", later.isoformat())
    out, err = bench.run("extend", "small", *more)
    limits = f"0.00 of 2.5 hours, 0.00 of 4 GPU-hours, until {later:%Y-%m-%d %H:%M} UTC"
    assert (out, err) == (f"small: 0 trials finished, {limits}\n", "")


def test_extending_is_no_promise(bench: Bench) -> None:
    """Where another limit ends the study, or the plateau will again, it is said."""
    study_id = bench.create(trials=1, hours=5, plateau=2)
    claims = bench.claims(study_id)
    claims.finish(claimed(claims), Ending.COMPLETE, value=0.5, attributes={})
    assert "another of its limits is reached" in bench.run("extend", "small", "--hours", "1")[1]
    bench.run("extend", "small", "--trials", "+3")
    for ending in (Ending.PRUNED, Ending.FAIL):
        claims.finish(claimed(claims), ending, attributes={})
    assert bench.run("extend", "small", "--trials", "+3")[1] == "", "no trial had a fold: nothing is known of a plateau"


def rows(bench: Bench) -> dict[str, int]:
    """Return how many rows there are of studies and trials, in each table that has any."""
    with bench.storage.engine.connect() as connection:
        tables = connection.execute(
            sa.text(
                "select distinct table_schema || '.' || table_name from information_schema.columns"
                " where column_name in ('trial_id', 'study_id') and table_schema in ('public', 'mammography')"
            )
        ).scalars()
        counts = {table: connection.scalar(sa.text(f"select count(*) from {table}")) for table in tables}  # noqa: S608
    return {table: count for table, count in counts.items() if count}


def work_a_little(bench: Bench, study_id: int) -> None:
    """Leave rows in every table that a search writes to, and in those that other Optuna programs do."""
    claims = bench.claims(study_id)
    claim = claimed(claims)
    claims.settle_parameters(claim, {"lr": 0.001}, {"lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)})
    claims.publish_fold(claim, 0, 0.5, ())
    claims.finish(claim, Ending.COMPLETE, value=0.5, attributes={"note": "kept"})
    claims.release(claimed(claims))
    bench.storage.optuna.set_study_user_attr(study_id, "note", "kept")
    bench.storage.optuna.set_study_system_attr(study_id, "note", "kept")


def test_deleted_study_leaves_nothing_behind_and_others_alone(bench: Bench) -> None:
    """No row in any table, no folder; another study has all of its own, and decoded data stay."""
    work_a_little(bench, bench.create("other"))
    (bench.outputs / "cache").mkdir()
    before = rows(bench)
    study_id = bench.create()
    work_a_little(bench, study_id)
    bench.run("enqueue", "small", "lr=0.002")
    refusal = bench.refused("delete", "small")
    assert "--yes would remove its 3 trials from the database, and the folder" in refusal
    assert str(bench.outputs / "small") in refusal
    assert "small: removed" in bench.run("delete", "small", "--yes")[0]
    assert rows(bench) == before
    assert sorted(path.name for path in bench.outputs.iterdir()) == ["cache", "other"]
    assert bench.run("list")[0] == "other\n"
    assert bench.claims(study_id).claim() is Idle.DELETED
    assert "there is no study 'small'" in bench.refused("delete", "small", "--yes")


def test_study_with_workers_is_not_deleted(bench: Bench) -> None:
    """Nothing is removed while one shows life; one that died does not stand in the way."""
    claims = bench.claims(bench.create())
    claimed(claims)
    before = rows(bench)
    assert "at work on study 'small'" in bench.refused("delete", "small", "--yes")
    assert rows(bench) == before
    assert (bench.outputs / "small" / "study.json").exists()
    with bench.storage.engine.begin() as connection:
        connection.exec_driver_sql("update mammography.claim set heartbeat_at = now() - interval '1 hour'")
    bench.run("delete", "small", "--yes")
    assert rows(bench) == {}


def test_nothing_outside_the_study_folder_is_removed(bench: Bench, tmp_path: Path) -> None:
    """A folder that is a link is unlinked; links in a folder go, what they point to stays."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    bench.create()
    (bench.outputs / "small" / "link").symlink_to(elsewhere)
    bench.create("linked", trials=1)
    (bench.outputs / "linked").rename(tmp_path / "moved")
    (bench.outputs / "linked").symlink_to(tmp_path / "moved")
    assert "and the link" in bench.refused("delete", "linked")
    for name in ("small", "linked"):
        bench.run("delete", name, "--yes")
    assert list(bench.outputs.iterdir()) == []
    assert (elsewhere / "kept").read_text() == "kept"
    assert (tmp_path / "moved" / "study.json").exists()


def test_csv_counts_attempts_and_gpu_seconds(bench: Bench, tmp_path: Path) -> None:
    """Of all attempts at a trial together; a queued trial has none."""
    study_id = bench.create()
    claims = bench.claims(study_id, gpus=0.5)
    claims.release(claimed(claims))
    claims.finish(claimed(claims), Ending.FAIL, attributes={"reason": "loss is not finite"})
    bench.run("enqueue", "small", "lr=0.002")
    with bench.storage.engine.begin() as connection:
        connection.exec_driver_sql("update mammography.attempt set ended_at = started_at + interval '10 seconds'")
    found = efforts(bench.storage.engine, study_id)
    assert [(each.attempts, each.gpu_s) for each in (found[0], found[1])] == [(2, pytest.approx(10.0)), (0, None)]
    bench.run("trials", "small", "--csv", str(tmp_path / "trials.csv"))
    header, failed, queued = (tmp_path / "trials.csv").read_text().splitlines()
    assert header == "number,state,value,started_at,finished_at,attempts,gpu_seconds,reason"
    assert failed.split(",")[5:] == ["2", "10.0", "loss is not finite"]
    assert queued == "1,waiting,,,,0,,"


def test_watching(bench: Bench) -> None:
    """Every change is a line, a cut connection is none, the end of the study is the end; Ctrl-C ends it with 130."""
    bench.create()
    watching, in_json, interrupted = (
        bench.start("status", "small", "--watch", *flags) for flags in ((), ("--json",), ())
    )
    said = [process.stdout.readline() for process in (watching, in_json, interrupted) if process.stdout is not None]
    assert said[0] == said[2] == "small: waiting, 0 of 3 trials finished, 0 at work\n"
    interrupted.send_signal(signal.SIGINT)
    with bench.storage.engine.connect() as connection:
        cut = (
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'mammography study'"
        )
        assert connection.scalar(sa.text(cut)) > 0
    bench.run("stop", "small")
    assert (interrupted.communicate(timeout=30)[0], interrupted.returncode) == ("", 130)
    out, err = watching.communicate(timeout=30)
    assert (watching.returncode, out) == (0, "small: stopped, 0 of 3 trials finished, stopped: asked, 0 at work\n")
    assert "Traceback" not in err
    states = [json.loads(line)["state"] for line in [said[1], *in_json.communicate(timeout=30)[0].splitlines()]]
    assert (in_json.returncode, states) == (0, ["waiting", "stopped"])


def test_study_that_somebody_deletes_while_it_is_watched(bench: Bench) -> None:
    """Is an error of its own, which is said in one line."""
    bench.create()
    found = load("small", OutputTree(bench.outputs), bench.storage)
    assert status(found).state == "waiting"
    bench.run("delete", "small", "--yes")
    with pytest.raises(StudyDeletedError):
        status(found)

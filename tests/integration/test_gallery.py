"""What goes wrong while a trial is shown, broken files, slow stores, odd words, deleted studies: no trial and no worker."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from hpo import steering, trial_record
from hpo.errors import TrialPrunedError
from hpo.objective import Training
from hpo.worker import Outcome, Worker
from storage.artifact_store import open_artifacts
from storage.claims import Ending, Idle
from storage.errors import ArtifactStoreError
from storage.exhibits import FILES, RECORD, TABLE, artifact_id
from tests.artifact_lab import Faulty, Lab
from trainer.artifacts import HISTORY, PREDICTIONS

AWAY = ArtifactStoreError("here", "away")
PRUNED = TrialPrunedError("hopeless")


def table(lab: Lab) -> str:
    """Return the predictions of one image, as a fold writes them."""
    first, *others = lab.station.dataset.class_names
    header = ",".join(["image", "patient", "label", "prediction", *(f"p_{each}" for each in (first, *others))])
    return f"{header}\nx,y,{first},{first},1{',0' * len(others)}\n"


def training(worker: Worker) -> Training:
    """Return the work of a worker."""
    assert isinstance(worker.work, Training)
    return worker.work


def left_over(lab: Lab) -> list[str]:
    """Return the files in the store."""
    return [path.name for path in lab.artifacts.glob("*")]


def forget_what_is_shown(lab: Lab, number: int) -> None:
    """Take down what a trial shows."""
    with lab.study.storage.engine.begin() as connection:
        connection.execute(sa.text("select mammography.detach(:trial)"), {"trial": lab.trial(number)._trial_id})


@pytest.mark.parametrize("damage", ["short row", "column", "class", "empty", "no number", "large field", "history"])
def test_a_damaged_file_costs_neither_trial_nor_worker(lab: Lab, damage: str) -> None:
    """Not while the trial is finished, nor when somebody idle looks at it: then its note says that its files are damaged."""
    good = table(lab)
    damaged = {
        "short row": good.rpartition(",")[0],
        "column": "image,patient,label\nx,y,9\n",
        "class": good.replace(",y,", ",y,another "),
        "empty": good.partition("\n")[0],
        "no number": good.replace(",1,0", ",nan,0"),
        "large field": good.replace("x,y", f"{'x' * 200_000},y"),
        "history": good,
    }
    worker = lab.worker()
    claim = lab.published(worker, damaged[damage])
    if damage == "history":
        (lab.study.folder.trial(0).fold(0) / HISTORY).write_text("[")
    worker._judge(claim, PRUNED)
    assert lab.trial(0).state == TrialState.PRUNED
    assert (lab.shown(0), lab.note(0)) == ({}, None)
    assert lab.worker().work.tidy() is False
    assert "Its files are damaged" in str(lab.note(0))
    assert "hopeless" in str(lab.note(0))


def test_a_file_that_cannot_be_read_now_is_read_later(lab: Lab) -> None:
    """An error of the disk costs nothing either; whoever saw it leaves the trial alone for a while."""
    worker = lab.worker()
    claim = lab.published(worker, table(lab))
    file = lab.study.folder.trial(0).fold(0) / PREDICTIONS
    file.unlink()
    file.symlink_to("/proc/self/mem")  # EIO
    worker._judge(claim, PRUNED)
    assert lab.trial(0).state == TrialState.PRUNED
    assert worker.work.tidy() is False
    file.unlink()
    file.write_text(table(lab))
    assert worker.work.tidy() is False
    assert lab.note(0) is None
    assert lab.worker().work.tidy() is False
    assert TABLE in lab.shown(0)


def test_a_folder_that_cannot_be_completed_is_no_reason_to_leave(lab: Lab) -> None:
    """An idle worker says so and goes on."""
    worker = lab.worker()
    claim = lab.begun(worker)
    lab.station.claims.finish(claim, Ending.FAIL, attributes={})
    folder = lab.study.folder.trial(0).path
    folder.rename(folder.with_name("elsewhere"))
    folder.write_text("no folder")
    assert lab.worker().work.tidy() is False
    assert "No worker of this study has left a record" in str(lab.note(0))


def test_a_slow_store_is_no_hang(lab: Lab) -> None:
    """The trial shows life between its files."""
    beaten: list[float] = []

    class Watched(Faulty):
        def write(self, artifact_id: str, content_body: BinaryIO) -> None:
            beaten.append(training(worker)._pulse.beaten_at)
            self.store.write(artifact_id, content_body)

    worker = lab.worker(Watched(lab.store, 0, AWAY))
    worker._judge(lab.published(worker, table(lab)), PRUNED)
    assert len(beaten) > 2
    assert len(set(beaten)) == len(beaten)


@pytest.mark.parametrize("limit", ["_TOGETHER_S", "_TRY_AGAIN_S"])
def test_a_store_that_is_too_slow_counts_as_away(lab: Lab, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What took long to fail is tried once, all files have one limit, and each failure lets the store alone for longer."""
    monkeypatch.setattr(f"hpo.gallery.{limit}", 0.0)
    tried: list[str] = []

    class Silent(Faulty):
        def write(self, artifact_id: str, content_body: BinaryIO) -> None:  # noqa: ARG002 - it takes nothing
            tried.append(artifact_id)
            if limit == "_TRY_AGAIN_S":
                raise self.fault

    worker = lab.worker(Silent(lab.store, 0, AWAY))
    gallery = training(worker).gallery
    assert gallery is not None
    pauses = []
    for number in range(2):
        worker._judge(lab.published(worker, table(lab)), PRUNED)
        assert (lab.trial(number).state, lab.note(number)) == (TrialState.PRUNED, None)
        pauses.append(gallery._pause_s)
        gallery._away_until = 0.0
    assert len(tried) == len(set(tried)) == (2 if limit == "_TRY_AGAIN_S" else 0)
    assert pauses == [120.0, 240.0]


def test_a_trial_that_is_trained_to_its_end_does_not_fail_with_its_workers(lab: Lab) -> None:
    """What they died over is what comes after; the last of many does not even try that, and finishes it."""
    for attempt in range(5):
        claim = lab.claim()
        assert (claim.number, claim.attempt) == (0, attempt)
        if attempt == 0:
            for fold in range(2):
                lab.station.claims.publish_fold(claim, fold, 0.5, ())
                lab.study.folder.trial(0).fold(fold).mkdir(parents=True)
        lab.station.claims.release(claim, Ending.HUNG, died=True)
    worker = lab.worker(Faulty(lab.store, 0, AssertionError("it was uploaded")))
    worker._finish(lab.begun(worker), Outcome(Ending.COMPLETE, 0.5))
    assert (lab.trial(0).state, lab.note(0)) == (TrialState.COMPLETE, None)
    assert lab.worker().work.tidy() is False
    assert "0.5000" in str(lab.note(0))


def test_the_record_says_what_the_database_says(lab: Lab) -> None:
    """Its attempt may have written it and died; also where it is the trial's already."""
    worker = lab.worker()
    claim = lab.begun(worker)
    trial = training(worker)._trial
    assert trial is not None
    trial_record.write_ending(trial, Outcome(Ending.COMPLETE, 0.5))
    lab.station.claims.finish(claim, Ending.FAIL, attributes={"reason": "three died"})
    lab.worker().work.tidy()
    record = lab.study.folder.trial(0).record
    for text in (record.read_text(), lab.shown(0)[RECORD].decode()):
        assert (json.loads(text)["state"], json.loads(text)["value"], json.loads(text)["reason"]) == (
            "fail",
            None,
            "three died",
        )
    record.write_text(json.dumps({**json.loads(record.read_text()), "state": "complete", "value": 0.5}))
    forget_what_is_shown(lab, 0)
    lab.worker().work.tidy()
    assert json.loads(record.read_text())["state"] == "fail"
    assert "three died" in str(lab.note(0))


@pytest.mark.parametrize(
    "words", ["of \\u0000 literally", "ends with \\u0000", "of Concei\udce7\udce3o.dcm", "a \0 in it"]
)
def test_odd_words_fail_a_trial_as_any_do(lab: Lab, words: str) -> None:
    """In the log, the record, the note and the database: nothing of what an error quotes stops a worker."""
    worker = lab.worker()
    worker._judge(lab.begun(worker), RuntimeError(words))
    trial = lab.trial(0)
    assert trial.state == TrialState.FAIL
    said = words.replace("\0", "").replace("\udce7\udce3", r"\udce7\udce3")
    for text in (
        trial.user_attrs["reason"],
        json.loads(lab.study.folder.trial(0).record.read_text())["reason"],
        lab.note(0),
    ):
        assert said in text
    worker._judge(lab.begun(worker), TrialPrunedError(words))
    assert lab.trial(1).user_attrs["reason"] == said


def test_reasons_of_earlier_versions_are_reworded(lab: Lab) -> None:
    """By whoever shows what their workers finished."""
    record = lab.station.dataset.records[0]
    worker = lab.worker()
    claim = lab.begun(worker)
    lab.station.claims.finish(claim, Ending.FAIL, attributes={"reason": f"patient {record.patient}: {record.path}"})
    assert lab.worker().work.tidy() is False
    said = json.dumps([lab.trial(0).user_attrs, lab.note(0)])
    assert not [name for name in lab.identifiers if name in said]
    assert "patient-" in lab.trial(0).user_attrs["reason"]


def test_writers_of_the_same_number_do_not_meet(tmp_path: Path) -> None:
    """In containers every worker may be process 1."""
    store = open_artifacts(str(tmp_path))
    content = b"x" * 200_000
    with ThreadPoolExecutor(4) as writers:
        list(writers.map(lambda _: store.write("abc", io.BytesIO(content)), range(100)))
    assert [(path.name, path.read_bytes() == content) for path in tmp_path.iterdir()] == [("abc", True)]


def test_a_study_deleted_while_it_is_shown_leaves_nothing(lab: Lab) -> None:
    """Somebody idle holds no claim: what he uploads after the deletion he removes again; so does who has lost his trial."""
    away = lab.worker(Faulty(lab.store, 0, AWAY))
    away._judge(lab.begun(away), PRUNED)
    late = lab.worker()
    lost = lab.begun(late)
    successor = lab.claim()
    assert successor.number == lost.number
    late._judge(lost, PRUNED)
    assert not set(left_over(lab)) & {artifact_id(lost.token, name) for name in FILES}
    lab.station.claims.release(successor)

    class Deleting(Faulty):
        def write(self, artifact_id: str, content_body: BinaryIO) -> None:
            assert steering.delete(lab.study, lab.store) is None
            self.store.write(artifact_id, content_body)

    lab.worker(Deleting(lab.store, 0, AWAY)).work.tidy()
    assert left_over(lab) == []


def test_a_store_that_is_gone_does_not_keep_a_study(lab: Lab) -> None:
    """It is deleted with all of its rows, and what was left is said; nor is a file touched that is no artifact."""
    victim = lab.artifacts.parent.with_name(f"{lab.study.name}.txt")
    victim.write_text("somebody else's")
    worker = lab.worker()
    claim = lab.begun(worker)
    key = f"artifacts:../../{victim.name}"
    lab.study.storage.optuna.set_trial_system_attr(claim.trial_id, key, "not by us")
    worker._judge(claim, PRUNED)
    asked: list[str] = []

    class Gone(Faulty):
        def remove(self, artifact_id: str) -> None:
            asked.append(artifact_id)
            raise self.fault

    left = steering.delete(lab.study, Gone(lab.store, 0, AWAY))
    assert left is not None
    assert "away" in str(left)
    assert asked
    assert not [each for each in asked if "/" in each]
    assert not lab.study.folder.path.exists()
    assert lab.station.claims.claim() is Idle.DELETED
    assert victim.read_text() == "somebody else's"

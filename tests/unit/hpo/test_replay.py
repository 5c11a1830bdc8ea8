"""What a replay is held against, and what is named when it differs: without a database, and without training."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from hpo.comparison import Comparison, compare, reasons
from hpo.replay import Original, Replay, choose_device
from hpo.study import Study
from hpo.study_file import StudyFile
from storage.ledger import PublishedFold, Registration
from storage.record import Attempt, describe_files
from storage.tree import StudyFolder
from trainer.artifacts import Predictions, write_fold
from trainer.config import TrainConfig
from trainer.errors import InputError
from trainer.metrics import evaluate
from trainer.provenance import commit, versions
from trainer.records import EpochRecord, FoldResult, Resolution

NAMES = ("A", "B")
TOKEN = "of the attempt"  # noqa: S105 - it lets nobody in
RESOLUTION = Resolution(
    device_kind="cpu", threads=1, precision="float32", micro_batch=8, validation_batch=32, fused=False
)
SEARCH = {"lr": {"type": "float", "low": 1e-5, "high": 1e-2}}


def attempt(worker: str = f"{socket.gethostname()}:{os.getpid()}", **environment: Any) -> Attempt:
    """Return the attempt that did everything, on this machine with this program unless it says otherwise."""
    ours = {"versions": versions(), "git_commit": commit().git_commit, "git_dirty": False}
    return Attempt(
        number=0, token=TOKEN, worker=worker, device="cpu", gpus=0.0, environment={**ours, **environment},
        start=datetime.now(UTC), end=None, ending="complete", epochs={},
    )  # fmt: skip


def write_predictions(folder: Path, probabilities: list[float]) -> FoldResult:
    """Write the files of a fold whose images have these probabilities of the second class, and return it."""
    (folder / "metrics").mkdir(parents=True)
    labels, second = np.arange(len(probabilities)) % 2, np.array(probabilities)
    rows = np.stack([1 - second, second], axis=1)
    metrics = evaluate(labels, rows, NAMES)
    result = FoldResult(
        fold=0, score=metrics.balanced_acc_adj, best_epoch=0, epochs_run=1, metrics=metrics, train_samples=4,
        val_samples=len(labels), class_weights=None, sampler="none",
    )  # fmt: skip
    record = EpochRecord(
        epoch=0, train_loss=1.0, val_loss=metrics.loss, train_acc=0.5, val_acc=metrics.acc, balanced_acc=metrics.balanced_acc,
        balanced_acc_adj=metrics.balanced_acc_adj, kappa_quadratic=metrics.kappa_quadratic, auc_ovr=metrics.auc_ovr,
        auc_ovo=metrics.auc_ovo, lr={"head": 0.1}, per_class=metrics.per_class, skipped_steps=0,
        seconds=float(np.random.default_rng().random()), images_per_second=1.0, best=True,
    )  # fmt: skip
    images = tuple(f"{index}.dcm" for index in range(len(labels)))
    write_fold(folder, result, record, Predictions(images, images, labels, rows))
    return result


def original(tmp_path: Path, *attempts: Attempt, config: TrainConfig | None = None) -> Original:
    """Return a complete trial of one published fold."""
    file = StudyFile.model_validate({"study": "s", "cv": {"folds": 2}, "search": SEARCH, "budget": {"trials": 1}})
    registration = Registration(1, "s", {}, "the study's", "f", "")
    study = Study(registration, file, file.space(), StudyFolder(tmp_path / "s"), cast("Any", None))
    place = study.folder.trial(0).fold(0)
    result = write_predictions(place, [0.1, 0.9, 0.2, 0.8])
    assert result.score == 1.0
    published = PublishedFold(0, TOKEN, result.score, describe_files(place, prefix="fold_0/"))
    trial = optuna.trial.create_trial(state=TrialState.COMPLETE, value=1.0)
    trial.number = 0
    return Original(study, trial, config or TrainConfig(), RESOLUTION, {0: published}, attempts or (attempt(),))


def replayed(tmp_path: Path, probabilities: list[float], **changed: Any) -> Replay:
    """Return a replay with these probabilities of the second class."""
    result = write_predictions(tmp_path / "again" / "fold_0", probabilities)
    same = Replay(tmp_path / "again", result.score, (result,), RESOLUTION, "the study's", NAMES)
    return replace(same, **changed)


def compared(tmp_path: Path, probabilities: list[float]) -> Comparison:
    """Return a trial held against a replay."""
    return compare(original(tmp_path), replayed(tmp_path, probabilities))


def test_times_are_no_difference(tmp_path: Path) -> None:
    """`val_metrics.json` has the seconds of its epoch in it; what is compared has none."""
    comparison = compared(tmp_path, [0.1, 0.9, 0.2, 0.8])
    assert comparison.equal
    assert comparison.in_words() == [
        "trial 0: equal to the bit: value 1.0000, scores, predictions and metrics of 1 folds"
    ]


def test_equal_scores_are_not_yet_equal_to_the_bit(tmp_path: Path) -> None:
    """One probability in its ninth digit: the value is the same, the predictions are not."""
    comparison = compared(tmp_path, [0.1, 0.9, 0.2, 0.800000001])
    assert not comparison.equal
    assert comparison.folds[0].score == 0
    assert comparison.folds[0].probability == pytest.approx(1e-9, rel=1e-3)
    first, *_ = comparison.in_words()
    assert first == (
        "trial 0: fold scores equal; largest difference of a probability 1e-09;"
        " fold 0: other metrics/val_metrics.csv, val_predictions.csv"
    )


def test_the_largest_difference_is_said(tmp_path: Path) -> None:
    """Of the value, of a fold's score, and of a probability."""
    first, *_ = compared(tmp_path, [0.1, 0.9, 0.7, 0.8]).in_words()
    assert (
        "value 1.0, here 0.5; largest difference of a fold score 0.5 (fold 0); largest difference of a probability 0.5"
        in first
    )


def test_predictions_that_are_not_the_published_ones_are_not_compared(tmp_path: Path) -> None:
    """Somebody has changed the file since: nothing can be said of the probabilities."""
    trial = original(tmp_path)
    path = trial.study.folder.trial(0).fold(0) / "val_predictions.csv"
    path.write_text(path.read_text().replace("0.9", "0.3"))
    comparison = compare(trial, replayed(tmp_path, [0.1, 0.9, 0.2, 0.7]))
    assert comparison.folds[0].probability is None
    assert "the original's predictions are gone" in comparison.in_words()[0]


def test_nothing_that_we_know_of_is_a_finding(tmp_path: Path) -> None:
    """It is said, and not left out."""
    trial = original(tmp_path, attempt(git_dirty=commit().git_dirty))
    found = [line for line in reasons(trial, replayed(tmp_path, [0.1])) if not line.startswith("perhaps the code")]
    assert found == []


@pytest.mark.parametrize(
    ("then", "now", "reason"),
    [
        ({}, {"resolution": RESOLUTION.model_copy(update={"threads": 2})}, "threads: 1 then, 2 now"),
        ({}, {"resolution": RESOLUTION.model_copy(update={"device_kind": "H100"})}, "device kind: cpu then, H100 now"),
        ({}, {"data_hash": "others"}, "data: hash the study's then, others now"),
        ({"versions": {**versions(), "torch": "2.0"}}, {}, f"torch: 2.0 then, {versions()['torch']} now"),
        ({"git_commit": "abc"}, {}, f"git commit: abc then, {commit().git_commit} now"),
        ({"git_dirty": True}, {}, "perhaps the code: changed from its commit then"),
        ({"worker": "elsewhere:7"}, {}, f"machine: elsewhere then, {socket.gethostname()} now"),
    ],
    ids=["threads", "device", "data", "library", "commit", "changed", "machine"],  # the same for every process
)
def test_what_differs_is_named(tmp_path: Path, then: dict[str, Any], now: dict[str, Any], reason: str) -> None:
    """Device, threads, data, libraries, code, machine."""
    found = reasons(original(tmp_path, attempt(**then)), replayed(tmp_path, [0.1], **now))
    assert any(line.startswith(reason) for line in found), found


def test_attempts_that_published_nothing_are_no_reason(tmp_path: Path) -> None:
    """Only those whose folds are compared are asked what they ran with."""
    early = attempt("elsewhere:7").model_copy(update={"token": "another"})
    found = reasons(original(tmp_path, early, attempt()), replayed(tmp_path, [0.1]))
    assert not any("elsewhere" in line for line in found)


def test_a_study_that_asks_for_no_determinism_gets_none(tmp_path: Path) -> None:
    """Then a difference needs no reason."""
    trial = original(tmp_path, config=TrainConfig(deterministic=False))
    assert any("deterministic" in line for line in reasons(trial, replayed(tmp_path, [0.1])))


def test_auto_is_the_trials_own_kind_of_device() -> None:
    """A trial of the processor is replayed there, also where there is a GPU; one that is asked for is taken or refused."""
    assert choose_device("auto", "cpu").type == "cpu"
    assert choose_device("cpu", "NVIDIA H100").type == "cpu"
    with pytest.raises(InputError, match="cuda:99"):
        choose_device("cuda:99", "cpu")

"""A whole search, as a user runs it: real processes, a real PostgreSQL, real training."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import balanced_accuracy_score

from tests.laboratory import STUDY, Laboratory
from trainer.data.phantom import make_phantom

FOLD_FILES = {
    "best_model.pth",
    "last_model.pth",
    "train_history.json",
    "val_predictions.csv",
    "metrics/val_metrics.json",
    "metrics/val_metrics.csv",
    "metrics/val_metrics.png",
}
TRIAL_FILES = {
    "optuna_trial.json",
    "summary.json",
    "run.log",
    "cv_summary.json",
    "oof_predictions.csv",
    "training_curves.png",
} | {f"fold_{fold}/{name}" for fold in range(3) for name in FOLD_FILES}


def values(laboratory: Laboratory, name: str = "small") -> dict[int, tuple[float, tuple[float, ...]]]:
    """Return value and fold scores of every trial, by number."""
    trials = sorted((laboratory.outputs / name).glob("trial_*"))
    records = [json.loads((trial / "optuna_trial.json").read_text()) for trial in trials]
    return {record["number"]: (record["value"], tuple(record["fold_scores"])) for record in records}


def files_below(folder: Path) -> set[str]:
    """Return all files below a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_search_from_nothing_to_a_ranked_study(laboratory: Laboratory) -> None:
    """Two workers finish exactly the budget, every trial leaves the contract's files, and the ranking is that of the files."""
    laboratory.study()
    assert laboratory.status()["state"] == "waiting"
    laboratory.ok("launch", "small", "--workers", 2)

    status = laboratory.status()
    assert status["state"] == "finished"
    assert status["trials"] == {"running": 0, "waiting": 0, "complete": 4, "pruned": 0, "fail": 0}
    assert {name: status["budget"][name] for name in ("asked", "spent", "left")} == {"asked": 4, "spent": 4, "left": 0}
    assert status["workers"] == []

    study = laboratory.outputs / "small"
    assert {"study.json", "folds.csv", "data_report.csv"} <= files_below(study)
    found = values(laboratory)
    assert sorted(found) == [0, 1, 2, 3]
    for number, (value, scores) in found.items():
        trial = study / f"trial_{number:04d}"
        assert files_below(trial) == TRIAL_FILES
        assert value == pytest.approx(sum(scores) / 3, abs=1e-12)
        for fold, score in enumerate(scores):
            predictions = pd.read_csv(trial / f"fold_{fold}" / "val_predictions.csv", dtype=str)
            again = balanced_accuracy_score(predictions["label"], predictions["prediction"], adjusted=True)
            assert score == pytest.approx(again, abs=1e-9)
    assert len({json.dumps(laboratory.record(number)["params"]) for number in found}) == 4

    best = max(found, key=lambda number: (found[number][0], -number))
    assert status["best"]["number"] == best
    assert json.loads(laboratory.ok("study", "best", "small", "--json")) == laboratory.record(best)
    laboratory.ok("study", "trials", "small", "--csv", "trials.csv")
    table = pd.read_csv(laboratory.folder / "trials.csv")
    assert dict(zip(table["number"], table["value"], strict=True)) == {
        number: value for number, (value, _) in found.items()
    }
    assert laboratory.ok("study", "list") == "small\n"
    check_torch_is_not_loaded(laboratory)


def test_trial_by_hand_gives_the_same_number(laboratory: Laboratory) -> None:
    """
    The command in a trial's `summary.json` trains the same again, to the bit, without a database; here with another
    backbone's vectors, which a worker that finds others refuses.
    """
    network = ("--arch", "test_efficientnet", "--weights", "none", "--img-size", 32)
    laboratory.ok("embed", *laboratory.data, *network, "--outdir", "vectors")
    more = "embeddings_dir: vectors, loss: ordinal, plateau_scheduler: true, fused_optim: true, batch_size: 8"
    laboratory.study(STUDY.replace("trials: 4", "trials: 2").replace("batch_size: 8", more))
    laboratory.ok("launch", "small", "--workers", 1)
    trial = laboratory.outputs / "small" / "trial_0001"
    command = shlex.split(json.loads((trial / "summary.json").read_text())["command"])
    assert command[:2] == ["mammography", "train-density"]
    laboratory.ok(*command[1:], "--cv-outdir", "again")
    again = laboratory.folder / "again"
    assert (again / "oof_predictions.csv").read_bytes() == (trial / "oof_predictions.csv").read_bytes()
    first, second = (json.loads((folder / "cv_summary.json").read_text()) for folder in (trial, again))
    assert first == second
    assert len(laboratory.record(1)["embeddings_hash"]) == 64
    vectors = np.load(laboratory.folder / "vectors" / "features.npy")
    np.save(laboratory.folder / "vectors" / "features.npy", vectors + 1)
    refused = laboratory.run("worker", "small")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "its features.npy is not the one that embeddings.json records" in refused.err
    (laboratory.folder / "vectors" / "embeddings.json").unlink()
    refused = laboratory.run("worker", "small")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "vectors: the vectors there differ from those that study 'small' was created on" in refused.err


def test_useless_learning_rate_ranks_last(laboratory: Laboratory, tmp_path: Path) -> None:
    """A better model gets a higher value: with a learning rate of nothing a new head stays at chance."""
    make_phantom(tmp_path / "larger", patients=48, side=128)
    laboratory.archive = tmp_path / "larger"
    laboratory.study("""\
study: small
cv: {folds: 2}
train: {arch: tf_efficientnet_lite0, weights: bundled, freeze: backbone, img_size: 96, epochs: 5, batch_size: 8}
search:
  lr: {type: categorical, choices: [1.0e-12, 1.0e-2]}
sampler: {name: random}
budget: {trials: 2}
""")
    laboratory.ok("launch", "small", "--workers", 1)
    by_rate = {laboratory.record(number)["params"]["lr"]: value for number, (value, _) in values(laboratory).items()}
    assert set(by_rate) == {1e-12, 1e-2}
    assert by_rate[1e-2] > by_rate[1e-12] + 0.1


@pytest.mark.chaos
def test_workers_that_start_together_decode_once_and_propose_differently(laboratory: Laboratory) -> None:
    """Four workers on a study whose cache is gone: one builds it, all use it, and no configuration comes twice."""
    laboratory.study()
    shutil.rmtree(laboratory.outputs / "cache")
    workers = [laboratory.start("worker", "small", *laboratory.data, "--threads", 1) for _ in range(4)]
    logs = [worker.communicate(timeout=280)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0], logs
    assert sum(log.count("decoding ") for log in logs) == 1
    assert len([path for path in (laboratory.outputs / "cache").iterdir() if path.is_dir()]) == 1
    params = [json.dumps(laboratory.record(number)["params"], sort_keys=True) for number in range(4)]
    assert len(set(params)) == 4


def test_configuration_that_diverges_fails_with_the_reason_and_spends_the_budget(laboratory: Laboratory) -> None:
    """A learning rate out of all reason: FAIL, the reason in the record, and the worker goes on to the next trial."""
    laboratory.study("""\
study: small
cv: {folds: 3}
train: {arch: test_efficientnet, weights: none, img_size: 32, epochs: 2, batch_size: 8, grad_clip: 0, backbone_lr: 1.0e+30}
search:
  lr: {type: float, low: 1.0e+30, high: 1.0e+35, log: true}
budget: {trials: 2}
""")
    laboratory.ok("launch", "small", "--workers", 1)
    assert laboratory.status()["trials"]["fail"] == 2
    record = laboratory.record(0)
    assert (record["state"], record["value"], record["n_folds_done"]) == ("fail", None, 0)
    assert "loss is not finite in fold 0" in record["reason"]
    best = laboratory.run("study", "best", "small")
    assert (best.code, best.err.count("\n")) == (1, 1)


def test_a_finished_trial_holds_what_a_paper_needs(laboratory: Laboratory) -> None:
    """
    Every image is predicted once, by a model that never saw its patient; `optuna_trial.json`, `summary.json` and `study.json`
    have the contract's fields, and times have a zone. The database was away in between, and what is lost is made again.
    """
    laboratory.study(STUDY.replace("trials: 4", "trials: 1"))
    study_folder = laboratory.outputs / "small"
    folds_before = (study_folder / "folds.csv").read_bytes()
    laboratory.ok("db", "stop")
    laboratory.ok("launch", "small", "--workers", 1)
    assert (study_folder / "folds.csv").read_bytes() == folds_before
    check_predictions(study_folder)
    record = laboratory.record(0)
    assert {
        "schema_version",
        "study",
        "number",
        "root_number",
        "attempts",
        "state",
        "value",
        "params",
        "distributions",
        "fold_scores",
        "n_folds_done",
        "pruned_at",
        "config",
        "seeds",
        "threads",
        "versions",
        "git_commit",
        "data_hash",
        "folds_hash",
        "device",
        "gpu_seconds",
        "started_at",
        "finished_at",
        "artifacts",
    } <= set(record)
    assert record["pruned_at"] is None
    assert record["finished_at"].endswith(("Z", "+00:00"))
    assert {artifact["name"] for artifact in record["artifacts"]} == TRIAL_FILES - {"optuna_trial.json"}
    trial = laboratory.outputs / "small" / "trial_0000"
    for artifact in record["artifacts"]:
        content = (trial / artifact["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (artifact["bytes"], artifact["sha256"])
    summary = json.loads((trial / "summary.json").read_text())
    assert {
        "seed",
        "git_commit",
        "git_dirty",
        "epochs",
        "batch_size",
        "lr",
        "backbone_lr",
        "warmup_epochs",
        "class_weights",
        "train_samples",
        "val_samples",
        "config",
        "versions",
        "device",
        "threads",
        "data_hash",
        "folds_hash",
        "command",
        "started_at",
        "finished_at",
    } <= set(summary)
    assert len(summary["val_samples"]) == 3
    study = json.loads((laboratory.outputs / "small" / "study.json").read_text())
    assert (study["data_hash"], study["folds_hash"]) == (record["data_hash"], record["folds_hash"])
    assert all(math.isfinite(score) for score in record["fold_scores"])

    # A worker that died between telling the database and placing its files: an idle one makes up for it.
    attempt = trial / f".attempt-{record['attempts'][0]['token']}"
    attempt.mkdir()
    for name in ("optuna_trial.json", "summary.json", "run.log"):
        (trial / name).rename(attempt / name)
    (trial / "fold_2").rename(attempt / "fold_2")
    laboratory.ok("worker", "small", *laboratory.data)
    assert files_below(trial) == TRIAL_FILES
    assert laboratory.record(0) == record
    # And where not even the record was written, it is made from the database.
    (trial / "optuna_trial.json").unlink()
    laboratory.ok("worker", "small", *laboratory.data)
    again = laboratory.record(0)
    differing = {name for name in record if record[name] != again[name]}
    assert differing <= {"finished_at", "attempts"}, "the moment when the database heard of the end"


def check_torch_is_not_loaded(laboratory: Laboratory) -> None:
    """Check that what only looks at a study starts without the network libraries."""
    for code in (
        "import storage.study_storage",
        "import sys; from hpo import cli; cli.run(['study', 'status', 'small'])",
    ):
        listed = subprocess.run(
            [sys.executable, "-c", f"{code}; import sys; print('torch' in sys.modules)"],
            cwd=laboratory.folder, env=laboratory.environment(), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert listed.stdout.splitlines()[-1] == "False"


def check_predictions(study: Path) -> None:
    """Check that the out-of-fold predictions follow the stored folds, and that no patient is on both sides."""
    with (study / "folds.csv").open(newline="") as stream:
        folds = {row["image"]: row for row in csv.DictReader(stream)}
    by_patient: dict[str, set[str]] = {}
    for row in folds.values():
        by_patient.setdefault(row["patient"], set()).add(row["fold"])
    assert all(len(of_patient) == 1 for of_patient in by_patient.values())
    predictions = pd.read_csv(study / "trial_0000" / "oof_predictions.csv", dtype=str)
    assert sorted(predictions["image"]) == sorted(folds)
    assert all(
        folds[image]["fold"] == fold for image, fold in zip(predictions["image"], predictions["fold"], strict=True)
    )


def wait_until(condition: object, timeout_s: float = 120) -> None:
    """Wait until *condition* () is true."""
    assert callable(condition)
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.2)

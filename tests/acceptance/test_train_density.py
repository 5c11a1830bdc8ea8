"""One configuration by hand: the contract's files, and no run ever over another."""

from __future__ import annotations

import json
import random
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from tests.laboratory import Laboratory

SMALL = (
    "--arch", "tf_efficientnet_lite0", "--weights", "bundled", "--img-size", "32", "--epochs", "2", "--batch-size", "8",
    "--warmup-epochs", "1", "--class-weights", "auto", "--train-augment", "--threads", "1",
)  # fmt: skip


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the epochs in *folder* without their times."""
    records: list[dict[str, Any]] = json.loads((folder / "train_history.json").read_text())
    return [{name: each[name] for name in each if name not in {"seconds", "images_per_second"}} for each in records]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint."""
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model_state_dict"]
    return state


def test_split_by_hand(laboratory: Laboratory) -> None:
    """Twice the same command: two folders with the same history, and metrics that scikit-learn computes again."""
    for number in (1, 2):
        out = laboratory.ok("train-density", "--", *laboratory.data, *SMALL, "--outdir", "runs")
        assert out.splitlines()[-1].endswith(f"runs/results_{number}")
    first, second = (laboratory.folder / "runs" / f"results_{number}" for number in (1, 2))
    records = history(first)
    assert records == history(second)
    timed = json.loads((first / "train_history.json").read_text())
    assert all(record["seconds"] > 0 and record["images_per_second"] > 0 for record in timed)
    assert [record["lr"]["head"] for record in records] == pytest.approx([1e-4, 1e-4])

    summary = json.loads((first / "summary.json").read_text())
    folds = pd.read_csv(first / "val_predictions.csv", dtype={"label": str, "prediction": str})
    assert len(folds) == summary["val_samples"]
    assert len(summary["class_weights"]) == 4
    metrics = json.loads((first / "metrics" / "val_metrics.json").read_text())
    assert metrics["balanced_acc_adj"] == pytest.approx(
        balanced_accuracy_score(folds["label"], folds["prediction"], adjusted=True)
    )
    assert metrics["kappa_quadratic"] == pytest.approx(
        cohen_kappa_score(folds["label"], folds["prediction"], labels=metrics["class_names"], weights="quadratic")
    )
    probabilities = folds[[f"p_{name}" for name in metrics["class_names"]]].to_numpy()
    assert metrics["auc_ovr"] == pytest.approx(roc_auc_score(folds["label"], probabilities, multi_class="ovr"))
    files = {"best_model.pth", "last_model.pth", "run.log", "summary.json", "run.json", "training_curves.png"}
    assert files <= {path.name for path in first.iterdir()}

    # Once more with --resume: the same run, with its numbers. With another rate it would be another one.
    again = laboratory.ok("train-density", "--", *laboratory.data, *SMALL, "--outdir", "runs", "--resume", first)
    assert again.splitlines()[-1].endswith("runs/results_1")
    assert history(first) == records
    assert {path.name for path in first.parent.iterdir()} == {"results_1", "results_2"}
    finished = laboratory.run("train-density", "--resume", first, "--lr", 0.5)
    assert (finished.code, finished.out, finished.err.count("\n")) == (2, "", 1)
    assert "--lr: the run in" in finished.err


@pytest.mark.chaos
def test_killed_runs_continue_to_the_bit(laboratory: Laboratory) -> None:
    """Three kills -9 at random moments, and a SIGTERM: every number, prediction and weight of an undisturbed run."""
    network = ("--arch", "test_efficientnet", "--weights", "none", "--dropout", "0.2", "--drop-path", "0.1")
    flags = (*SMALL, *network, "--epochs", "20", "--export-embeddings", "--save-every-epoch", "--cv-folds", 2)
    laboratory.ok("train-density", *laboratory.data, *flags, "--cv-outdir", "whole")
    killed = laboratory.folder / "killed"
    moments = random.Random(time.time_ns())  # noqa: S311 - another one each time: none may be wrong
    command: list[object] = ["train-density", *laboratory.data, *flags, "--cv-outdir", killed]
    for sent in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGKILL):
        started, process = time.time(), laboratory.start(*command)
        while process.poll() is None and not any(
            path.stat().st_mtime > started for path in killed.rglob("last_model.pth")
        ):
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.6))  # an epoch or two
        process.send_signal(sent)
        _, err = process.communicate(timeout=120)
        command = ["train-density", "--resume", killed]
        if sent == signal.SIGTERM:
            assert process.returncode == 130, err
            assert "SIGTERM: saving and stopping" in err
            command = list(shlex.split(err.splitlines()[-1].partition("go on with: ")[2])[1:])
    laboratory.ok(*command)
    whole = laboratory.folder / "whole"
    for name in ("oof_predictions.csv", "cv_summary.json", "folds.csv", "data_report.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    for fold in ("fold_0", "fold_1"):
        assert history(killed / fold) == history(whole / fold)
        names = {path.name for path in (whole / fold).iterdir()}
        assert names == {path.name for path in (killed / fold).iterdir()}
        assert {"checkpoint_epoch_19.pth", "embeddings_val.npy", "embeddings_val.csv"} <= names
        for path in (whole / fold).glob("*.pth"):
            mine, theirs = weights(path), weights(killed / fold / path.name)
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert (killed / fold / "embeddings_val.npy").read_bytes() == (whole / fold / "embeddings_val.npy").read_bytes()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    differing = {name for name in summaries[0] if summaries[0][name] != summaries[1][name]}
    assert differing <= {"started_at", "finished_at"}


def test_the_reference_commands(laboratory: Laboratory) -> None:
    """As the documentation has them, on a smaller network, image and number of epochs: vectors, a run, three folds."""
    smaller = ("--weights", "bundled", "--img-size", 32)
    network = ("--arch", "tf_efficientnet_lite0", *smaller, "--epochs", 3, "--threads", 1)
    laboratory.ok("embed", "--", *laboratory.data, "--outdir", "vectors", "--arch", "tf_efficientnet_lite0", *smaller)
    shared = (
        "--batch-size", 16, "--class-weights", "auto", "--warmup-epochs", 2, "--embeddings-dir", "vectors", "--num-workers", 6,
        "--prefetch-factor", 10, "--persistent-workers", "--cache-mode", "disk", "--fused-optim", "--train-augment",
    )  # fmt: skip
    laboratory.ok("train-density", "--", *laboratory.data, "--outdir", "density", *network, *shared)
    laboratory.ok(
        "train-density", "--", *laboratory.data, "--outdir", "density", *network, *shared, "--no-loader-heuristics",
        "--cv-folds", 3, "--cv-outdir", "experiments/results_k3_seed42",
    )  # fmt: skip
    one = json.loads((laboratory.folder / "density" / "results_1" / "summary.json").read_text())
    three = json.loads((laboratory.folder / "experiments" / "results_k3_seed42" / "summary.json").read_text())
    assert one["resolution"]["fused"] is True
    assert one["data_hash"] == three["data_hash"]
    assert (len(one["embeddings_hash"]), one["embeddings_hash"]) == (64, three["embeddings_hash"])
    assert one["config"]["embeddings_dir"] == str(laboratory.folder / "vectors")
    assert (three["loader_heuristics"], len(three["best_epoch"])) == (False, 3)
    head = weights(laboratory.folder / "density" / "results_1" / "best_model.pth")["classifier.weight"]
    assert head.shape == (4, 2 * 1280)
    log = (laboratory.folder / "density" / "results_1" / "run.log").read_text()
    assert "no effect of --num-workers, --prefetch-factor, --persistent-workers" in log


def test_folder_that_is_not_empty_is_refused(laboratory: Laboratory) -> None:
    """A cross-validation never writes over what is there."""
    (laboratory.folder / "taken").mkdir()
    (laboratory.folder / "taken" / "notes.txt").write_text("mine")
    finished = laboratory.run("train-density", *laboratory.data, *SMALL, "--cv-folds", 2, "--cv-outdir", "taken")
    assert finished.code == 2
    assert "--cv-outdir taken: must be empty or new, or named by --resume" in finished.err
    assert [path.name for path in (laboratory.folder / "taken").iterdir()] == ["notes.txt"]

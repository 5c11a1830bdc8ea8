"""One configuration by hand: the contract's files, and no run ever over another."""

from __future__ import annotations

import json
import random
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
    histories = [json.loads((folder / "train_history.json").read_text()) for folder in (first, second)]
    for history in histories:
        for record in history:
            assert record.pop("seconds") > 0
            assert record.pop("images_per_second") > 0
    assert histories[0] == histories[1]
    assert [record["lr"]["head"] for record in histories[0]] == pytest.approx([1e-4, 1e-4])

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


def test_killed_runs_continue_to_the_bit(laboratory: Laboratory) -> None:
    """Four kills -9 at random moments, resumed each time: every number, prediction and weight of an undisturbed run."""
    flags = (*SMALL, "--epochs", "8", "--dropout", "0.2", "--export-embeddings", "--save-every-epoch", "--cv-folds", 2)
    laboratory.ok("train-density", *laboratory.data, *flags, "--cv-outdir", "whole")
    killed = laboratory.folder / "killed"
    moments = random.Random(time.time_ns())  # noqa: S311 - another one each time: none may be wrong
    begin: tuple[object, ...] = ("train-density", *laboratory.data, *flags, "--cv-outdir", killed)
    for _ in range(4):
        process = laboratory.start(*begin)
        until = time.monotonic() + 120
        while not (killed / "run.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(moments.uniform(0.5, 4))
        process.kill()
        process.communicate()
        begin = ("train-density", "--resume", killed)
    laboratory.ok(*begin)
    whole = laboratory.folder / "whole"
    for name in ("oof_predictions.csv", "cv_summary.json", "folds.csv", "data_report.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    for fold in ("fold_0", "fold_1"):
        assert history(killed / fold) == history(whole / fold)
        names = {path.name for path in (whole / fold).iterdir()}
        assert names == {path.name for path in (killed / fold).iterdir()}
        assert {"checkpoint_epoch_7.pth", "embeddings_val.npy", "embeddings_val.csv"} <= names
        for path in (whole / fold).glob("*.pth"):
            mine, theirs = weights(path), weights(killed / fold / path.name)
            assert all(torch.equal(mine[key], theirs[key]) for key in mine)
        assert (killed / fold / "embeddings_val.npy").read_bytes() == (whole / fold / "embeddings_val.npy").read_bytes()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    differing = {name for name in summaries[0] if summaries[0][name] != summaries[1][name]}
    assert differing <= {"started_at", "finished_at"}


def test_a_resumed_run_stays_what_it_was(laboratory: Laboratory) -> None:
    """The same command once more with --resume ends with the same numbers; one with another rate is refused by its name."""
    laboratory.ok("train-density", *laboratory.data, *SMALL, "--outdir", "runs")
    folder = laboratory.folder / "runs" / "results_1"
    before = history(folder)
    laboratory.ok("train-density", "--", *laboratory.data, *SMALL, "--outdir", "runs", "--resume", folder)
    assert history(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["results_1"]
    finished = laboratory.run("train-density", "--resume", folder, "--lr", 0.5)
    assert (finished.code, finished.out, finished.err.count("\n")) == (2, "", 1)
    assert "--lr: the run in" in finished.err


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


def test_weights_that_cannot_be_had_are_an_error(laboratory: Laboratory) -> None:
    """Never a random start in place of weights that were asked for: one line that says how to get them."""
    finished = laboratory.run("train-density", *laboratory.data, "--arch", "resnet18", "--weights", "bundled")
    assert finished.code == 2
    line = finished.err.splitlines()[-1]
    assert "bundled are for arch tf_efficientnet_lite0, not resnet18" in line

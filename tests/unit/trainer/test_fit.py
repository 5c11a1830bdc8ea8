"""One fold: it repeats to the bit, continues to the bit, ends loudly when it diverges, and leaves its files."""

from __future__ import annotations

import csv
import json
import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from trainer.artifacts import read_fold, read_history
from trainer.checkpoint import read_checkpoint
from trainer.config import TrainConfig
from trainer.data.folds import Split
from trainer.data.records import Dataset
from trainer.errors import DataError, DivergedError, InputError, StopRequestedError
from trainer.fit import check_steps, fit, stops_early
from trainer.loading import Loading
from trainer.loop import Steps
from trainer.records import EpochRecord, FoldResult, Resolution
from trainer.resolve import Compute

Make = Callable[..., TrainConfig]
EPOCHS = 4


@pytest.fixture
def run(dataset: Dataset, split: Split, compute: Compute, listener: Any, tmp_path: Path) -> Callable[..., FoldResult]:
    """A function that trains a fold of a configuration in a folder, with what else it is given in place of the usual."""

    def call(config: TrainConfig, folder: Path | None = None, **other: Any) -> FoldResult:
        own = folder or tmp_path / "fold"
        own.mkdir(exist_ok=True)
        settled = {name: other.pop(name) for name in ("resolution", "loading") if name in other}
        usual = {"compute": replace(compute, **settled), "listener": listener}
        given = {"dataset": dataset, "split": split, "seed": 11, "stop": threading.Event(), **usual, **other}
        return fit(config, folder=own, **given)

    return call


def numbers(history: tuple[EpochRecord, ...]) -> list[dict[str, Any]]:
    """Return *history* without times."""
    return [record.model_dump(exclude={"seconds", "images_per_second"}) for record in history]


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return the weights in a checkpoint."""
    return read_checkpoint(folder / name).model


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Return whether the tensors are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_same_seed_gives_the_same_history(config: Make, run: Callable[..., FoldResult], tmp_path: Path) -> None:
    """Twice in one process, something random in between; another seed gives another history."""
    histories = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(config(epochs=2), tmp_path / folder, seed=seed)
        torch.rand(5)
        np.random.default_rng().random(5)
        histories.append(numbers(read_history(tmp_path / folder)))
    assert histories[0] == histories[1]
    assert histories[0] != histories[2]
    assert same(weights(tmp_path / "a", "last_model.pth"), weights(tmp_path / "b", "last_model.pth"))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampler": "weighted", "warmup_epochs": 1},
        {"plateau_scheduler": True, "plateau_patience": 0, "loss": "ordinal", "label_smoothing": 0.1},
        {"freeze": "all-but-last-block", "optimizer": "adam", "save_every_epoch": True},
    ],
    ids=["plain", "weighted", "plateau and ordinal", "frozen"],
)
def test_a_fold_continues_to_the_bit_from_each_epoch(
    config: Make, run: Callable[..., FoldResult], stop_after: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    """Stopped in the middle of any epoch and taken up again, every number and weight equals the undisturbed run's."""
    made = config(epochs=EPOCHS, **fields)
    whole = run(made, tmp_path / "whole")
    questions = 5 + 3  # an epoch asks before each of its 5 training and 3 validation batches
    for epoch in range(EPOCHS):
        folder = tmp_path / f"stopped_{epoch}"
        with pytest.raises(StopRequestedError):
            run(made, folder, stop=stop_after(epoch * questions + 3))
        assert (folder / "last_model.pth").exists() is (epoch > 0)
        assert run(made, folder) == whole
        assert numbers(read_history(folder)) == numbers(read_history(tmp_path / "whole"))
        for path in (tmp_path / "whole").glob("*.pth"):
            assert same(weights(folder, path.name), weights(tmp_path / "whole", path.name))
        assert (folder / "val_predictions.csv").read_bytes() == (tmp_path / "whole/val_predictions.csv").read_bytes()


@pytest.mark.parametrize("settled", [{"micro_batch": 2}, {"fused": True}], ids=["micro-batches", "fused"])
def test_what_was_settled_is_kept_to_the_bit(
    config: Make,
    run: Callable[..., FoldResult],
    resolution: Resolution,
    stop_after: Any,
    tmp_path: Path,
    settled: dict[str, Any],
) -> None:
    """In parts of a batch, or with a fused optimiser: interrupted and continued like any other."""
    own = resolution.model_copy(update=settled)
    whole = run(config(), tmp_path / "whole", resolution=own)
    with pytest.raises(StopRequestedError):
        run(config(), tmp_path / "stopped", resolution=own, stop=stop_after(12))
    assert run(config(), tmp_path / "stopped", resolution=own) == whole
    assert same(weights(tmp_path / "stopped", "last_model.pth"), weights(tmp_path / "whole", "last_model.pth"))


def test_parts_of_a_batch_train_as_the_whole_does(
    config: Make, run: Callable[..., FoldResult], resolution: Resolution, tmp_path: Path
) -> None:
    """A network without batch norm and dropout ends with the same weights, but for rounding."""
    made = config(
        arch="test_vit", dropout=0, drop_path=0, epochs=2, class_weights="auto", label_smoothing=0.1, img_size=160
    )
    states = []
    for micro_batch in (4, 2):
        folder = tmp_path / str(micro_batch)
        run(made, folder, resolution=resolution.model_copy(update={"micro_batch": micro_batch}))
        states.append(read_history(folder))
    for whole, parts in zip(*states, strict=True):
        assert whole.train_loss == pytest.approx(parts.train_loss, rel=1e-3)
        assert whole.val_loss == pytest.approx(parts.val_loss, rel=1e-3)


def test_the_plateau_scheduler_lowers_the_rate_by_the_objective(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path
) -> None:
    """Torch's ReduceLROnPlateau over the objectives in the history gives the rates in the history."""
    run(config(epochs=6, plateau_scheduler=True, plateau_patience=0, lr=0.05, grad_clip=0))
    history = read_history(tmp_path / "fold")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.05)
    reference_rates = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=0, threshold=0, eps=0
    )
    for record in history:
        assert record.lr["head"] == pytest.approx(optimizer.param_groups[0]["lr"])
        reference_rates.step(-1 if record.balanced_acc_adj is None else record.balanced_acc_adj)
    assert history[-1].lr["head"] < history[0].lr["head"]


def test_each_epoch_is_kept_where_that_is_asked_for(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path
) -> None:
    """A checkpoint an epoch, each with its own; one that a crash kept from being written is made again."""
    folder = tmp_path / "fold"
    run(config(epochs=3, save_every_epoch=True))
    names = [f"checkpoint_epoch_{epoch}.pth" for epoch in range(3)]
    assert [read_checkpoint(folder / name).epoch for name in names] == [0, 1, 2]
    assert same(weights(folder, names[2]), weights(folder, "last_model.pth"))
    (folder / names[2]).unlink()
    run(config(epochs=3, save_every_epoch=True))
    assert same(weights(folder, names[2]), weights(folder, "last_model.pth"))


def test_exported_embeddings_are_what_the_head_saw(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path, dataset: Dataset
) -> None:
    """Through the best model's classifier they become the probabilities that were written."""
    run(config(export_embeddings=True))
    folder = tmp_path / "fold"
    embeddings = np.load(folder / "embeddings_val.npy", allow_pickle=False)
    assert embeddings.dtype == np.float32
    best = weights(folder, "best_model.pth")
    logits = torch.from_numpy(embeddings) @ best["classifier.weight"].T + best["classifier.bias"]
    from_file = np.genfromtxt(folder / "val_predictions.csv", delimiter=",", skip_header=1)[:, 4:]
    assert np.allclose(torch.softmax(logits, dim=1).numpy(), from_file, atol=1e-5)
    with (folder / "embeddings_val.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    records = dataset.records[21:31]
    assert [row["image"] for row in rows] == [record.path for record in records]
    assert [row["label"] for row in rows] == [dataset.class_names[record.label] for record in records]
    assert {"accession", "patient"} < rows[0].keys()


def test_another_backbones_vectors_reach_the_head(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path, dataset: Dataset
) -> None:
    """Vectors that name the class outright: with everything else useless the head learns from them."""
    told = np.eye(3, dtype=np.float32)[dataset.labels] * 5
    fields = {"epochs": 12, "dropout": 0.0, "freeze": "backbone", "train_augment": False, "lr": 3e-2}
    useless = replace(dataset, images=np.zeros_like(dataset.images))
    without = run(config(**fields), tmp_path / "without", dataset=useless)
    result = run(config(**fields), tmp_path / "with", dataset=replace(useless, features=told, features_hash="other"))
    assert result.score == 1
    assert without.score is not None
    assert without.score < 0.5


def test_how_images_are_read_changes_no_number_and_no_resume(
    config: Make, run: Callable[..., FoldResult], stop_after: Any, tmp_path: Path
) -> None:
    """Streamed or resident, begun with one and continued with the other: the same to the bit."""
    whole = run(config(), tmp_path / "whole")
    streamed = Loading(streamed=True, num_workers=0, prefetch_factor=None, persistent_workers=False)
    other = config(num_workers=3, cache_mode="none", loader_heuristics=False)
    with pytest.raises(StopRequestedError):
        run(config(), tmp_path / "stopped", stop=stop_after(12))
    assert run(other, tmp_path / "stopped", loading=streamed) == whole
    assert same(weights(tmp_path / "stopped", "last_model.pth"), weights(tmp_path / "whole", "last_model.pth"))


def test_every_generator_of_the_process_is_seeded(config: Make, run: Callable[..., FoldResult], tmp_path: Path) -> None:
    """After a run torch's, Python's and NumPy's global generators stand where they stood after the same run before."""
    stands = []
    for folder in ("first", "second"):
        random.seed()
        run(config(epochs=1), tmp_path / folder)
        stands.append((torch.rand(1).item(), random.random(), np.random.rand()))  # noqa: S311, NPY002
    assert stands[0] == stands[1]


def test_a_crash_between_the_two_checkpoints_is_mended(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path
) -> None:
    """Where the last epoch is the best and only `last_model.pth` was written, the best one is made again."""
    made = config(epochs=1)
    run(made)
    (tmp_path / "fold" / "best_model.pth").unlink()
    run(made)
    assert read_checkpoint(tmp_path / "fold" / "best_model.pth").epoch == 0


def test_a_lost_best_model_is_trained_again(config: Make, run: Callable[..., FoldResult], tmp_path: Path) -> None:
    """Without the best model of an earlier epoch the fold starts anew, and ends with the same numbers."""
    made = config(
        epochs=3, lr=1e-12, freeze="backbone", train_augment=False
    )  # nothing changes: the first one is the best
    result = run(made)
    assert result.best_epoch == 0
    (tmp_path / "fold" / "best_model.pth").unlink()
    assert run(made) == result
    assert read_checkpoint(tmp_path / "fold" / "best_model.pth").epoch == result.best_epoch


@pytest.mark.parametrize(
    ("fields", "other", "message"),
    [({"lr": 1e-5}, {}, "lr"), ({}, {"seed": 12}, "seed"), ({"epochs": 5}, {}, "epochs")],
)
def test_a_checkpoint_of_another_run_is_not_continued(
    config: Make, run: Callable[..., FoldResult], fields: dict[str, Any], other: dict[str, Any], message: str
) -> None:
    """The error names what differs."""
    run(config(epochs=1))
    with pytest.raises(InputError, match=f"whose {message} is"):
        run(config(**{"epochs": 1, **fields}), **other)


def test_a_broken_checkpoint_is_said_and_not_continued(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The fold begins anew, with the numbers that it would have had."""
    undisturbed = run(config())
    (tmp_path / "fold" / "last_model.pth").write_bytes(b"nothing of ours")
    assert run(config()) == undisturbed
    assert "last_model.pth: is no checkpoint of this program" in caplog.text


def test_the_files_say_the_same_as_the_result(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path, listener: Any
) -> None:
    """A fold read back equals what was returned; the listener was told of each epoch; every file of the contract is there."""
    result = run(config(epochs=3))
    folder = tmp_path / "fold"
    assert read_fold(folder) == result
    assert [record for _, record in listener.epochs] == list(read_history(folder))
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "best_model.pth",
        "last_model.pth",
        "metrics/val_metrics.csv",
        "metrics/val_metrics.json",
        "metrics/val_metrics.png",
        "train_history.json",
        "val_predictions.csv",
    ]
    content = json.loads((folder / "metrics" / "val_metrics.json").read_text())
    record = json.loads((folder / "train_history.json").read_text())[result.best_epoch]
    assert {name: content[name] for name in record} == record


def test_every_metric_follows_from_the_predictions(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path, dataset: Dataset
) -> None:
    """scikit-learn on `val_predictions.csv` gives the numbers that were reported."""
    result = run(config(epochs=3))
    with (tmp_path / "fold" / "val_predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    labels = [row["label"] for row in rows]
    probabilities = np.array([[float(row[f"p_{name}"]) for name in dataset.class_names] for row in rows])
    predicted = [row["prediction"] for row in rows]
    assert [row["image"] for row in rows] == [dataset.records[i].path for i in range(21, 31)]
    assert [row["patient"] for row in rows] == [dataset.records[i].patient for i in range(21, 31)]
    assert predicted == [dataset.class_names[i] for i in probabilities.argmax(axis=1)]
    adjusted = reference.balanced_accuracy_score(labels, predicted, adjusted=True)
    assert result.score == result.metrics.balanced_acc_adj == pytest.approx(adjusted)
    assert result.metrics.loss == pytest.approx(reference.log_loss(labels, probabilities, labels=["A", "B", "C"]))
    assert result.metrics.auc_ovr == pytest.approx(reference.roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_the_best_epoch_is_the_largest_tuple_and_the_earliest_of_equals(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path
) -> None:
    """Over the history that was written, by the rule of the contract."""
    result = run(config(epochs=4))
    tuples = [
        tuple(-np.inf if value is None else value for value in (r.balanced_acc_adj, r.kappa_quadratic, r.auc_ovr))
        for r in read_history(tmp_path / "fold")
    ]
    assert result.best_epoch == tuples.index(max(tuples))
    assert read_checkpoint(tmp_path / "fold" / "best_model.pth").epoch == result.best_epoch


def test_checkpoints_hold_what_the_contract_lists(config: Make, run: Callable[..., FoldResult], tmp_path: Path) -> None:
    """They load as tensors and plain values alone, and the configuration in them makes the same configuration."""
    made = config(epochs=1)
    run(made)
    payload = torch.load(tmp_path / "fold" / "best_model.pth", weights_only=True)
    states = {f"{name}_state_dict" for name in ("model", "optimizer", "scheduler", "scaler")}
    assert states | {"epoch", "best_metrics", "config"} <= payload.keys()
    assert TrainConfig.model_validate(payload["config"]) == made


def test_a_tiny_network_learns(config: Make, run: Callable[..., FoldResult]) -> None:
    """Brightness tells the classes: a useful rate finds that out, a useless one does not."""
    fields = {"epochs": 12, "dropout": 0.0, "drop_path": 0.0, "train_augment": False, "backbone_lr": 3e-3}
    useful = run(config(**fields, lr=3e-3))
    assert useful.score is not None
    assert useful.score > 0.7


def test_a_useless_rate_learns_nothing(config: Make, run: Callable[..., FoldResult]) -> None:
    """With rates of nearly 0 the score stays near chance."""
    useless = run(config(epochs=2, lr=1e-12, backbone_lr=1e-12))
    assert useless.score is None or useless.score < 0.5


def test_a_diverging_rate_ends_the_fold(config: Make, run: Callable[..., FoldResult], tmp_path: Path) -> None:
    """The error names fold, epoch and step, and nothing of the epoch is saved."""
    with pytest.raises(DivergedError, match=r"fold 0, epoch \d+, step \d+") as caught:
        run(config(lr=1e30, backbone_lr=1e30, grad_clip=0, optimizer="adam"))
    assert caught.value.fold == 0
    assert not (tmp_path / "fold" / "metrics").exists()


def test_weights_that_the_last_step_spoilt_name_that_step(config: Make, run: Callable[..., FoldResult]) -> None:
    """In an epoch of one step its loss is finite, and only the validation shows what it did: steps count from 0."""
    with pytest.raises(DivergedError, match="validation loss is not finite in fold 0, epoch 0, step 0"):
        run(config(lr=1e30, backbone_lr=1e30, grad_clip=0, optimizer="adam", batch_size=64))


def test_training_never_touches_the_images(config: Make, run: Callable[..., FoldResult], dataset: Dataset) -> None:
    """The array is the same afterwards, augmentation or not."""
    before = dataset.images.copy()
    run(config(epochs=1))
    assert np.array_equal(dataset.images, before)


def test_validation_images_are_never_augmented(
    config: Make, run: Callable[..., FoldResult], tmp_path: Path, dataset: Dataset
) -> None:
    """The probabilities of the last epoch are those of the saved network on the plain images."""
    made = config(epochs=1, augment_flip=1, augment_rotation=90)
    run(made)
    content = read_checkpoint(tmp_path / "fold" / "last_model.pth")
    from_file = np.genfromtxt(tmp_path / "fold" / "val_predictions.csv", delimiter=",", skip_header=1)[:, 4:]
    assert np.allclose(from_file, plain_probabilities(made, content.model, dataset), atol=1e-5)


def plain_probabilities(config: TrainConfig, state: dict[str, torch.Tensor], dataset: Dataset) -> np.ndarray:
    """Return the probabilities of images 21 to 30 by timm and torch alone."""
    timm = pytest.importorskip("timm")
    model = timm.create_model(config.arch, num_classes=3)
    model.load_state_dict(state)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = torch.from_numpy(dataset.images[21:31]).unsqueeze(1).repeat(1, 3, 1, 1)
    with torch.inference_mode():
        return torch.softmax(model.eval()((images / 255 - mean) / std), dim=1).numpy()


def test_weights_and_sampler_really_used_are_in_the_result(
    config: Make, run: Callable[..., FoldResult], caplog: pytest.LogCaptureFixture
) -> None:
    """With weighted sampling the class weights are off, whatever was asked for, and the log says so."""
    caplog.set_level("INFO")
    result = run(config(epochs=1, sampler="weighted", class_weights="auto"))
    assert (result.sampler, result.class_weights) == ("weighted", None)
    assert "weighted sampling is on: class weights auto are off" in caplog.text
    assert (result.train_samples, result.val_samples) == (21, 10)


@pytest.mark.parametrize(
    ("patience", "warmup", "best", "last"), [(2, 0, 0, 2), (2, 3, 0, 4), (3, 0, 4, 7), (2, 3, 5, 7)]
)
def test_patience_counts_from_the_best_epoch_or_the_end_of_the_warm_up(
    config: Make, patience: int, warmup: int, best: int, last: int
) -> None:
    """The fold ends with the epoch that was the last allowed without a better one."""
    made = config(epochs=20, early_stop_patience=patience, warmup_epochs=warmup)
    assert next(epoch for epoch in range(20) if stops_early(made, epoch, best)) == last
    assert not stops_early(config(epochs=20), 19, 0)


def test_an_early_stop_is_recorded_and_final(config: Make, run: Callable[..., FoldResult], listener: Any) -> None:
    """Without any learning the first epoch stays the best; taken up again, nothing more is trained."""
    made = config(
        epochs=9, lr=1e-12, backbone_lr=1e-12, early_stop_patience=1, dropout=0, drop_path=0, train_augment=False
    )
    made = made.model_copy(update={"freeze": "backbone"})
    result = run(made)
    assert result.epochs_run == result.best_epoch + 2 < 9
    told = len(listener.epochs)
    assert run(made) == result
    assert len(listener.epochs) == told


def test_mixed_precision_trains_and_continues(
    config: Make, run: Callable[..., FoldResult], resolution: Resolution, stop_after: Any, tmp_path: Path
) -> None:
    """In bfloat16 and in float16 with its scaler, on the processor too, and to the bit after an interruption."""
    for dtype in ("bfloat16", "float16"):
        own = resolution.model_copy(update={"precision": dtype})
        whole = run(config(epochs=2), tmp_path / dtype, resolution=own)
        with pytest.raises(StopRequestedError):
            run(config(epochs=2), tmp_path / f"{dtype}_stopped", resolution=own, stop=stop_after(10))
        assert run(config(epochs=2), tmp_path / f"{dtype}_stopped", resolution=own) == whole


def test_too_few_images_are_refused(config: Make, run: Callable[..., FoldResult]) -> None:
    """One training image, or none to validate on, is an error that says so."""
    with pytest.raises(DataError, match="1 training and 5 validation"):
        run(config(), split=Split(fold=2, train=np.array([1]), validation=np.arange(5)))


def test_an_interrupted_copy_elsewhere_continues(
    config: Make, run: Callable[..., FoldResult], stop_after: Any, tmp_path: Path
) -> None:
    """The checkpoints alone, copied to another folder, are enough."""
    made = config(epochs=3)
    whole = run(made, tmp_path / "whole")
    with pytest.raises(StopRequestedError):
        run(made, tmp_path / "first", stop=stop_after(20))
    (tmp_path / "second").mkdir()
    for name in ("last_model.pth", "best_model.pth"):
        shutil.copyfile(tmp_path / "first" / name, tmp_path / "second" / name)
    assert run(made, tmp_path / "second") == whole


@pytest.mark.parametrize(
    ("n_steps", "n_skipped", "accepted"), [(40, 4, True), (40, 5, False), (5, 1, True), (5, 2, False)]
)
def test_more_than_a_tenth_of_skipped_steps_is_divergence(n_steps: int, n_skipped: int, accepted: bool) -> None:
    """One step may always be skipped: that is how the scaler finds its scale."""
    ones = np.ones(n_steps)
    steps = Steps(ones, ones, np.arange(n_steps) >= n_steps - n_skipped, ones.astype(np.int64))
    if accepted:
        check_steps(3, 2, steps)
    else:
        with pytest.raises(DivergedError, match="steps were skipped in fold 3, epoch 2") as caught:
            check_steps(3, 2, steps)
        assert caught.value.step == n_steps - n_skipped

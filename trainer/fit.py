"""One fold: epochs, the best of them, early stop, and continuing where an earlier process ended."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.artifacts import Predictions, write_embeddings, write_fold, write_history
from trainer.balance import Balance, resolve_balance, training_counts
from trainer.batches import Indices, Source, epoch_order
from trainer.checkpoint import BEST, Checkpoint, Origin, load, read_checkpoint, save, sides_hash
from trainer.config import TrainConfig
from trainer.data.folds import Split
from trainer.data.records import Dataset
from trainer.errors import DataError, DivergedError, OutOfMemoryError
from trainer.loop import Forward, Learner, Steps, predict, train_epoch
from trainer.losses import build_loss
from trainer.metrics import evaluate, rank, softmax
from trainer.model import build_network
from trainer.optim import build_optimizer, set_learning_rates
from trainer.precision import build_precision
from trainer.protocols import Listener, StopSignal
from trainer.records import EpochRecord, FoldResult, Metrics, Resolution
from trainer.resolve import Compute, enforce
from trainer.seeds import epoch_seed, seed_globals
from trainer.streaming import open_source

logger = logging.getLogger(__name__)

_MOST_SKIPPED = 0.1  # of an epoch's steps
_FEWEST_IMAGES = 2  # batch norm has no spread over one


@dataclass(frozen=True)
class Task:
    """A fold to be trained: what does not change from epoch to epoch."""

    origin: Origin
    train: Indices
    validation: Indices
    labels: NDArray[np.int64]
    """(N,) of the whole data set."""
    balance: Balance

    @property
    def config(self) -> TrainConfig:
        """What is trained."""
        return self.origin.config


def fit(
    config: TrainConfig,
    dataset: Dataset,
    split: Split,
    seed: int,
    *,
    compute: Compute,
    folder: Path,
    listener: Listener,
    stop: StopSignal,
) -> FoldResult:
    """
    Train one fold in *folder* and return it; continue from `last_model.pth` where that is, to the bit.

    A single split is a fold too. All files of the fold are there at the end; after each epoch it is saved, and only then
    the listener told of it.

    Args:
        config: What is trained.
        dataset: All images.
        split: The images that are trained on, and those that are validated on.
        seed: Of the fold; nothing else is drawn from.
        compute: Where and how; what decides the bits is enforced.
        folder: For the files of the fold; it exists.
        listener: Told of each epoch.
        stop: Asked between steps.

    Raises:
        StopRequestedError: Asked to stop; the epoch under way is lost, the last finished one saved.
        DivergedError: The loss is not finite.
        OutOfMemoryError: The device has too little memory.
        DataError: Too few images on either side.
        InputError: Configuration, weights or an earlier checkpoint do not fit.
    """
    enforce(compute.resolution, deterministic=config.deterministic)
    task = _task(config, dataset, split, seed, compute.resolution)
    try:
        checkpoint, embeddings = _run(task, dataset, compute, folder, listener, stop)
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(".")[0]
    else:
        return _finish(task, dataset, checkpoint, folder, embeddings)
    # Only out here is the traceback gone, and with it the tensors that its frames held.
    torch.cuda.empty_cache()
    raise OutOfMemoryError(f"{reason} (arch {config.arch}, img_size {config.img_size}, batch_size {config.batch_size})")


def _task(config: TrainConfig, dataset: Dataset, split: Split, seed: int, resolution: Resolution) -> Task:
    """Return the fold to be trained, what is done about unequal classes settled and logged."""
    if len(split.train) < _FEWEST_IMAGES or len(split.validation) == 0:
        sizes = f"{len(split.train)} training and {len(split.validation)} validation images"
        raise DataError(f"fold {split.fold}: {sizes} are too few")
    labels = dataset.labels
    counts = training_counts(dataset, split)
    balance = resolve_balance(config, counts)
    if balance.sampler == "weighted" and config.class_weights != "none":
        logger.info("weighted sampling is on: class weights %s are off", config.class_weights)
    logger.info(
        "fold %d: %d training and %d validation images, counts %s, class weights %s, sampler %s",
        split.fold,
        len(split.train),
        len(split.validation),
        counts,
        balance.class_weights,
        balance.sampler,
        extra={"action": "fold_started", "fold": split.fold},
    )
    origin = Origin(
        config=config,
        fold=split.fold,
        seed=seed,
        data_hash=dataset.data_hash,
        features_hash=dataset.features_hash,
        sides_hash=sides_hash(split.train, split.validation),
        resolution=resolution,
        class_names=dataset.class_names,
    )
    return Task(origin, split.train, split.validation, labels, balance)


def _run(
    task: Task, dataset: Dataset, compute: Compute, folder: Path, listener: Listener, stop: StopSignal
) -> tuple[Checkpoint, NDArray[np.float32] | None]:
    """Return the fold after its last epoch, and the features of its validation images if they are asked for."""
    with open_source(dataset, compute.device, compute.loading) as source:
        learner = _learner(task, dataset, source, compute.device)
        checkpoint = _train(task, learner, folder, listener, stop)
        return checkpoint, _embeddings(task, learner, folder, stop) if task.config.export_embeddings else None


def _train(task: Task, learner: Learner, folder: Path, listener: Listener, stop: StopSignal) -> Checkpoint:
    """Train the epochs that are missing and return the fold after the last."""
    checkpoint = load(folder, task.origin)
    if checkpoint is not None:
        learner.network.model.load_state_dict(checkpoint.model)
        learner.optimizer.load_state_dict(checkpoint.optimizer)
        learner.precision.scaler.load_state_dict(checkpoint.scaler)
        listener.fold_resumed(task.origin.fold, checkpoint.history, last=_finished(task.config, checkpoint))
    while checkpoint is None or not _finished(task.config, checkpoint):
        checkpoint = _epoch(task, learner, checkpoint, stop)
        save(checkpoint, folder)
        write_history(folder, checkpoint.history)
        _log(task, checkpoint)
        listener.epoch_finished(task.origin.fold, checkpoint.history[-1], last=_finished(task.config, checkpoint))
    return checkpoint


def _learner(task: Task, dataset: Dataset, source: Source, device: torch.device) -> Learner:
    """Return what the steps need, new from the seed."""
    config, resolution = task.config, task.origin.resolution
    n_classes = len(dataset.class_names)
    n_features = 0 if dataset.features is None else dataset.features.shape[1]
    network = build_network(config, n_classes, task.origin.seed, n_features).to(device)
    return Learner(
        network=network,
        optimizer=build_optimizer(config, network, fused=resolution.fused),
        loss=build_loss(config, n_classes, task.balance.class_weights).to(device),
        precision=build_precision(resolution.precision, device, config.grad_clip),
        source=source,
        micro_batch=resolution.micro_batch,
    )


def _finished(config: TrainConfig, checkpoint: Checkpoint) -> bool:
    """Return whether no epoch is missing: all are done, or too many went by without a better one."""
    done = len(checkpoint.history)
    return done >= config.epochs or stops_early(config, checkpoint.epoch, checkpoint.best_epoch)


def stops_early(config: TrainConfig, epoch: int, best_epoch: int) -> bool:
    """Return whether *epoch* is the last: as many as the patience went by since the best one or the end of the warm-up."""
    if config.early_stop_patience == 0:
        return False
    return epoch - max(best_epoch, config.warmup_epochs - 1) >= config.early_stop_patience


def _epoch(task: Task, learner: Learner, before: Checkpoint | None, stop: StopSignal) -> Checkpoint:
    """Train and validate one epoch more and return the fold after it."""
    epoch = 0 if before is None else before.epoch + 1
    seed, config = task.origin.seed, task.config
    started = time.perf_counter()
    history = () if before is None else before.history
    rates = set_learning_rates(learner.optimizer, config, [record.balanced_acc_adj for record in history])
    seed_globals(epoch_seed(seed, epoch))  # dropout and stochastic depth draw from torch's
    order = epoch_order(task.train, task.labels, task.balance.sampler, epoch_seed(seed, epoch))
    steps = train_epoch(learner, order, config, (seed, epoch), stop)
    trained_s = time.perf_counter() - started
    check_steps(task.origin.fold, epoch, steps)
    probabilities = _probabilities(task, learner, epoch, len(steps.sizes) - 1, stop)
    metrics = evaluate(task.labels[task.validation], probabilities, task.origin.class_names)
    best = before is None or rank(metrics) > rank(before.best_metrics)
    record = _record(epoch, steps, metrics, rates, trained_s, time.perf_counter() - started, best=best)
    return Checkpoint(
        origin=task.origin,
        model=learner.network.model.state_dict(),
        optimizer=learner.optimizer.state_dict(),
        scaler=learner.precision.scaler.state_dict(),
        history=(*history, record),
        best_epoch=epoch if before is None or best else before.best_epoch,
        best_probabilities=torch.from_numpy(probabilities) if before is None or best else before.best_probabilities,
        best_metrics=metrics if before is None or best else before.best_metrics,
    )


def check_steps(fold: int, epoch: int, steps: Steps) -> None:
    """
    Accept an epoch whose losses are finite and of whose steps at most a tenth were skipped, or one: to grow, the scale
    must be tried.

    Raises:
        DivergedError: with the first step at fault.
    """
    if steps.first_bad is not None:
        raise DivergedError(fold, epoch, steps.first_bad)
    if steps.skipped.sum() > max(1, _MOST_SKIPPED * len(steps.skipped)):
        first = int(np.flatnonzero(steps.skipped)[0])
        raise DivergedError(fold, epoch, first, f"{steps.skipped.sum()} of {len(steps.skipped)} steps were skipped")


def _probabilities(task: Task, learner: Learner, epoch: int, last_step: int, stop: StopSignal) -> NDArray[np.float64]:
    """
    Return (V, C) probabilities of the validation images.

    Raises:
        DivergedError: they are not finite: the last step spoilt the weights.
    """
    logits = _predict(task, learner, learner.network, stop)
    if not np.isfinite(logits).all():
        raise DivergedError(task.origin.fold, epoch, last_step, "validation loss is not finite")
    return softmax(logits)


def _predict(task: Task, learner: Learner, forward: Forward, stop: StopSignal) -> NDArray[np.float32]:
    """Return (V, K) of the validation images, whatever *forward*, of the learner's network, gives for them."""
    learner.network.eval()
    size = task.origin.resolution.validation_batch
    return predict(forward, learner.source, task.validation, size, learner.precision, stop)


def _embeddings(task: Task, learner: Learner, folder: Path, stop: StopSignal) -> NDArray[np.float32]:
    """Return (V, K) features of the validation images before the head, by the best model in *folder*."""
    learner.network.model.load_state_dict(read_checkpoint(folder / BEST).model)
    return _predict(task, learner, learner.network.embed, stop)


def _record(
    epoch: int, steps: Steps, metrics: Metrics, rates: dict[str, float], trained_s: float, all_s: float, *, best: bool
) -> EpochRecord:
    """Return the line of the history."""
    return EpochRecord(
        epoch=epoch,
        train_loss=steps.loss,
        val_loss=metrics.loss,
        train_acc=steps.acc,
        val_acc=metrics.acc,
        balanced_acc=metrics.balanced_acc,
        balanced_acc_adj=metrics.balanced_acc_adj,
        kappa_quadratic=metrics.kappa_quadratic,
        auc_ovr=metrics.auc_ovr,
        auc_ovo=metrics.auc_ovo,
        lr=rates,
        per_class=metrics.per_class,
        skipped_steps=int(steps.skipped.sum()),
        seconds=all_s,
        images_per_second=float(steps.sizes.sum()) / trained_s,
        best=best,
    )


def _log(task: Task, checkpoint: Checkpoint) -> None:
    record = checkpoint.history[-1]
    logger.info(
        "fold %d epoch %d/%d: train loss %.4f, val loss %s, balanced accuracy adjusted %s, kappa %s, %.1f images/s%s",
        task.origin.fold,
        record.epoch + 1,
        task.config.epochs,
        record.train_loss,
        _shown(record.val_loss),
        _shown(record.balanced_acc_adj),
        _shown(record.kappa_quadratic),
        record.images_per_second,
        " (best)" if record.best else "",
        extra={"action": "epoch_finished", "fold": task.origin.fold, "epoch": record.epoch},
    )


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _finish(
    task: Task, dataset: Dataset, checkpoint: Checkpoint, folder: Path, embeddings: NDArray[np.float32] | None
) -> FoldResult:
    """Write what a finished fold leaves and return it."""
    result = FoldResult(
        fold=task.origin.fold,
        score=checkpoint.best_metrics.balanced_acc_adj,
        best_epoch=checkpoint.best_epoch,
        epochs_run=len(checkpoint.history),
        metrics=checkpoint.best_metrics,
        train_samples=len(task.train),
        val_samples=len(task.validation),
        class_weights=task.balance.class_weights,
        sampler=task.balance.sampler,
    )
    records = [dataset.records[index] for index in task.validation]
    predictions = Predictions(
        images=tuple(record.path for record in records),
        patients=tuple(record.patient for record in records),
        labels=task.labels[task.validation],
        probabilities=checkpoint.best_probabilities.numpy(),
    )
    write_history(folder, checkpoint.history)
    if embeddings is not None:
        write_embeddings(folder, embeddings, records, dataset.class_names)
    write_fold(folder, result, checkpoint.history[checkpoint.best_epoch], predictions)
    return result

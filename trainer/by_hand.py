"""One configuration, trained by hand: the same code as a trial, with a folder and a log line in place of a database."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from trainer.artifacts import EMBEDDINGS, read_history, write_curves
from trainer.batches import batch_bounds
from trainer.cli import to_flags
from trainer.config import RunConfig
from trainer.cross_validation import cross_validate
from trainer.data.cache import open_dataset
from trainer.data.folds import Folds, Split, holdout, make_folds, split_hash, to_csv
from trainer.data.labels import read_labels
from trainer.data.records import Dataset
from trainer.data.report import summary, write_report
from trainer.embeddings import attach
from trainer.errors import InputError, StopRequestedError
from trainer.files import remove_unfinished, write_text
from trainer.fit import fit
from trainer.loading import free_for_training, settle_loading
from trainer.memory import choose_batch_size
from trainer.model import check_arch
from trainer.protocols import StopSignal
from trainer.provenance import versions
from trainer.records import EpochRecord, FoldResult
from trainer.resolve import Compute, device_kind, resolve, resolve_device, resolve_precision
from trainer.run_log import log_to
from trainer.run_record import Run, alone_in, check_same, read_run
from trainer.seeds import Seeds
from trainer.summary import Summary, summarise
from trainer.weights import load_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HandFolder:
    """The folder of a run by hand: a fold is trained where it stays."""

    path: Path
    with_embeddings: bool = False
    """Whether a fold without them is not finished: they may be asked for now and not have been before."""

    def fold(self, fold: int) -> Path:
        """Return the folder of a fold."""
        folder = self.path / f"fold_{fold}"
        folder.mkdir(exist_ok=True)
        return folder

    def published(self, fold: int) -> Path | None:
        """Return the folder of a fold that is finished: its metrics are the last that is written."""
        folder = self.path / f"fold_{fold}"
        is_complete = (folder / EMBEDDINGS).is_file() or not self.with_embeddings
        return folder if is_complete and (folder / "metrics" / "val_metrics.json").is_file() else None


class Quiet:
    """A listener that has nobody to tell: the log lines are the trainer's own."""

    def epoch_finished(self, fold: int, record: EpochRecord) -> None:
        """Do nothing."""

    def fold_finished(self, result: FoldResult) -> None:
        """Do nothing: the fold is in its place."""


def train_density(
    config: RunConfig,
    outputs: Path,
    *,
    resume: Path | None = None,
    stop: StopSignal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, Summary]:
    """
    Train *config* and return the folder with its files and its record.

    Args:
        config: What, on what, and where to.
        outputs: The output folder, for what *config* leaves open.
        resume: The folder of a run that was begun with *config*, to be continued to the bit.
        stop: Whether somebody asked to stop.
        progress: Told of images done and all images while they are decoded.

    Raises:
        InputError: Wrong input, a folder that is not empty, or a run that cannot be continued here.
        DataError: The data cannot be used.
        StopRequestedError: Asked to stop; the message says how to go on.
    """
    # Before images are decoded for hours: what can be found wrong without them.
    if resume is None:
        _check_empty(config)
    read_labels(config.csv)
    check_arch(config.arch)
    load_weights(config.weights, config.arch)
    dataset = _open(config, outputs, progress)
    division = _divide(config, dataset)
    device = resolve_device(config.device)
    if resume is None:
        run = _settle(config, dataset, division, device)
        folder = _claim_folder(config, outputs)
        run.write(folder)
    else:
        run, folder = read_run(resume), resume
        check_same(run, folder, device_kind=device_kind(device), dataset=dataset, folds_hash=_hash(division, dataset))
        run = run.model_copy(update={"config": config})
    with alone_in(folder), log_to(folder / "run.log"):
        remove_unfinished(folder)
        logger.info("%s", summary(dataset), extra={"action": "data_opened"})
        write_report(folder / "data_report.csv", dataset.rejections)
        try:
            return folder, _train(run, dataset, division, device, folder, stop or threading.Event())
        except StopRequestedError as error:
            raise StopRequestedError(f"{error}; go on with: mammography train-density --resume {folder}") from error


def _open(config: RunConfig, outputs: Path, progress: Callable[[int, int], None] | None) -> Dataset:
    """Return the decoded data set, with the vectors of another backbone if they are asked for."""
    dataset = open_dataset(
        config.csv,
        config.dicom_root,
        config.preprocessing(),
        config.cache_dir or outputs / "cache",
        max_rejected=config.max_rejected,
        cache_mode=config.cache_mode,
        progress=progress,
    )
    return dataset if config.embeddings_dir is None else attach(dataset, config.embeddings_dir)


Division = Folds | Split
"""How the images are divided: into folds, or once."""


def _divide(config: RunConfig, dataset: Dataset) -> Division:
    if config.cv_folds is None:
        return holdout(dataset, config.val_frac, config.seed)
    return make_folds(dataset, config.cv_folds, config.seed)


def _hash(division: Division, dataset: Dataset) -> str:
    return split_hash(division, dataset) if isinstance(division, Split) else division.hash


def _largest_training_side(division: Division) -> int:
    return len(division.train) if isinstance(division, Split) else division.largest_training_side


def _settle(config: RunConfig, dataset: Dataset, division: Division, device: torch.device) -> Run:
    """Return the run with everything settled that decides the bits."""
    if config.loader_heuristics and "batch_size" not in config.model_fields_set:
        precision = resolve_precision(config, device)
        n_train, n_classes = _largest_training_side(division), len(dataset.class_names)
        free = free_for_training(dataset, device)
        chosen = choose_batch_size(config.train_config(), n_train, n_classes, device, precision, free)
        config = config.model_copy(update={"batch_size": chosen})
    resolution = resolve(config.train_config(), dataset, device, threads=config.threads, micro_batch=config.micro_batch)
    return Run(
        config=config,
        resolution=resolution,
        data_hash=dataset.data_hash,
        embeddings_hash=dataset.features_hash,
        folds_hash=_hash(division, dataset),
        versions=versions(),
        started_at=datetime.now(UTC),
    )


def _train(
    run: Run, dataset: Dataset, division: Division, device: torch.device, folder: Path, stop: StopSignal
) -> Summary:
    config = run.config
    n_batches = len(batch_bounds(_largest_training_side(division), config.batch_size))
    loading = settle_loading(config, dataset, device, n_batches)
    compute = Compute(device, run.resolution, loading)
    logger.info(
        "batch size %d in parts of %d, %s, %s", config.batch_size, run.resolution.micro_batch, run.resolution, loading
    )
    if isinstance(division, Split):
        results, value = _train_split(config, dataset, division, folder, compute, stop)
    else:
        write_text(folder / "folds.csv", to_csv(division, dataset))
        results, value = _train_folds(config, dataset, division, folder, compute, stop)
    record = summarise(
        config.train_config(),
        results,
        value=value,
        cross_validated=config.cv_folds is not None,
        seed=config.seed,
        compute=compute,
        dataset=dataset,
        folds_hash=run.folds_hash,
        command=command(run),
        started_at=run.started_at,
        finished_at=datetime.now(UTC),
    )
    write_text(folder / "summary.json", record.model_dump_json(indent=2) + "\n")
    return record


def command(run: Run) -> str:
    """Return the command that does *run* again, in a new folder, on this kind of device."""
    settled = {"threads": run.resolution.threads, "micro_batch": run.resolution.micro_batch, "cv_outdir": None}
    return shlex.join(["mammography", "train-density", *to_flags(run.config.model_copy(update=settled))])


def _train_split(
    config: RunConfig, dataset: Dataset, split: Split, folder: Path, compute: Compute, stop: StopSignal
) -> tuple[tuple[FoldResult, ...], float | None]:
    result = fit(
        config.train_config(),
        dataset,
        split,
        Seeds(config.seed, config.trial).fold(split.fold),
        compute=compute,
        folder=folder,
        listener=Quiet(),
        stop=stop,
    )
    write_curves(folder, [read_history(folder)])
    return (result,), result.score


def _train_folds(
    config: RunConfig, dataset: Dataset, folds: Folds, folder: Path, compute: Compute, stop: StopSignal
) -> tuple[tuple[FoldResult, ...], float | None]:
    result = cross_validate(
        config.train_config(),
        dataset,
        folds,
        Seeds(config.seed, config.trial),
        compute=compute,
        folder=HandFolder(folder, with_embeddings=config.export_embeddings),
        listener=Quiet(),
        stop=stop,
    )
    return result.folds, result.value


def _check_empty(config: RunConfig) -> None:
    """Refuse a folder of a cross-validation that holds anything."""
    if config.cv_outdir is not None and config.cv_outdir.exists() and any(config.cv_outdir.iterdir()):
        raise InputError(f"--cv-outdir {config.cv_outdir}: must be empty or new, or named by --resume")


def _claim_folder(config: RunConfig, outputs: Path) -> Path:
    """Make and return the run's own folder; a run never writes over another."""
    if config.cv_outdir is not None:
        config.cv_outdir.mkdir(parents=True, exist_ok=True)
        _check_empty(config)
        return config.cv_outdir
    parent = config.outdir or outputs / "train"
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"results_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder

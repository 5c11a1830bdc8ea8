"""One configuration, trained by hand: the same code as a trial, with a folder and a log line in place of a database."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from trainer.artifacts import EMBEDDINGS, read_history, write_curves
from trainer.balance import resolve_balance, training_counts
from trainer.batches import batch_bounds
from trainer.cli import command_line, flag
from trainer.config import RunConfig
from trainer.cross_validation import cross_validate
from trainer.data.division import holdout, make_folds
from trainer.data.folds import Folds, Split, split_hash, to_csv
from trainer.data.labels import read_labels
from trainer.data.progress import Progress
from trainer.data.records import Dataset
from trainer.data.report import summary, write_report
from trainer.embeddings import Embeddings, read_embeddings
from trainer.errors import InputError, OtherDataError, StopRequestedError
from trainer.files import is_unfinished, next_free_folder, remove_unfinished, write_text
from trainer.fit import fit
from trainer.loading import free_for_training, settle_loading
from trainer.memory import choose_batch_size
from trainer.model import build_network
from trainer.opening import open_archive
from trainer.protocols import StopSignal
from trainer.provenance import commit, versions
from trainer.records import EpochRecord, FoldResult
from trainer.resolve import Compute, device_kind, resolve, resolve_device, resolve_precision
from trainer.run_log import log_to
from trainer.run_record import (
    LOCK,
    Run,
    alone_in,
    check_config,
    check_data,
    check_device,
    read_run,
    warn_of_other_versions,
)
from trainer.seeds import Seeds
from trainer.summary import Summary, summarise

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

    def epoch_finished(self, fold: int, record: EpochRecord, *, last: bool) -> None:
        """Do nothing."""

    def fold_resumed(self, fold: int, history: Sequence[EpochRecord], *, last: bool) -> None:
        """Do nothing."""

    def fold_finished(self, result: FoldResult) -> None:
        """Do nothing: the fold is in its place."""


def train_density(
    config: RunConfig,
    outputs: Path,
    *,
    resume: Path | None = None,
    stop: StopSignal | None = None,
    progress: Progress | None = None,
) -> tuple[Path, Summary]:
    """
    Train *config* and return the folder with its files and its record.

    Args:
        config: What, on what, and where to.
        outputs: The output folder, for what *config* leaves open.
        resume: The folder of a run that was begun with *config*, to be continued to the bit.
        stop: Whether somebody asked to stop.
        progress: Told of files done and all files while images are read and decoded.

    Raises:
        InputError: Wrong input, a folder that is not empty, or a run that cannot be continued here.
        DataError: The data cannot be used.
        StopRequestedError: Asked to stop; the message says how to go on.
    """
    begun = None if resume is None else read_run(resume)
    device, embeddings = _check_before_decoding(config, begun, resume)
    dataset = _open(config, outputs, begun, stop, progress)
    if embeddings is not None:
        dataset = embeddings.attach(dataset)
    division = _divide(config, dataset)
    for split in _splits(division):
        resolve_balance(config, training_counts(dataset, split))
    if begun is not None and resume is not None:
        check_data(begun, resume, dataset, _hash(division, dataset))
        run = begun.model_copy(update={"config": config.with_absolute_paths()})
    else:
        run = _settle(config, dataset, division, device)
    folder = resume or _own_folder(config, outputs)
    with alone_in(folder):
        if resume is None:
            _check_empty(config)
        remove_unfinished(folder)
        run.write(folder)
        with log_to(folder / "run.log"):
            logger.info("%s", summary(dataset), extra={"action": "data_opened"})
            warn_of_other_versions(run)
            write_report(folder / "data_report.csv", dataset.rejections)
            try:
                return folder, _train(run, dataset, division, device, folder, stop or threading.Event())
            except StopRequestedError as error:
                again = f"mammography train-density --resume {shlex.quote(str(folder.absolute()))}"
                raise StopRequestedError(f"{error}; go on with: {again}") from error


def _check_before_decoding(
    config: RunConfig, begun: Run | None, folder: Path | None
) -> tuple[torch.device, Embeddings | None]:
    """
    Return the device, and the vectors of another backbone if they are asked for.

    What can be found wrong without the images is found here, before they are decoded for hours and before a folder is made.
    """
    device = resolve_device(config.device)
    if begun is not None and folder is not None:
        check_config(begun, folder, config)
        check_device(begun, folder, device_kind(device))
    else:
        _check_places(config)
    labels = read_labels(config.csv, config.selection())
    embeddings = None if config.embeddings_dir is None else read_embeddings(config.embeddings_dir)
    n_features = 0 if embeddings is None else embeddings.n_features
    build_network(
        config.train_config(), len(labels.class_names), config.seed, n_features
    )  # weights and settings that fit
    return device, embeddings


def _check_places(config: RunConfig) -> None:
    """Refuse a place for the files that is a file itself, and the folder of a cross-validation that holds anything."""
    for name in ("outdir", "cv_outdir"):
        place = getattr(config, name)
        for path in (place, *place.absolute().parents) if place is not None else ():
            if path.exists() and not path.is_dir():
                raise InputError(f"{flag(name)} {place}: {path} is a file, expected a folder")
    _check_empty(config)


def _open(
    config: RunConfig, outputs: Path, begun: Run | None, stop: StopSignal | None, progress: Progress | None
) -> Dataset:
    """Return the decoded data set; that of a run that was *begun* must be the same, and is not decoded else."""
    try:
        return open_archive(
            config,
            config.preprocessing(),
            outputs,
            cache_mode=config.cache_mode,
            expected_hash=None if begun is None else begun.data_hash,
            stop=stop,
            progress=progress,
        )
    except OtherDataError as error:
        raise InputError(f"--resume: was begun with {error}") from error


Division = Folds | Split
"""How the images are divided: into folds, or once."""


def _divide(config: RunConfig, dataset: Dataset) -> Division:
    if config.cv_folds is None:
        return holdout(dataset, config.val_frac, config.seed)
    return make_folds(dataset, config.cv_folds, config.seed)


def _hash(division: Division, dataset: Dataset) -> str:
    return split_hash(division, dataset) if isinstance(division, Split) else division.hash


def _splits(division: Division) -> Iterator[Split]:
    """Yield each way in which the images are divided into two sides."""
    if isinstance(division, Split):
        yield division
    else:
        yield from (division.split(fold) for fold in range(division.n_folds))


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
        config=config.with_absolute_paths(),
        resolution=resolution,
        data_hash=dataset.data_hash,
        embeddings_hash=dataset.features_hash,
        folds_hash=_hash(division, dataset),
        **commit().model_dump(),
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
    return command_line("train-density", run.config.model_copy(update=settled))


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
    """Refuse a folder of a cross-validation that holds anything, but for what is ours before the first record is there."""
    place = config.cv_outdir
    if place is None or not place.exists():
        return
    if any(not is_unfinished(path) and path.name != LOCK for path in place.iterdir()):
        raise InputError(f"--cv-outdir {place}: must be empty or new, or named by --resume")


def _own_folder(config: RunConfig, outputs: Path) -> Path:
    """Return the run's own folder, which is there; a run never writes over another."""
    if config.cv_outdir is not None:
        config.cv_outdir.mkdir(parents=True, exist_ok=True)
        return config.cv_outdir
    return next_free_folder(config.outdir or outputs / "train", "results")

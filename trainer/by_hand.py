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

from trainer.cli import to_flags
from trainer.config import RunConfig
from trainer.cross_validation import cross_validate
from trainer.data.cache import open_dataset
from trainer.data.folds import Folds, Split, holdout, make_folds, split_hash, to_csv
from trainer.data.records import Dataset
from trainer.data.report import summary, write_report
from trainer.errors import InputError
from trainer.files import write_text
from trainer.fit import fit
from trainer.protocols import StopSignal
from trainer.records import EpochRecord, FoldResult, Resolution
from trainer.resolve import resolve, resolve_device
from trainer.seeds import Seeds
from trainer.summary import Summary, summarise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HandFolder:
    """The folder of a run by hand: a fold is trained where it stays."""

    path: Path

    def fold(self, fold: int) -> Path:
        """Return the folder of a fold."""
        folder = self.path / f"fold_{fold}"
        folder.mkdir(exist_ok=True)
        return folder

    def published(self, fold: int) -> Path | None:
        """Return the folder of a fold that is finished: its metrics are the last that is written."""
        folder = self.path / f"fold_{fold}"
        return folder if (folder / "metrics" / "val_metrics.json").is_file() else None


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
    stop: StopSignal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, Summary]:
    """
    Train *config* and return the folder with its files and its record.

    Args:
        config: What, on what, and where to.
        outputs: The output folder, for what *config* leaves open.
        stop: Whether somebody asked to stop.
        progress: Told of images done and all images while they are decoded.

    Raises:
        InputError: Wrong input, or a folder that is not empty.
        DataError: The data cannot be used.
    """
    folder = _claim_folder(config, outputs)
    signal = stop or threading.Event()
    dataset = open_dataset(
        config.csv,
        config.dicom_root,
        config.preprocessing(),
        config.cache_dir or outputs / "cache",
        max_rejected=config.max_rejected,
        progress=progress,
    )
    handler = logging.FileHandler(folder / "run.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        logger.info("%s", summary(dataset), extra={"action": "data_opened"})
        write_report(folder / "data_report.csv", dataset.rejections)
        return folder, _train(config, dataset, folder, signal)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


def _train(config: RunConfig, dataset: Dataset, folder: Path, stop: StopSignal) -> Summary:
    device = resolve_device(config.device)
    resolution = resolve(config.train_config(), device, config.threads)
    started_at = datetime.now(UTC)
    if config.cv_folds is None:
        split = holdout(dataset, config.val_frac, config.seed)
        results, value = _train_split(config, dataset, split, folder, device, resolution, stop)
        folds_hash = split_hash(split, dataset)
    else:
        folds = make_folds(dataset, config.cv_folds, config.seed)
        write_text(folder / "folds.csv", to_csv(folds, dataset))
        results, value = _train_folds(config, dataset, folds, folder, device, resolution, stop)
        folds_hash = folds.hash
    record = summarise(
        config.train_config(),
        results,
        value=value,
        cross_validated=config.cv_folds is not None,
        seed=config.seed,
        resolution=resolution,
        data_hash=dataset.data_hash,
        folds_hash=folds_hash,
        rejected=dataset.rejected(),
        command=shlex.join(
            ["mammography", "train-density", *to_flags(config.model_copy(update={"threads": resolution.threads}))]
        ),
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )
    write_text(folder / "summary.json", record.model_dump_json(indent=2) + "\n")
    return record


def _train_split(
    config: RunConfig,
    dataset: Dataset,
    split: Split,
    folder: Path,
    device: torch.device,
    resolution: Resolution,
    stop: StopSignal,
) -> tuple[tuple[FoldResult, ...], float | None]:
    result = fit(
        config.train_config(),
        dataset,
        split,
        Seeds(config.seed, config.trial).fold(split.fold),
        device=device,
        resolution=resolution,
        folder=folder,
        listener=Quiet(),
        stop=stop,
    )
    return (result,), result.score


def _train_folds(
    config: RunConfig,
    dataset: Dataset,
    folds: Folds,
    folder: Path,
    device: torch.device,
    resolution: Resolution,
    stop: StopSignal,
) -> tuple[tuple[FoldResult, ...], float | None]:
    result = cross_validate(
        config.train_config(),
        dataset,
        folds,
        Seeds(config.seed, config.trial),
        device=device,
        resolution=resolution,
        folder=HandFolder(folder),
        listener=Quiet(),
        stop=stop,
    )
    return result.folds, result.value


def _claim_folder(config: RunConfig, outputs: Path) -> Path:
    """Make and return the run's own folder; a run never writes over another."""
    if config.cv_outdir is not None:
        config.cv_outdir.mkdir(parents=True, exist_ok=True)
        if any(config.cv_outdir.iterdir()):
            raise InputError(f"--cv-outdir {config.cv_outdir}: must be empty or new")
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

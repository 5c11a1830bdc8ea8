"""
What a study would be and what it would cost, before it is created: its space, and a few measured epochs made into hours.

Nothing is written to the database. Speeds are measured with the trainer's own `fit`, on a few images of the study's data; what
follows from them is arithmetic. Not covered: that trials are given up early, that folds stop early, and the minutes in which
a worker starts and opens the data.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from rich import box
from rich.table import Table

from hpo.creation import check_balance, check_networks, settle_embeddings
from hpo.dimensions import as_text
from hpo.sampling import sample
from hpo.study import DataPlace
from hpo.study_file import BudgetSection, StudyFile
from hpo.timing import Speed, measure
from trainer.config import TrainConfig
from trainer.data.division import make_folds
from trainer.data.folds import Folds
from trainer.data.progress import Progress
from trainer.data.records import Dataset
from trainer.embeddings import read_embeddings
from trainer.errors import OutOfMemoryError
from trainer.protocols import StopSignal
from trainer.records import Resolution
from trainer.resolve import resolve_device

logger = logging.getLogger(__name__)

_SHOWN = 10
_SAMPLE = 200
"""Configurations whose mean stands for all."""
_MOST_KINDS = 8
_LIMIT_S = 60.0
_WORKERS = (1, 2, 4, 8)
_GB, _MB = 1e9, 1e6


@dataclass(frozen=True, order=True)
class Kind:
    """What decides how fast a configuration is trained, for the most part."""

    arch: str
    img_size: int
    freeze: str

    @classmethod
    def of(cls, config: TrainConfig) -> Kind:
        """Return the kind of a configuration."""
        return cls(config.arch, config.img_size, config.freeze)


@dataclass(frozen=True)
class Forecast:
    """A whole study, by workers that have a device each."""

    workers: int
    trials: int | None
    """None where no limit can be foreseen."""
    hours: float | None
    gpu_hours: float | None
    """0 on the processor."""


@dataclass(frozen=True)
class Estimate:
    """What a study would cost."""

    file: StudyFile
    folds: Folds
    n_images: int
    resolution: Resolution
    """Of the first kind that was measured: device, threads and precision are those of all."""
    configs: Sequence[TrainConfig]
    """Drawn from the space."""
    speeds: Mapping[Kind, Speed]
    too_large: Sequence[Kind]
    """Of which not two images fit into the memory of the device."""

    @property
    def measured(self) -> list[tuple[TrainConfig, Speed]]:
        """The drawn configurations whose kind was measured, with its speed; not empty."""
        return [(each, self.speeds[Kind.of(each)]) for each in self.configs if Kind.of(each) in self.speeds]

    @property
    def trial_s(self) -> float:
        """Seconds of a trial, mean over the space."""
        return statistics.fmean(trial_seconds(config, speed, self.folds) for config, speed in self.measured)

    @property
    def trial_bytes(self) -> float:
        """Bytes of the checkpoints of a trial, mean over the space."""
        return statistics.fmean(checkpoint_bytes(config, speed, self.folds) for config, speed in self.measured)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the decoded images, which are kept once for each way of preprocessing that was drawn."""
        forms = {config.preprocessing() for config in (self.file.train, *self.configs)}
        return sum(self.n_images * form.img_size**2 for form in forms)

    def forecast(self, workers: int) -> Forecast:
        """Return what the whole budget comes to with so many *workers*."""
        on_gpu = self.resolution.device_kind != "cpu"
        size = self.file.space().size()
        return forecast(self.file.budget, size, self.trial_s, workers, on_gpu=on_gpu, now=datetime.now(UTC))


def epoch_seconds(speed: Speed, folds: Folds) -> float:
    """Return the seconds of an epoch, mean over the folds."""
    images = [folds.split(fold) for fold in range(folds.n_folds)]
    return speed.save_s + statistics.fmean(
        len(split.train) * speed.train_s + len(split.validation) * speed.validate_s for split in images
    )


def trial_seconds(config: TrainConfig, speed: Speed, folds: Folds) -> float:
    """Return the seconds of a trial that trains every epoch of every fold."""
    return folds.n_folds * config.epochs * epoch_seconds(speed, folds)


def checkpoint_bytes(config: TrainConfig, speed: Speed, folds: Folds) -> int:
    """Return the bytes of a trial's checkpoints: the best and the last of each fold, and those of all epochs if they are kept."""
    kept = 2 + (config.epochs if config.save_every_epoch else 0)
    return kept * folds.n_folds * speed.checkpoint_bytes


def forecast(
    budget: BudgetSection, size: int | None, trial_s: float, workers: int, *, on_gpu: bool, now: datetime
) -> Forecast:
    """
    Return how many trials fit the *budget*, and how long they take.

    Args:
        budget: Of the study.
        size: Configurations of a finite space.
        trial_s: Seconds of a trial.
        workers: With a device each.
        on_gpu: Whether the devices are GPUs.
        now: When the study would begin.
    """
    trial_hours = trial_s / 3600
    limits = [limit for limit in (budget.trials, size) if limit is not None]
    hours = [] if budget.hours is None else [budget.hours]
    if budget.deadline is not None:
        hours.append(max(0.0, (budget.deadline - now).total_seconds() / 3600))
    limits += [workers * math.ceil(each / trial_hours) for each in hours]  # what has begun is finished
    if budget.gpu_hours is not None and on_gpu:
        limits.append(math.ceil(budget.gpu_hours / trial_hours))
    if not limits:
        return Forecast(workers, None, None, None)
    trials = min(limits)
    return Forecast(workers, trials, math.ceil(trials / workers) * trial_hours, trials * trial_hours if on_gpu else 0.0)


def estimate(
    file: StudyFile, place: DataPlace, *, stop: StopSignal, progress: Progress | None, limit_s: float = _LIMIT_S
) -> Estimate:
    """
    Return what the study in *file* would cost on this machine; its data are decoded, which is kept, and *limit_s* measured.

    Raises:
        StudyFileError, DataError: What `study create` would refuse.
        OutOfMemoryError: No kind of configuration fits into the memory of the device.
        StopRequestedError: Asked to stop.
    """
    check_networks(file)
    embeddings = [read_embeddings(path) for path in file.embeddings_dirs()]
    dataset = place.open(file.train.preprocessing(), progress)
    folds = make_folds(dataset, file.cv.folds, file.seed)
    check_balance(file, dataset, folds)
    settle_embeddings(file, embeddings, dataset)
    space = file.space()
    configs = [space.configure(params) for params in sample(space, file.seed, _SAMPLE)]
    device = resolve_device("auto")
    speeds, too_large, resolution = _measure_kinds(configs, dataset, device, stop, limit_s)
    return Estimate(file, folds, len(dataset.records), resolution, configs, speeds, too_large)


def _measure_kinds(
    configs: Sequence[TrainConfig], dataset: Dataset, device: torch.device, stop: StopSignal, limit_s: float
) -> tuple[dict[Kind, Speed], list[Kind], Resolution]:
    """Return the speeds of the kinds that are drawn most often, as far as the time goes; of the first in any case."""
    until = time.monotonic() + limit_s
    kinds = [kind for kind, _ in Counter(map(Kind.of, configs)).most_common(_MOST_KINDS)]
    speeds: dict[Kind, Speed] = {}
    too_large: list[Kind] = []
    resolution: Resolution | None = None
    for index, kind in enumerate(kinds):
        left_s = until - time.monotonic()
        if speeds and left_s <= 0:
            break
        config = next(config for config in configs if Kind.of(config) == kind)
        logger.info("timing %s, %d px, freeze %s", kind.arch, kind.img_size, kind.freeze, extra={"action": "timing"})
        try:
            speeds[kind], settled = measure(config, dataset, device, stop, left_s / (len(kinds) - index))
        except OutOfMemoryError as error:
            logger.warning("%s", error, extra={"action": "too_large"})
            too_large.append(kind)
        else:
            resolution = resolution or settled
    if resolution is None:
        raise OutOfMemoryError("none of the configurations fits into the memory of this device")
    return speeds, too_large, resolution


def describe(file: StudyFile) -> list[Table | str]:
    """Return the study in words: what limits and judges its trials, its dimensions, their number, and some configurations."""
    space, size = file.space(), file.space().size()
    dimensions = Table(box=box.SIMPLE_HEAD)
    for heading in ("name", "type", "values", "only where"):
        dimensions.add_column(heading, overflow="fold")
    for name, dimension in space.dimensions.items():
        scale = ", logarithmic" if getattr(dimension, "log", False) else ""
        where = [f"{parent} = {' or '.join(map(as_text, wanted))}" for parent, wanted in dimension.wanted.items()]
        dimensions.add_row(name, dimension.type, f"{dimension.expected}{scale}", ", ".join(where))
    how = f"seed {file.seed}, sampler {file.sampler.name}, pruning {file.pruning.name}"
    is_small = size is not None and size <= _SHOWN
    drawn = list(space.configurations()) if is_small else sample(space, file.seed, _SHOWN)
    return [
        f"{file.study}: {file.budget.in_words()}, {file.cv.folds} folds a trial, {how}",
        dimensions,
        f"configurations: {'no end to them' if size is None else size}; {'all' if is_small else 'some'} of them:",
        _configurations(list(space.dimensions), drawn),
    ]


def _configurations(names: Sequence[str], drawn: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row a configuration; a dimension that it does not have is a dash."""
    table = Table(*names, box=box.SIMPLE_HEAD)
    for params in drawn:
        shown = {name: f"{each:.3g}" if isinstance(each, float) else as_text(each) for name, each in params.items()}
        table.add_row(*(shown.get(name, "-") for name in names))
    return table


def cost_tables(found: Estimate) -> list[Table | str]:
    """Return what a study would cost, with what that assumes."""
    resolution, trials = found.resolution, found.forecast(1).trials
    forecasts = [found.forecast(workers) for workers in _WORKERS if workers <= (trials or max(_WORKERS))]
    whole = "" if trials is None else f", {trials * found.trial_bytes / _GB:.1f} GB for {trials}"
    cache = f"{found.cache_bytes / _GB:.2f} GB of decoded images"
    return [
        f"on {resolution.device_kind}, {resolution.threads} threads, {resolution.precision}:",
        _speeds(found),
        f"a trial: {_number(found.trial_s / 3600)} hours, mean over {len(found.measured)} configurations drawn at random",
        _totals(forecasts),
        f"disk: {found.trial_bytes / _GB:.3f} GB of checkpoints a trial{whole}; {cache}",
        *_assumptions(found),
    ]


def _speeds(found: Estimate) -> Table:
    """Return a row a kind of configuration."""
    table = Table("arch", "img_size", "freeze", box=box.SIMPLE_HEAD)
    for heading in ("images/s", "seconds an epoch", "MB a checkpoint"):
        table.add_column(heading, justify="right")
    for kind, speed in sorted(found.speeds.items()):
        rate, epoch_s, size = 1 / speed.train_s, epoch_seconds(speed, found.folds), speed.checkpoint_bytes / _MB
        table.add_row(kind.arch, str(kind.img_size), kind.freeze, f"{rate:.1f}", f"{epoch_s:.1f}", f"{size:.1f}")
    return table


def _totals(forecasts: Sequence[Forecast]) -> Table:
    """Return a row a number of workers; what no limit decides is a question mark."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("workers", "trials", "hours", "GPU-hours"):
        table.add_column(heading, justify="right")
    for each in forecasts:
        hours, gpu_hours = ("?" if number is None else _number(number) for number in (each.hours, each.gpu_hours))
        table.add_row(str(each.workers), "?" if each.trials is None else str(each.trials), hours, gpu_hours)
    return table


def _number(hours: float) -> str:
    """Return hours with as many digits as they are worth."""
    return f"{hours:.0f}" if hours >= 100 else f"{hours:.2g}"  # noqa: PLR2004 - three digits


def _assumptions(found: Estimate) -> list[str]:
    """Return what the numbers take for granted, a line each."""
    left_out = len(found.configs) - len(found.measured)
    return [
        "assumed: every trial trains all epochs of all folds; nothing is pruned and nothing stops early",
        "assumed: each worker has a device like this one to itself; workers that share one share its speed",
        *([f"left out of the mean: {left_out} configurations of kinds that were not timed"] if left_out else []),
        *(
            f"too large for this device: {kind.arch}, {kind.img_size} px, freeze {kind.freeze}"
            for kind in found.too_large
        ),
    ]

"""
A finished trial, trained again from the database alone, to be held against what the database remembers of it.

Its folder may be gone: parameters, seeds, folds and what decides the bits are in the database. A replay is never continued; one
that is interrupted leaves nothing.
"""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from optuna.trial import FrozenTrial, TrialState

from hpo.errors import NotTheStudysDataError
from hpo.study import DataPlace, Study, with_embeddings
from storage import ledger
from storage.ledger import PublishedFold
from storage.record import Attempt
from trainer.batches import batch_bounds
from trainer.by_hand import HandFolder, Quiet
from trainer.config import TrainConfig
from trainer.cross_validation import cross_validate
from trainer.data.folds import Folds, from_csv
from trainer.data.progress import Progress
from trainer.data.records import Dataset
from trainer.errors import InputError, OtherDataError, StopRequestedError
from trainer.files import next_free_folder, write_text
from trainer.fit import fit
from trainer.loading import settle_loading
from trainer.protocols import StopSignal
from trainer.records import FoldResult, Resolution
from trainer.resolve import Compute, device_kind, resolve, resolve_device
from trainer.run_log import log_to
from trainer.seeds import Seeds
from trainer.summary import summarise

logger = logging.getLogger(__name__)


class NotReplayableError(InputError):
    """There is no such trial, or nothing of it that a replay could be held against."""


@dataclass(frozen=True)
class Original:
    """A finished trial, as the database remembers it."""

    study: Study
    trial: FrozenTrial
    config: TrainConfig
    resolution: Resolution
    folds: Mapping[int, PublishedFold]
    """At least one; fewer than the study has where the trial was pruned or failed."""
    attempts: Sequence[Attempt]

    @property
    def number(self) -> int:
        """Its number."""
        return self.trial.number

    @property
    def value(self) -> float | None:
        """The objective; None of a trial that was pruned or failed."""
        return self.trial.value if self.trial.state == TrialState.COMPLETE else None

    @property
    def seeds(self) -> Seeds:
        """Its seeds."""
        return Seeds(self.study.file.seed, self.number)

    @property
    def whole(self) -> bool:
        """Whether all folds of the study are there."""
        return len(self.folds) == self.study.file.cv.folds


@dataclass(frozen=True)
class Replay:
    """The same trial, trained again."""

    folder: Path
    value: float | None
    """The objective; None of a trial that never had all its folds."""
    folds: tuple[FoldResult, ...]
    """Those that the original has."""
    resolution: Resolution
    data_hash: str
    """With the preprocessing of the study's base configuration, as the study's own."""
    class_names: tuple[str, ...]

    def in_words(self) -> str:
        """Return what it gave, in one line."""
        if self.value is not None:
            return f"balanced accuracy adjusted for chance: {self.value:.4f}"
        scores = ", ".join(f"{result.fold}: {result.score}" for result in self.folds)
        return f"balanced accuracy adjusted for chance, by the folds that the trial had: {scores}"


def recall(study: Study, number: int) -> Original:
    """Return a finished trial. Raises NotReplayableError, with the reason in one line."""
    trial = next((trial for trial in study.trials if trial.number == number), None)
    if trial is None:
        raise NotReplayableError(f"study {study.name!r} has no trial {number}: it has {len(study.trials)}, from 0")
    if not trial.state.is_finished():
        raise NotReplayableError(f"trial {number} is not finished: it is {trial.state.name.lower()}")
    origin = trial.user_attrs.get("from")
    if origin is not None:
        raise NotReplayableError(
            f"trial {number} was taken over: replay the original, trial {origin['number']} of study {origin['study']!r}"
        )
    engine, trial_id = study.storage.engine, trial._trial_id  # noqa: SLF001 - Optuna has no public name for it
    folds, resolution = ledger.published_folds(engine, trial_id), ledger.resolution(engine, trial_id)
    if not folds or resolution is None:
        raise NotReplayableError(
            f"trial {number} ({trial.state.name.lower()}) has no finished fold: nothing to compare with"
        )
    return Original(
        study=study,
        trial=trial,
        config=study.space.configure(trial.params),
        resolution=Resolution.model_validate(resolution),
        folds=folds,
        attempts=ledger.attempts(engine, trial_id),
    )


def replay(
    original: Original,
    place: DataPlace,
    *,
    device: str,
    threads: int | None,
    despite_other_data: bool,
    stop: StopSignal,
    progress: Progress | None,
) -> Replay:
    """
    Train the folds of *original* again, in a folder of their own, and return what they gave.

    Args:
        original: What is trained again.
        place: Where the data are.
        device: auto takes the trial's own kind of device, where there is one.
        threads: Processor threads of a step; None is what the trial had.
        despite_other_data: Train on data that are not the study's all the same, to see what that changes.
        stop: Asked between steps.
        progress: Told how far the opening of the data is.

    Raises:
        NotTheStudysDataError: The data here are others.
        StopRequestedError: Asked to stop; nothing of the replay is kept.
        TrainerError, OSError: As when a trial is trained.
    """
    started_at = datetime.now(UTC)
    chosen = choose_device(device, original.resolution.device_kind)
    dataset, folds, data_hash = _open(original, place, progress, despite_other_data=despite_other_data)
    resolution = _settle(original, dataset, chosen, threads)
    n_batches = len(batch_bounds(folds.largest_training_side, original.config.batch_size))
    compute = Compute(chosen, resolution, settle_loading(original.config, dataset, chosen, n_batches))
    folder = next_free_folder(original.study.folder.path / "replays", f"trial_{original.number:04d}")
    try:
        with log_to(folder / "run.log"):
            results, value = _train(original, dataset, folds, compute, folder, stop)
    except StopRequestedError as error:
        shutil.rmtree(folder)
        raise StopRequestedError("asked to stop; nothing of the replay is kept: begin it anew") from error
    summary = summarise(
        original.config,
        results,
        value=value,
        cross_validated=True,
        seed=original.seeds.study,
        compute=compute,
        dataset=dataset,
        folds_hash=folds.hash,
        command=_command(original, place, compute),
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )
    write_text(folder / "summary.json", summary.model_dump_json(indent=2) + "\n")
    logger.info("trial %d trained again in %s", original.number, folder, extra={"action": "replayed"})
    return Replay(folder, value, results, resolution, data_hash, dataset.class_names)


def choose_device(asked: str, kind: str) -> torch.device:
    """
    Return the device called *asked*; for auto one of the *kind* that the trial was trained on, if there is one here.

    Raises:
        InputError: There is no such device.
    """
    if asked != "auto":
        return resolve_device(asked)
    if kind == "cpu":
        return resolve_device("cpu")
    alike = [index for index in range(torch.cuda.device_count()) if torch.cuda.get_device_name(index) == kind]
    return resolve_device(f"cuda:{alike[0]}" if alike else "auto")


def _open(
    original: Original, place: DataPlace, progress: Progress | None, *, despite_other_data: bool
) -> tuple[Dataset, Folds, str]:
    """Return the data as the trial wants them, the study's folds, and the hash of the data as the study knows it."""
    study, config, base = original.study, original.config, original.study.file.train
    expected = study.registration.data_hash
    try:
        dataset = place.open(base.preprocessing(), progress, None if despite_other_data else expected)
    except OtherDataError as error:
        raise NotTheStudysDataError(study.name, error.expected, error.found) from error
    data_hash = dataset.data_hash
    if data_hash != expected:
        logger.warning(
            "the data are not those of study %s: their hash is %.12s, and not %.12s",
            study.name, data_hash, expected, extra={"action": "other_data", "study": study.name},
        )  # fmt: skip
    if config.preprocessing() != base.preprocessing():
        dataset = place.open(config.preprocessing(), progress)
    dataset = with_embeddings(study.file, dataset, config.embeddings_dir)
    return dataset, from_csv(study.registration.folds_csv, dataset), data_hash


def _settle(original: Original, dataset: Dataset, device: torch.device, threads: int | None) -> Resolution:
    """Return what decided the bits of the trial; settled anew on another kind of device, where it cannot be the same."""
    settled = original.resolution
    if device_kind(device) == settled.device_kind:
        return settled if threads is None else settled.model_copy(update={"threads": threads})
    logger.warning(
        "trial %d was trained on %s, and this is %s: what decides the bits is settled anew",
        original.number, settled.device_kind, device_kind(device), extra={"action": "other_device"},
    )  # fmt: skip
    return resolve(original.config, dataset, device, threads=threads)


def _train(
    original: Original, dataset: Dataset, folds: Folds, compute: Compute, folder: Path, stop: StopSignal
) -> tuple[tuple[FoldResult, ...], float | None]:
    """Return the folds of *original*, trained again, and the value; without a value where some were never trained."""
    config, seeds = original.config, original.seeds
    place = HandFolder(folder, with_embeddings=config.export_embeddings)
    if original.whole:
        result = cross_validate(
            config, dataset, folds, seeds, compute=compute, folder=place, listener=Quiet(), stop=stop
        )
        return result.folds, result.value
    results = [
        fit(
            config,
            dataset,
            folds.split(fold),
            seeds.fold(fold),
            compute=compute,
            folder=place.fold(fold),
            listener=Quiet(),
            stop=stop,
        )
        for fold in sorted(original.folds)
    ]
    return tuple(results), None


def _command(original: Original, place: DataPlace, compute: Compute) -> str:
    """Return the command that does the same again."""
    where = ["--csv", str(place.csv.absolute()), "--dicom-root", str(place.dicom_root.absolute())]
    how = ["--device", compute.device.type, "--threads", str(compute.resolution.threads)]
    return shlex.join(["mammography", "replay", original.study.name, str(original.number), *how, *where])

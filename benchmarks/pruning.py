"""
What rules of `hpo.pruning` save and what they lose, on recorded trials.

    python benchmarks/pruning.py record OUT.npz --csv F --dicom-root D --embeddings DIR [--seed S] [--folds K] ...
    python benchmarks/pruning.py replay RECORDING.npz [--workers W] [--improving]
    python benchmarks/pruning.py tune RECORDING.npz JUDGE.npz ...

A recording holds the epoch curves of trials that nothing stopped. A replay is many simulated studies, each of trials drawn
from a recording without repetition: epochs spent as a share of all of them, and regret, the best trial's true value (the mean
over all folds) less the winner's. A trial that could win is known in a replay whether it was given up or not.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from recording import Recording, open_features, read_recording, record

from hpo.pruning import Curves, Forecast, LowerShare, Pruning, SignedRanks, make_pruning, parts

_FACTS_RUNGS = frozenset({2, 5, 9})  # after epochs 3, 6 and 10 of 15
_MOST_REGRET = 0.001
"""That tuning accepts, two standard errors included: half of what is asked for, since other data may be less kind."""
_GRID = tuple(itertools.product((0.2, 0.3, 0.4, 0.5), (2, 3, 4), (3, 5, 8)))
"""Least chance times the number of folds, fewest complete trials, parts of a fold."""


def main() -> None:
    """Do what is asked for and print."""
    asked = parse()
    asked.run(asked)


def parse() -> argparse.Namespace:
    """Return the flags, with the function that they are for as `run`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    recorder = commands.add_parser("record")
    recorder.set_defaults(run=run_record)
    recorder.add_argument("out", type=Path)
    for name in ("--csv", "--dicom-root", "--embeddings"):
        recorder.add_argument(name, type=Path, required=True)
    recorder.add_argument("--cache-dir", type=Path, default=Path("outputs/cache"))
    recorder.add_argument("--seed", type=int, default=1)
    recorder.add_argument("--trials", type=int, default=300)
    recorder.add_argument("--folds", type=int, default=5)
    recorder.add_argument("--epochs", type=int, default=15)
    replayer = commands.add_parser("replay")
    replayer.set_defaults(run=run_replay)
    replayer.add_argument("recording", type=Path)
    replayer.add_argument("--workers", type=int, default=1)
    replayer.add_argument("--improving", action="store_true", help="later trials tend to be better, as a sampler's are")
    replayer.add_argument("--rules", default="", help="only those with this in their name")
    replayer.add_argument("--studies", type=int, default=300)
    tuner = commands.add_parser("tune")
    tuner.set_defaults(run=run_tune)
    tuner.add_argument("recording", type=Path)
    tuner.add_argument("judges", type=Path, nargs="+")
    tuner.add_argument("--studies", type=int, default=100)
    for command in (replayer, tuner):
        command.add_argument("--trials", type=int, default=50, help="of a study")
    return parser.parse_args()


def run_record(asked: argparse.Namespace) -> None:
    """Train, and write a recording."""
    dataset = open_features(asked.csv, asked.dicom_root, asked.embeddings, asked.cache_dir)
    made = record(dataset, n_trials=asked.trials, n_folds=asked.folds, n_epochs=asked.epochs, seed=asked.seed)
    made.write(asked.out)
    print(f"{asked.out}: {describe(made)}; {made.seconds / asked.trials:.2f} s a trial")


def run_replay(asked: argparse.Namespace) -> None:
    """Print what every rule spends and loses."""
    recording = read_recording(asked.recording)
    print(f"{asked.recording}: {describe(recording)}")
    print(f"{asked.studies} studies of {asked.trials} trials, {asked.workers} workers, improving: {asked.improving}\n")
    print(f"{'rule':44s} epochs    regret (s.e.)     kept  complete")
    studies = list(draw_studies(recording, asked.studies, asked.trials, improving=asked.improving))
    for name, pruning in rules(recording.curves.shape[1], recording.curves.shape[2]).items():
        if asked.rules in name:
            print(f"{name:44s} {judge(recording, studies, pruning, asked.workers)}", flush=True)


def run_tune(asked: argparse.Namespace) -> None:
    """Choose the forecast's parameters on one recording and print them, there and on the others."""
    recording = read_recording(asked.recording)
    studies = list(draw_studies(recording, asked.studies, asked.trials))
    tried = {}
    for least_chances, fewest, n_parts in _GRID:
        tried[least_chances, fewest, n_parts] = judge(
            recording, studies, forecast(recording, least_chances, fewest, n_parts)
        )
        print(f"{least_chances:.1f} {fewest} {n_parts}: {tried[least_chances, fewest, n_parts]}", flush=True)
    accepted = [values for values, outcome in tried.items() if outcome.regret + 2 * outcome.error <= _MOST_REGRET]
    chosen = min(accepted, key=lambda values: tried[values].epochs)
    print(f"\nchosen on {asked.recording}: least chances, fewest, parts = {chosen}: {tried[chosen]}")
    for path in asked.judges:
        judged = read_recording(path)
        drawn = list(draw_studies(judged, asked.studies, asked.trials))
        print(f"judged on {path}: {judge(judged, drawn, forecast(judged, *chosen))}")


def forecast(recording: Recording, least_chances: float, fewest: int, n_parts: int) -> Pruning:
    """Return the forecast between and inside folds."""
    _, n_folds, n_epochs = recording.curves.shape
    rule = Forecast(n_folds, parts(n_epochs, n_parts), least_chances / n_folds, fewest)
    return Pruning(n_folds, n_epochs, rule, rule)


def describe(recording: Recording) -> str:
    """Return size and spread of a recording in a line."""
    n_trials, n_folds, n_epochs = recording.curves.shape
    scores = recording.scores
    values = scores.mean(axis=1)
    residuals = scores - values[:, None] - scores.mean(axis=0) + scores.mean()
    sd = float(np.sqrt((residuals**2).sum() / ((n_trials - 1) * (n_folds - 1))))
    spread = f"best {values.max():.4f}, median {np.median(values):.4f}, residual sd {sd:.3f}"
    return f"{n_trials} trials of {n_folds} folds and {n_epochs} epochs, {spread}"


@dataclass(frozen=True)
class RunningMean:
    """Gives a trial up whose mean so far is in the lower share of the complete trials' means of the same folds."""

    n_folds: int
    share: float

    def after_fold(self, mine: Curves, others: Sequence[Curves]) -> str | None:
        """Return why, or None."""
        means = [statistics.fmean(other.scores[fold] for fold in mine.scores) for other in others if other.complete]
        low = len(means) >= 5 and statistics.fmean(mine.scores.values()) < np.quantile(means, self.share)
        return "low" if low else None


@dataclass(frozen=True)
class Gap:
    """Gives a trial up whose mean difference from the best one is below so many standard deviations of a difference."""

    n_folds: int
    deviations: float
    sd: float
    """Of a difference between two trials on a fold, as the recording has it."""

    def after_fold(self, mine: Curves, others: Sequence[Curves]) -> str | None:
        """Return why, or None."""
        complete = [other for other in others if other.complete]
        if not complete or len(mine.scores) < 2:
            return None
        best = max(complete, key=lambda trial: statistics.fmean(trial.scores.values()))
        gap = statistics.fmean(score - best.scores[fold] for fold, score in mine.scores.items())
        return "behind" if gap < -self.deviations * self.sd / len(mine.scores) ** 0.5 else None


def rules(n_folds: int, n_epochs: int) -> dict[str, Pruning]:
    """Return the rules that are compared, by name."""

    def pruning(between: object, inside: object) -> Pruning:
        return Pruning(n_folds, n_epochs, between, inside)  # type: ignore[arg-type]

    rungs = frozenset(epoch for epoch in _FACTS_RUNGS if epoch < n_epochs - 1)
    half, third = LowerShare(0.5, rungs), LowerShare(1 / 3, rungs)
    wilcoxon = SignedRanks(n_folds, 0.26)
    made = {
        "none": pruning(None, None),
        "Wilcoxon .13": pruning(SignedRanks(n_folds, 0.13), None),
        "Wilcoxon .26": pruning(wilcoxon, None),
        "running mean below the median": pruning(RunningMean(n_folds, 0.5), None),
        "running mean below the lower quarter": pruning(RunningMean(n_folds, 0.25), None),
        "rungs 3 6 10 of the first fold, median": pruning(None, half),
        "rungs, lower third": pruning(None, third),
        "Wilcoxon .26 and lower third": pruning(wilcoxon, third),
        "gap of 1.5 sd and lower third": pruning(Gap(n_folds, 1.5, 0.065), third),
    }
    modes = (("on", "off"), ("off", "on"), ("on", "on"), ("auto", "off"), ("off", "auto"), ("auto", "auto"))
    ours = {
        f"folds {folds}, epochs {epochs}": make_pruning(folds, epochs, n_folds=n_folds, n_epochs=n_epochs)
        for folds, epochs in modes
    }
    return {**made, **ours}


def draw_studies(
    recording: Recording, n_studies: int, n_trials: int, *, improving: bool = False
) -> Iterator[list[int]]:
    """
    Yield the trials of each study in order.

    With *improving* a trial's place is its place by value, from the worst, plus noise of 0.6 times the number of trials: the
    mean rank of the last fifth is then about twice that of the first.
    """
    values = recording.scores.mean(axis=1)
    for study in range(n_studies):
        random = np.random.default_rng(study)
        drawn = random.choice(len(values), n_trials, replace=False)
        if improving:
            places = values[drawn].argsort().argsort() + random.normal(0, 0.6 * n_trials, n_trials)
            drawn = drawn[places.argsort()]
        yield drawn.tolist()


@dataclass(frozen=True)
class Outcome:
    """What a rule spends and loses, over many studies."""

    epochs: float
    """Share of all."""
    regret: float
    error: float
    """Standard error of the regret."""
    kept: float
    """Share of the studies whose winner is the one that no pruning gives."""
    complete: float
    """Complete trials a study."""

    def __str__(self) -> str:
        return f"{self.epochs:6.1%}    {self.regret:.4f} ({self.error:.4f})   {self.kept:.2f}   {self.complete:.1f}"


def judge(recording: Recording, studies: Iterable[list[int]], pruning: Pruning, n_workers: int = 1) -> Outcome:
    """Return what *pruning* spends and loses in *studies* with so many workers."""
    values = recording.scores.mean(axis=1)
    book = Book(recording)
    shares, regrets, completes = [], [], []
    for trials in studies:
        spent, complete = replay(book, trials, pruning, n_workers)
        shares.append(spent / (len(trials) * book.n_folds * book.n_epochs))
        regrets.append(float(values[trials].max() - values[complete].max()))
        completes.append(len(complete))
    return Outcome(
        epochs=statistics.fmean(shares),
        regret=statistics.fmean(regrets),
        error=statistics.stdev(regrets) / len(regrets) ** 0.5,
        kept=statistics.fmean(regret < 1e-12 for regret in regrets),
        complete=statistics.fmean(completes),
    )


class Book:
    """A recording as the worker sees it: tuples, None where undefined."""

    def __init__(self, recording: Recording) -> None:
        _, self.n_folds, self.n_epochs = recording.curves.shape
        self.scores: list[list[float]] = recording.scores.tolist()
        self.curves = [
            [tuple(None if value != value else value for value in fold) for fold in trial]  # noqa: PLR0124 - NaN
            for trial in recording.curves.tolist()
        ]

    def seen(self, run: Run, *, complete: bool) -> Curves:
        """Return what is known of *run*."""
        scores = {fold: self.scores[run.trial][fold] for fold in range(run.fold)}
        epochs = {fold: self.curves[run.trial][fold] for fold in range(run.fold)}
        if run.epoch:
            epochs[run.fold] = self.curves[run.trial][run.fold][: run.epoch]
        return Curves(run.number, complete, scores, epochs)


@dataclass
class Run:
    """A trial that is being replayed: so many folds are finished, and so many epochs of the next one."""

    number: int
    trial: int
    fold: int = 0
    epoch: int = 0


def replay(book: Book, trials: Sequence[int], pruning: Pruning, n_workers: int) -> tuple[int, list[int]]:
    """Return the epochs that a study of *trials* spends and those of them that became complete; workers are equally fast."""
    waiting = deque(Run(number, trial) for number, trial in enumerate(trials))
    running: list[Run] = []
    ended: list[Curves] = []
    spent, complete = 0, []
    while waiting or running:
        while waiting and len(running) < n_workers:
            running.append(waiting.popleft())
        for run in list(running):
            spent += 1
            others = ended + [book.seen(each, complete=False) for each in running if each is not run]
            others.sort(key=lambda each: each.number)
            pruned = advance(book, run, pruning, others)
            whole = run.fold == book.n_folds
            if pruned or whole:
                running.remove(run)
                ended.append(book.seen(run, complete=whole))
            if whole:
                complete.append(run.trial)
    return spent, complete


def advance(book: Book, run: Run, pruning: Pruning, others: list[Curves]) -> bool:
    """Train *run* for an epoch more; return whether it is then given up."""
    run.epoch += 1
    if run.epoch < book.n_epochs:
        epoch = run.epoch - 1
        if not pruning.looks_after_epoch(run.fold, epoch):
            return False
        return pruning.after_epoch(book.seen(run, complete=False), others, run.fold, epoch) is not None
    run.fold, run.epoch = run.fold + 1, 0
    return pruning.after_fold(book.seen(run, complete=False), others, run.fold - 1) is not None


if __name__ == "__main__":
    main()

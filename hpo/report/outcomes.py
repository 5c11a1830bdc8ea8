"""What failed, what was given up, and what became of the attempts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from hpo.report.blocks import Block, Paragraph, Section, Table
from hpo.report.findings import Findings
from hpo.report.wording import NOTHING, count, numbers, share
from storage.claims import Ending
from storage.ledger import Course
from storage.summaries import AttemptInBrief

_MOST_ROWS = 40
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?:%|\b)")
ENDINGS = {
    Ending.COMPLETE: "finished all folds",
    Ending.PRUNED: "was given up, since it could hardly become the best",
    Ending.FAIL: "failed for good, by the configuration's fault or a defect",
    Ending.STOPPED: "was asked to stop and saved; the trial went on from there",
    Ending.LEFT: "its worker could not go on, as without data, disk or database; the trial went on from there",
    Ending.HUNG: "did not advance any more and was ended by its own worker",
    Ending.LOST: "its worker died or was cut off; the trial went on from there",
}
_AT_WORK = "at work"


def outcomes(found: Findings) -> Section:
    """Return what failed and why, what was pruned and when, and how the attempts ended."""
    blocks: list[Block] = [*_failures(found), *_pruned(found), *_attempts(found)]
    return Section("outcomes", "What failed, and what was given up", blocks)


def _of_state(found: Findings, state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in found.trials if trial.state == state]


def _failures(found: Findings) -> list[Block]:
    failed = _of_state(found, TrialState.FAIL)
    if not failed:
        return [Paragraph("No trial failed.")]
    groups = _grouped(found, failed)
    rows = [
        (reason, str(len(trials)), str(_n_attempts(found, trials)), numbers([trial.number for trial in trials]))
        for reason, trials in groups[:_MOST_ROWS]
    ]
    caption = f"{count(len(failed), 'trial')} failed{_rest(groups)}. Numbers in a reason are those of its first trial."
    return [Table(caption, ("reason", "trials", "attempts", "which"), rows, words=frozenset({0, 3}))]


def _pruned(found: Findings) -> list[Block]:
    pruned = _of_state(found, TrialState.PRUNED)
    if not pruned:
        return [Paragraph("No trial was pruned.")]
    groups = _grouped(found, pruned)
    why = [
        (reason, str(len(trials)), numbers([trial.number for trial in trials]))
        for reason, trials in groups[:_MOST_ROWS]
    ]
    places = Counter(_place(found.courses.get(trial.number)) for trial in pruned)
    when = [
        (
            NOTHING if fold < 0 else str(fold),
            NOTHING if epoch < 0 else str(epoch),
            str(times),
            share(times, len(pruned)),
        )
        for (fold, epoch), times in sorted(places.items())
    ]
    return [
        Table(
            f"{count(len(pruned), 'trial')} pruned{_rest(groups)}. Numbers in a reason are those of its first trial.",
            ("reason", "trials", "which"),
            why,
            words=frozenset({0, 2}),
        ),
        Table(
            "When: the last fold that they were in, and its last epoch (both from 0).",
            ("fold", "epoch", "trials", "share"),
            when,
            words=frozenset(),
        ),
    ]


def _rest(groups: Sequence[tuple[str, list[FrozenTrial]]]) -> str:
    return "" if len(groups) <= _MOST_ROWS else f", the {_MOST_ROWS} most frequent of {len(groups)} kinds of reason"


def _grouped(found: Findings, trials: list[FrozenTrial]) -> list[tuple[str, list[FrozenTrial]]]:
    """Return trials by their reason, those that differ in numbers alone together, the most frequent first."""
    groups: dict[str, list[FrozenTrial]] = defaultdict(list)
    first: dict[str, str] = {}
    for trial in trials:
        reason = found.identifiers.reason(trial.user_attrs.get("reason"))
        kind = _NUMBER.sub("#", reason)
        first.setdefault(kind, reason)
        groups[kind].append(trial)
    return sorted(((first[kind], alike) for kind, alike in groups.items()), key=lambda group: -len(group[1]))


def _place(course: Course | None) -> tuple[int, int]:
    """Return the last fold and the last epoch in it that a trial got to; -1 where there is none, as of one taken over."""
    if course is None or not course.epochs:
        return (max(course.scores), -1) if course is not None and course.scores else (-1, -1)
    fold = max(course.epochs)
    return fold, len(course.epochs[fold]) - 1


def _n_attempts(found: Findings, trials: Sequence[FrozenTrial]) -> int:
    return sum(len(found.attempts.get(trial.number, ())) for trial in trials)


def _attempts(found: Findings) -> list[Block]:
    endings = Counter(_ending(attempt) for attempt in found.all_attempts)
    if not endings:
        return []
    meaning = {**{str(ending): text for ending, text in ENDINGS.items()}, _AT_WORK: "has not ended"}
    blocks: list[Block] = [
        Table(
            f"How {count(endings.total(), 'attempt')} at {count(len(found.attempts), 'trial')} ended. What finished folds and"
            " epochs an attempt leaves, the next one takes over.",
            ("ending", "attempts", "meaning"),
            [(ending, str(endings[ending]), text) for ending, text in meaning.items() if endings[ending]],
            words=frozenset({0, 2}),
        )
    ]
    several = {number: attempts for number, attempts in found.attempts.items() if len(attempts) > 1}
    if several:
        most = sorted(several, key=lambda number: (-len(several[number]), number))
        shown = f", the {_MOST_ROWS} with the most of {len(most)}" if len(most) > _MOST_ROWS else ""
        rows = [(str(number), endings_in_words(several[number])) for number in most[:_MOST_ROWS]]
        blocks.append(
            Table(f"Trials that took more than one attempt{shown}.", ("trial", "attempts"), rows, words=frozenset({1}))
        )
    return blocks


def endings_in_words(attempts: Sequence[AttemptInBrief]) -> str:
    """Return how *attempts* at one trial ended, in their order."""
    if not attempts:
        return "none here"
    return f"{len(attempts)}: {', '.join(_ending(attempt) for attempt in attempts)}"


def _ending(attempt: AttemptInBrief) -> str:
    return attempt.ending or _AT_WORK

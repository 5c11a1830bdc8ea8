"""
A trial's note: what one wants to know of it at a glance, in Markdown as optuna-dashboard shows it.

A note stays below 2 000 bytes, however long the reason and however many the parameters, since every look at a study reads the
notes of all its trials. Markdown of tables, lists and pictures; HTML would be shown as text.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial

from hpo.tables import duration
from storage.record import Attempt, TrialRecord

LARGEST = 2000  # bytes

UNREADABLE = "Its files are damaged: nothing else can be shown of it."
_NO_RECORD = "No worker of this study has left a record of it."

_LONGEST_REASON = 300  # bytes: of a traceback its end, where the error stands
_LONGEST_VALUE = 60  # characters
_ATTEMPTS = 4
_MEANT_BY_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&@:=\"'^-])")


def note(record: TrialRecord, pictures: Mapping[str, str]) -> str:
    """Return the note of a finished trial: *record* as others may read it, and *pictures* by what they show, each by its path."""
    blocks = [
        _headline(record.state, record.value, _where_pruned(record)),
        _reason(record.state, record.reason),
        _scores(record.fold_scores),
        _attempts(record.attempts),
        _circumstances(record),
        *(f"![{shown}]({path})" for shown, path in pictures.items()),
    ]
    return _with_params(blocks, record.params)


def bare_note(trial: FrozenTrial, said: Callable[[Any], Any], where: str = _NO_RECORD) -> str:
    """
    Return the note of a finished trial of which no record is shown.

    Args:
        trial: That no worker of ours trained in this study, or whose files are damaged.
        said: Returns a parameter, or the reason, as others may read it.
        where: What became of its record; of a trial that was taken over, from where.
    """
    origin, reason = trial.user_attrs.get("from"), trial.user_attrs.get("reason")
    if origin is not None:
        study, number = origin["study"], origin["number"]
        where = f"Taken over from trial {number} of study {escaped(study)}: its files and pictures are there."
    state = trial.state.name.lower()
    value = trial.values[0] if trial.values else None
    why = None if reason is None else str(said(str(reason)))
    params = {name: said(value) for name, value in trial.params.items()}
    return _with_params([_headline(state, value, ""), _reason(state, why), where], params)


def escaped(value: object) -> str:
    """Return *value* as text of one line that Markdown takes for nothing but text, cut where it is long."""
    text = " ".join(str(value).split())
    text = text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 1]}…"
    return _MEANT_BY_MARKDOWN.sub(r"\\\1", text)


def _headline(state: str, value: float | None, where: str) -> str:
    if state == "complete" and value is not None:
        return f"**{value:.4f}** balanced accuracy adjusted for chance"
    return f"**{'failed' if state == 'fail' else state}**{where}"


def _where_pruned(record: TrialRecord) -> str:
    if record.state != "pruned":
        return ""
    return " in its first fold" if record.pruned_at is None else f", {_count(record.n_folds_done, 'fold')} finished"


def _reason(state: str, reason: str | None) -> str:
    """Return why a trial was pruned or failed, word for word: between fences nothing of it means anything."""
    if reason is None or not reason.strip():
        return "" if state == "complete" else "No reason was given."
    text = reason.strip()
    if len(text.encode()) > _LONGEST_REASON:
        text = f"…{text.encode()[-_LONGEST_REASON:].decode(errors='ignore')}"
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _scores(fold_scores: Sequence[float | None]) -> str:
    scores = [score for score in fold_scores if score is not None]
    if not scores:
        return "No fold was finished."
    each = ", ".join("none" if score is None else f"{score:.4f}" for score in fold_scores)
    spread = f", sd {statistics.stdev(scores):.4f}" if len(scores) > 1 else ""
    return f"Folds: {each}; mean {statistics.fmean(scores):.4f}{spread} (n = {len(scores)})"


def _attempts(attempts: Sequence[Attempt]) -> str:
    lines = [
        f"{attempt.number}: {attempt.ending or 'running'} on {escaped(attempt.device)}"
        f"{_lasted(attempt)}, {_count(sum(map(len, attempt.epochs.values())), 'epoch')}"
        for attempt in attempts[-_ATTEMPTS:]
    ]
    left_out = len(attempts) - len(lines)
    earlier = [f"{left_out} earlier ones"] if left_out else []
    return "\n".join([f"Attempts: {len(attempts)}", "", *(f"* {line}" for line in [*earlier, *lines])])


def _lasted(attempt: Attempt) -> str:
    return "" if attempt.end is None else f" after {duration((attempt.end - attempt.start).total_seconds())}"


def _circumstances(record: TrialRecord) -> str:
    config = record.config
    facts = [
        escaped(config["arch"]),
        f"{config['img_size']} px",
        f"batches of {config['batch_size']}",
        f"{_count(config['epochs'], 'epoch')} a fold",
    ]
    if record.device is not None:
        facts += [escaped(record.device), _count(record.threads or 1, "thread")]
    facts.append(f"commit {record.git_commit[:8]}" if record.git_commit else "no known commit")
    return f"{', '.join(facts)}. Its folder: `{record.study}/trial_{record.number:04d}`"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _with_params(blocks: Iterable[str], params: Mapping[str, Any]) -> str:
    """Return *blocks* with a table of the parameters after the first, of as many as there is room for."""
    first, *rest = [block for block in blocks if block]
    room = LARGEST - len("\n\n".join([first, *rest]).encode()) - 120  # for the table's head and its last line
    rows: list[str] = []
    for name, value in params.items():
        row = f"| {escaped(name)} | {escaped(_rounded(value))} |"
        room -= len(row.encode()) + 1
        if room < 0:
            break
        rows.append(row)
    table = "\n".join(["| parameter | value |", "| --- | --- |", *rows]) if rows else ""
    left_out = len(params) - len(rows)
    more = f"{left_out} more parameters are in `optuna_trial.json`." if left_out else ""
    return "\n\n".join(block for block in (first, table, more, *rest) if block) + "\n"


def _rounded(value: object) -> object:
    """Return a number with as many digits as one reads."""
    return f"{value:.6g}" if isinstance(value, float) else value

"""What the numbers were made with: libraries, commit, devices; and where attempts differ in them."""

from __future__ import annotations

from collections import Counter

from hpo.report.blocks import Block, Notice, Paragraph, Section, Table
from hpo.report.findings import Findings
from hpo.report.wording import NOTHING
from storage.summaries import AttemptInBrief

_FIRST = ("device", "commit", "working copy", "python", "mammography-hpo")


def origins(found: Findings) -> Section:
    """Return the versions of all attempts, and of the study's creation."""
    title = "Versions"
    attempts = found.all_attempts
    if not attempts and found.record is None:
        return Section("versions", title, [Paragraph("Nothing was tried yet, and study.json is not there.")])
    used = {name: Counter(of.get(name, NOTHING) for of in map(_made_with, attempts)) for name in _names(attempts)}
    created = {} if found.record is None else {**found.record.versions, "commit": found.record.git_commit or NOTHING}
    names = sorted({*used, *created}, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    rows = [(name, _in_words(used.get(name, Counter())), created.get(name, NOTHING)) for name in names]
    blocks: list[Block] = []
    differing = [name for name, values in used.items() if len(values) > 1]
    if differing:
        blocks.append(
            Notice(
                f"Attempts differ in {', '.join(differing)}: with other libraries, code or devices the same configuration need"
                " not give the same number to the last bit."
            )
        )
    blocks.append(
        Table(
            "What attempts ran with, and what the study was created with. Where there is more than one, with how many attempts.",
            ("", "attempts", "creation"),
            rows,
            words=frozenset({0, 1, 2}),
        )
    )
    return Section("versions", title, blocks)


def _names(attempts: list[AttemptInBrief]) -> list[str]:
    return list(dict.fromkeys(name for attempt in attempts for name in _made_with(attempt)))


def _made_with(attempt: AttemptInBrief) -> dict[str, str]:
    """Return everything that an attempt ran with."""
    environment = attempt.environment
    dirty = {True: "changed", False: "clean", None: NOTHING}[environment.get("git_dirty")]
    return {
        "device": attempt.device,
        **environment.get("versions", {}),
        "commit": environment.get("git_commit") or NOTHING,
        "working copy": dirty,
    }


def _in_words(values: Counter[str]) -> str:
    if len(values) <= 1:
        return next(iter(values), NOTHING)
    return ", ".join(f"{value} ({times})" for value, times in values.most_common())

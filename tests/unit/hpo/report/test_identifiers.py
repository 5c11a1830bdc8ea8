"""What a page may not say: reasons are shortened and scrubbed, and stay readable."""

from __future__ import annotations

import time

import pytest

from hpo.report.identifiers import Identifiers

FOLDS = """\
image,patient,label,fold
0000173/L_CC.dcm,PAT-0042,2,0
site a/study (7)/mdb001.pgm,"Roe^Jane (born 1950)",1,1
12/x.png,7,1,
"""
TRACEBACK = """\
Traceback (most recent call last):
  File "/srv/mammography/trainer/loop.py", line 3, in train
    raise ValueError
ValueError: batch of patient PAT-0042 is empty
and a second line of the message
"""


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("the loss is not finite in fold 1, epoch 3, step 12", "the loss is not finite in fold 1, epoch 3, step 12"),
        ("worse than trial 7: p 0.125 of at most 0.25", "worse than trial 7: p 0.125 of at most 0.25"),
        ("0000173/L_CC.dcm: cannot be decoded", "[image]: cannot be decoded"),
        ("no vector for 0000173, 'PAT-0042'", "no vector for [identifier], '[identifier]'"),
        ("accession_0000173 is odd; pat-0042.", "accession_[identifier] is odd; [identifier]"),
        ("mdb001 of Roe^Jane (born 1950)", "[identifier] of [identifier]"),
        ("[Errno 2] No such file: '/data/archive/0000173/L_CC.dcm'", "[Errno 2] No such file: '[path]'"),
        ("No such file: '/data/arch/Maria da Silva/1.dcm' in 2 s", "No such file: '[path]' in 2 s"),
        ("/data/arch/Maria da Silva/new/1.dcm is gone, and more", "[path] is gone, and more"),
        (r"C:\archive\0000173\L_CC.dcm is gone", "[path] is gone"),
        ("postgresql://u:geheim@host/db?x=1 is away", "[address] is away"),
        ("connection with password=geheim refused", "connection with password=[hidden] refused"),
        ("instance 1.2.840.113619.2.55.3.604688119 twice", "instance [identifier] twice"),
        (TRACEBACK, "ValueError: batch of patient [identifier] is empty"),
        ("", "no reason is known"),
        (None, "no reason is known"),
        ("two\nlines", "lines"),
    ],
)
def test_reason(reason: str | None, shown: str) -> None:
    """One line, without names, paths, addresses and passwords; numbers of ours stay."""
    assert Identifiers.of(FOLDS).reason(reason) == shown


def test_rejected_images_are_known_too() -> None:
    """A path in the data report is as private as one in the folds."""
    assert (
        Identifiers.of(FOLDS, ["0000999/scan"]).scrub("see 0000999/scan or 0000999")
        == "see [identifier] or [identifier]"
    )


def test_long_reason_is_shortened() -> None:
    """A page has no room for a library's whole configuration."""
    assert len(Identifiers.of(FOLDS).reason("x y " * 1000)) < 250


def test_large_archive_is_no_burden() -> None:
    """A hundred thousand images and two thousand reasons take a moment."""
    folds = "image,patient,label,fold\n" + "\n".join(f"{n:07}/L_CC.dcm,P{n:07},1,0" for n in range(100_000))
    identifiers = Identifiers.of(folds)
    begun = time.process_time()
    for _ in range(2000):
        assert identifiers.scrub("out of memory in fold 3, of 0000173") == "out of memory in fold 3, of [identifier]"
    assert time.process_time() - begun < 1

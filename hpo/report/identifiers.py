"""What must not stand on a page that is handed around: the names of patients and images, paths, addresses, passwords."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

_SHORTEST = 3
"""A shorter identifier is found in every number, and tells nobody who it is."""
_LONGEST_REASON = 240
_LONGEST_LINE = 2000
"""What is searched: names are looked for from every place of a text."""
_GENERAL = (
    (re.compile(r"[A-Za-z][\w+.\-]*://\S+"), "[address]"),
    (re.compile(r"(?i)\b(pass(?:word|file|wd)|secret|token)\s*[=:]\s*\S+"), r"\1=[hidden]"),
    (re.compile(r"(?<=')(?:[A-Za-z]:)?[\\/][^'\n]*[\\/][^'\n]*(?=')"), "[path]"),  # quoted ones may have blanks
    (re.compile(r'(?<=")(?:[A-Za-z]:)?[\\/][^"\n]*[\\/][^"\n]*(?=")'), "[path]"),
    (
        re.compile(r"(?i)(?<![\w.])(?:[a-z]:)?[\\/][^'\":,;()\n]{1,300}\.(?:dcm|dicom|ima|png|jpe?g|jp2|pgm|tiff?)\b"),
        "[path]",
    ),
    (re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[\\/][^\s'\"\\/:,;()]+){2,}[\\/]?"), "[path]"),
    (re.compile(r"(?i)[^\s'\"(),;:]+\.(?:dcm|dicom|ima|png|jpe?g|jp2|pgm|tiff?|ljpeg)\b"), "[image]"),
    (re.compile(r"\b\d+(?:\.\d+){5,}\b"), "[identifier]"),  # a DICOM UID
)
_CHUNKS = (re.compile(r"[^\s'\"(),;:=\[\]]+"), re.compile(r"[\w.\-^]+"), re.compile(r"[^\W_]+"))
"""Ever smaller pieces of a text, each of which may be an identifier."""
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:: .*)?")


@dataclass(frozen=True)
class Identifiers:
    """The names of patients and images of one study."""

    plain: frozenset[str]
    """Those that are one piece of a text."""
    unusual: tuple[str, ...]
    """Those with blanks or brackets in them, the longest first."""

    @classmethod
    def of(cls, folds_csv: str, other_paths: Iterable[str] = ()) -> Identifiers:
        """Return those in a study's table of folds, and in the paths of the images that it does not use."""
        found: set[str] = set()
        for row in csv.DictReader(io.StringIO(folds_csv, newline="")):
            found |= {row["patient"], *_parts(row["image"])}
        for path in other_paths:
            found |= _parts(path)
        known = {each.casefold() for each in found if len(each) >= _SHORTEST}
        plain = frozenset(each for each in known if _CHUNKS[0].fullmatch(each))
        return cls(plain, tuple(sorted(known - plain, key=len, reverse=True)))

    def scrub(self, text: str) -> str:
        """Return *text* without any of them, and without paths, addresses and passwords."""
        for pattern, replacement in _GENERAL:
            text = pattern.sub(replacement, text)
        for each in self.unusual:
            if each in text.casefold():
                text = re.sub(re.escape(each), "[identifier]", text, flags=re.IGNORECASE)
        for pieces in _CHUNKS:
            text = pieces.sub(self._hide, text)
        return text

    def reason(self, text: str | None) -> str:
        """Return why something failed in one line that names nobody: of a traceback what was raised in the end."""
        lines = (text or "").strip().splitlines() or ["no reason is known"]
        if lines[0].startswith("Traceback"):
            raised = [line for line in lines if _EXCEPTION.fullmatch(line)]
            lines = raised[-1:] or lines
        scrubbed = " ".join(self.scrub(lines[-1][:_LONGEST_LINE]).split())
        return scrubbed if len(scrubbed) <= _LONGEST_REASON else f"{scrubbed[:_LONGEST_REASON]}…"

    def _hide(self, piece: re.Match[str]) -> str:
        return "[identifier]" if piece[0].rstrip(".").casefold() in self.plain else piece[0]


def _parts(path: str) -> set[str]:
    """Return a path, and those of its parts that may be the name of somebody or something: the ones with a digit."""
    parts = PurePosixPath(path).parts
    names = {*parts, PurePosixPath(path).stem}
    return {path, *(name for name in names if re.search(r"\d", name))}

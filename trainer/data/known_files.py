"""
What earlier openings learnt of the archive's files, so that files which did not change need not be hashed again.

A shortcut of one machine and never part of a hash: a file counts as unchanged when its size, its times and its inode are what
they were. It holds no pixel, and names as the data set's files have them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from trainer.data.mammogram import Header
from trainer.data.records import Code
from trainer.files import write_text

logger = logging.getLogger(__name__)

READER_VERSION = 1
"""To be raised with every change of what a header means."""

_SETTLED_NS = 2 * 10**9
"""Longer than a tick of any file system's clock."""
_COLUMNS = (
    "name", "size", "mtime_ns", "ctime_ns", "inode",
    "sha256", "code", "reason", "pixels", "patient", "view", "special", "laterality", "for_processing",
)  # fmt: skip


@dataclass(frozen=True)
class Stamp:
    """What tells that a file is unchanged."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: str) -> Stamp:
        """Return the stamp of the file at *path*. Raises OSError."""
        status = os.stat(path)  # noqa: PTH116  as strings: 20 000 of them in a moment
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def settled(self, read_ns: int) -> bool:
        """Return whether the file had not changed for a while before it was read, at *read_ns*."""
        return max(self.mtime_ns, self.ctime_ns) < read_ns - _SETTLED_NS


@dataclass(frozen=True)
class Known:
    """What is known of a file: its hash, and its header or why it is not used."""

    sha256: str
    header: Header | None
    """Its patient_id is what the patient is called in files, or a hash of that where nobody has to read it."""
    code: Code | None = None
    reason: str = ""


class KnownFiles:
    """
    What is known of the files below one root, kept in one file of *folder*; without a folder nothing is kept.

    What is known under another *identity* has other names.
    """

    def __init__(self, folder: Path | None, root: Path, *identity: str) -> None:
        readers = [str(READER_VERSION), version("pydicom"), version("pillow"), *identity]
        key = hashlib.sha256("\n".join([os.path.realpath(root), *readers]).encode(errors="surrogateescape"))
        self._path = None if folder is None else folder / f"known-{key.hexdigest()[:32]}.csv"
        self._known = _read(self._path) if self._path is not None else {}
        self._is_changed = False

    def get(self, name: str, stamp: Stamp) -> Known | None:
        """Return what is known of the file called *name* if it still has its *stamp*."""
        entry = self._known.get(name)
        return entry[1] if entry is not None and entry[0] == stamp else None

    def add(self, name: str, stamp: Stamp, known: Known, read_ns: int) -> None:
        """Take note of what was learnt of a file that was read at *read_ns* and had *stamp* before and after that."""
        # One that had changed just before it was read may have changed again within the same tick of its clock.
        if stamp.settled(read_ns):
            self._known[name] = (stamp, known)
            self._is_changed = True

    def keep(self) -> None:
        """Write down what is known; where that cannot be written, nothing is kept."""
        if self._path is None or not self._is_changed:
            return
        self._is_changed = False
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(_row(name, stamp, known) for name, (stamp, known) in self._known.items())
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, buffer.getvalue())
            self._path.chmod(0o600)  # nobody else needs to know
        except OSError as error:
            logger.debug("%s: not kept: %s", self._path, error)


def _row(name: str, stamp: Stamp, known: Known) -> list[object]:
    """Return what is known as one row of the file."""
    header = known.header
    about = (
        [""] * 6
        if header is None
        else [
            header.pixels, header.patient_id or "", header.view or "", header.special or "", header.laterality or "",
            int(header.for_processing),
        ]
    )  # fmt: skip
    code = known.code.value if known.code else ""
    return [
        name, stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode, known.sha256, code, known.reason, *about
    ]  # fmt: skip


def _read(path: Path) -> dict[str, tuple[Stamp, Known]]:
    """Return what `keep` has written to *path*; nothing where it is damaged or not there, since it can be found out again."""
    known: dict[str, tuple[Stamp, Known]] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            if tuple(next(rows, ())) != _COLUMNS:
                return {}
            for name, size, mtime, ctime, inode, sha256, code, reason, *about in rows:
                stamp = Stamp(int(size), int(mtime), int(ctime), int(inode))
                known[name] = (
                    stamp,
                    Known(sha256, None if code else _header(*about), Code(code) if code else None, reason),
                )
    except (OSError, ValueError, TypeError, csv.Error):
        return {}
    return known


def _header(pixels: str, patient: str, view: str, special: str, laterality: str, for_processing: str) -> Header:
    """Return the header in the last columns of a row."""
    return Header(
        int(pixels), patient or None, view or None, special or None, laterality or None, for_processing == "1"
    )

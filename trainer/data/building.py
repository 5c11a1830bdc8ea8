"""
A data set that is being decoded into a folder, by one process after another if need be.

Beside the array lies a journal of what came of each file, in their order. A line is written when its image is on the disk, so
that whoever finds the folder after a kill, or after the power went, goes on behind the last line. The folder belongs to the
process that holds its lock.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trainer.data.cache_files import About, array_header, images_path
from trainer.data.decoding import Outcome
from trainer.data.records import Code
from trainer.files import write_text

_DECODED, _JOURNAL = "decoded", "journal.csv"
_COMMIT_S = 2.0
"""How much work a kill costs at most."""
_COPY_ROWS = 64


class Building:
    """
    The folder of a data set that is being decoded.

    With pwrite and not through a memory map, whose written pages count as the process's own memory.
    """

    def __init__(self, folder: Path, about: About) -> None:
        self._folder = folder
        self._side = about.preprocessing.img_size
        self._title = about.model_dump_json()
        folder.mkdir(exist_ok=True)
        self.done: tuple[Outcome, ...] = self._take_up()
        self._rows = sum(outcome.code is None for outcome in self.done)
        self._array = os.open(folder / _DECODED, os.O_RDWR | os.O_CREAT, 0o666)
        self._start = len(array_header(0, self._side))
        self._lines: list[str] = []
        self._committed_at = time.monotonic()
        self._journal = (folder / _JOURNAL).open("a", encoding="utf-8", newline="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            # Whoever asked this process to stop does not lose what it has decoded. A full disk takes no more.
            if not isinstance(error, OSError):
                self._commit()
        finally:
            with contextlib.suppress(OSError):
                self._journal.close()
            os.close(self._array)

    def add(self, outcome: Outcome, image: NDArray[np.uint8] | None) -> None:
        """Write what came of the next file, and its image as the next row if it is decoded."""
        if image is not None:
            _write(self._array, image.tobytes(), self._start + self._rows * self._side**2)
            self._rows += 1
        self._lines.append(_line([outcome.fingerprint or "", outcome.code or "", outcome.reason]))
        if time.monotonic() > self._committed_at + _COMMIT_S:
            self._commit()

    def finish(self, rows: Sequence[int]) -> None:
        """Leave the array of *rows*, ascending, in its place, and nothing else that was needed to build it."""
        self._commit()
        place = images_path(self._folder)
        header = array_header(len(rows), self._side)
        if len(rows) == self._rows:
            _write(self._array, header, 0)
            os.fsync(self._array)
            (self._folder / _DECODED).rename(place)
        else:
            self._copy(rows, header, place)
        (self._folder / _DECODED).unlink(missing_ok=True)

    def close_journal(self) -> None:
        """Remove the journal: everything else is in its place."""
        (self._folder / _JOURNAL).unlink()

    def _copy(self, rows: Sequence[int], header: bytes, place: Path) -> None:
        """Write *rows* of what is decoded to *place*."""
        size = self._side**2
        with place.open("wb") as file:
            file.write(header)
            for begin in range(0, len(rows), _COPY_ROWS):
                for row in rows[begin : begin + _COPY_ROWS]:
                    file.write(os.pread(self._array, size, self._start + row * size))
            file.flush()
            os.fsync(file.fileno())

    def _commit(self) -> None:
        """Put the images on the disk, and then the lines that speak of them."""
        if self._lines:
            os.fdatasync(self._array)
            self._journal.write("".join(self._lines))
            self._journal.flush()
            os.fsync(self._journal.fileno())
            self._lines.clear()
        self._committed_at = time.monotonic()

    def _take_up(self) -> tuple[Outcome, ...]:
        """Return what came of the files that another process had decoded here; begin anew where that cannot be told."""
        array, journal = self._folder / _DECODED, self._folder / _JOURNAL
        if not array.exists() and images_path(self._folder).exists():
            images_path(self._folder).rename(array)  # it was killed behind the last image
        outcomes = _read_journal(journal, self._title)
        size = len(array_header(0, self._side)) + self._side**2 * sum(each.code is None for each in outcomes)
        if not outcomes or not array.exists() or array.stat().st_size < size:
            for path in self._folder.iterdir():
                path.unlink()
            outcomes = []
        # Without a line that was written in part.
        write_text(
            journal,
            _line([self._title])
            + "".join(_line([each.fingerprint or "", each.code or "", each.reason]) for each in outcomes),
        )
        return tuple(outcomes)


def _read_journal(path: Path, title: str) -> list[Outcome]:
    """Return the outcomes in *path*, as far as they are whole; none of a data set with another *title*."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return []
    whole = text[: text.rfind("\n") + 1]
    rows = csv.reader(io.StringIO(whole, newline=""))
    outcomes: list[Outcome] = []
    try:
        if next(rows, None) != [title]:
            return []
        for fingerprint, code, reason in rows:
            outcomes.append(Outcome(fingerprint or None, Code(code) if code else None, reason))
    except (ValueError, csv.Error):
        return []
    return outcomes


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _write(file: int, data: bytes, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written

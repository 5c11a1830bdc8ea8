"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PART = ".part"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """
    Give a temporary path to write to; when the block ends well, the file is on disk and takes the place of *path* at once.

    When it does not, *path* stays as it was and the temporary file goes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def next_free_folder(parent: Path, prefix: str) -> Path:
    """Make the folder *prefix* with the next free number below *parent*, and return it: nobody writes over another's."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"{prefix}_{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes had begun to write in *folder* and below it; nobody may be writing there now."""
    for path in folder.rglob(f".*{_PART}"):
        path.unlink()


def is_unfinished(path: Path) -> bool:
    """Return whether *path* is what `written_whole` writes to: what is being written, or was when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(_PART)


def write_text(path: Path, text: str) -> None:
    """Write *text* to *path*, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")

"""
The archive as it lies on the disk: which files are there, and which of them the label file speaks of.

Nothing is opened here. Symbolic links are judged first: what they lead to must be below the root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.data.labels import Entry, Labels
from trainer.data.naming import Naming
from trainer.data.records import Code, Rejection, Split
from trainer.errors import InputError

_SYSTEM_FILES = {"Thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Candidate:
    """A file that has a label."""

    path: str
    """Relative to the root, POSIX."""
    name: str
    """What it is called in files: its path, or a pseudonym."""
    accession: str
    """What its key in the label file is called: an accession number, or an image's own name, or a pseudonym."""
    patient: str | None
    """What the patient is called that the label file names."""
    label: int
    """0..C-1."""
    entry: Entry
    """What the label file says."""
    split: Split | None
    """Of the label file's own split, where that is to be used."""


@dataclass(frozen=True)
class _Found:
    """A file below the root."""

    path: str
    """Relative to the root, POSIX."""
    code: Code | None = None
    """Why it is not even opened."""
    reason: str = ""
    real: str | None = None
    """Its path without links, where it is reached by one."""


def check_root(root: Path) -> None:
    """Accept *root* if it is a folder with something in it. Raises InputError."""
    try:
        empty = not any(root.iterdir())
    except OSError as error:
        raise InputError(f"{root}: {error.strerror}, expected the folder of the images") from error
    if empty:
        raise InputError(f"{root}: empty, expected the images in it")


def find_candidates(
    root: Path, labels: Labels, naming: Naming, *, published_split: bool = False
) -> tuple[list[Candidate], list[Rejection]]:
    """
    Return the files below *root* that have a label, sorted by path, and those that are left out before they are read.

    Raises:
        InputError: there is no such folder, or nothing in it.
    """
    check_root(root)
    candidates: list[Candidate] = []
    rejections: list[Rejection] = []
    seen: set[str] = set()
    real_path_of: dict[str, str] = {}
    for found in _walk(root):
        key = labels.key_of(found.path)
        entry = None if key is None else labels.entries.get(key)
        if key is not None:
            seen.add(key)
        name = naming.path(_shown(found.path))
        if found.code is not None:
            rejections.append(Rejection(name, found.code, found.reason))
        elif key is None or entry is None:
            rejections.append(Rejection(name, Code.NO_LABEL, "the label file does not speak of it"))
        elif entry.label is None:
            rejections.append(Rejection(name, entry.code or Code.NO_LABEL, entry.reason))
        else:
            stated = labels.patient_of(found.path, key)
            patient = None if stated is None else naming.patient(stated)
            split = (entry.split or "train") if published_split else None
            candidates.append(Candidate(found.path, name, naming.accession(key), patient, entry.label, entry, split))
            if found.real is not None:
                real_path_of[found.path] = found.real
    for key in labels.entries.keys() - seen:
        entry = labels.entries[key]
        reason = entry.reason or "the label file speaks of it, and there is no such image"
        rejections.append(Rejection(naming.accession(_shown(key)), entry.code or Code.NO_IMAGE, reason))
    candidates, again = _without_second_names(candidates, real_path_of)
    return sorted(candidates, key=lambda candidate: candidate.path), rejections + again


def _without_second_names(
    candidates: list[Candidate], real_path_of: Mapping[str, str]
) -> tuple[list[Candidate], list[Rejection]]:
    """
    Return *candidates* without those that are links to others of them: the same file, and not the same image twice.

    Args:
        candidates: Files with a label.
        real_path_of: Path without links of those that are reached by one.
    """
    own = {candidate.path for candidate in candidates if candidate.path not in real_path_of}
    kept = [candidate for candidate in candidates if real_path_of.get(candidate.path) not in own]
    reason = "a link to an image that is used under its own name"
    again = [
        Rejection(candidate.name, Code.LINK, reason)
        for candidate in candidates
        if real_path_of.get(candidate.path) in own
    ]
    return kept, again


def _walk(root: Path) -> Iterator[_Found]:
    """Yield every file below *root*, and every link that is not followed."""
    real_root = os.path.realpath(root)
    waiting = [_Folder(str(root), "", within_link=False)]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder.place))
        except OSError as error:
            path = folder.prefix.rstrip("/")
            yield _Found(path, Code.UNDECODABLE, f"a folder that cannot be read: {error.strerror}")
            continue
        for entry in entries:
            path = folder.prefix + entry.name
            found: _Found | None = None
            if entry.is_symlink():
                found = _judge_link(entry.path, path, real_root, within_link=folder.within_link)
            elif not entry.is_dir(follow_symlinks=False):
                found = _judge_file(path, is_regular=entry.is_file(follow_symlinks=False))
                if folder.within_link and found.code is None:
                    found = replace(found, real=_relative(os.path.realpath(entry.path), real_root))
            if found is None:
                within_link = folder.within_link or entry.is_symlink()
                waiting.append(_Folder(entry.path, f"{path}/", within_link=within_link))
            else:
                yield found


@dataclass(frozen=True)
class _Folder:
    """A folder that is still to be looked into."""

    place: str
    prefix: str
    """Of the paths of what is in it, relative to the root."""
    within_link: bool
    """Whether it is reached by a link."""


def _judge_link(link: str, path: str, real_root: str, *, within_link: bool) -> _Found | None:
    """Return what the link is, or None for one to a folder that is to be looked into."""
    target = os.path.realpath(link)
    if not _is_below(target, real_root):
        return _Found(path, Code.OUTSIDE_ROOT, "a link that leads out of the root")
    if not os.path.isdir(target):  # noqa: PTH112  strings throughout: 20 000 files a second
        if os.path.exists(target):  # noqa: PTH110
            found = _judge_file(path, is_regular=os.path.isfile(target))  # noqa: PTH113
            return replace(found, real=_relative(target, real_root))
        return _Found(path, Code.LINK, "a link that leads nowhere")
    if _is_below(os.path.realpath(os.path.dirname(link)), target):  # noqa: PTH120
        return _Found(path, Code.LINK, "a link to a folder that it is in")
    if within_link:  # links in linked folders could go on for ever
        return _Found(path, Code.LINK, "a link to a folder, in a folder that is reached by a link")
    return None


def _judge_file(path: str, *, is_regular: bool) -> _Found:
    """Return what the file at *path* is, by its name and kind."""
    name = path.rpartition("/")[2]
    if _shown(path) != path:
        return _Found(path, Code.UNDECODABLE, "the file's name is no UTF-8")
    if name.startswith(".") or name in _SYSTEM_FILES:
        return _Found(path, Code.SYSTEM_FILE, "a file that the operating system has put there")
    if not is_regular:
        return _Found(path, Code.NOT_IMAGE, "no regular file")
    return _Found(path)


def _relative(path: str, real_root: str) -> str:
    """Return *path*, which is below *real_root*, relative to it."""
    return os.path.relpath(path, real_root)


def _is_below(path: str, folder: str) -> bool:
    """Return whether *path* is *folder* or in it; both without links."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _shown(path: str) -> str:
    """Return *path* as text that every file can hold."""
    return path.encode(errors="backslashreplace").decode()

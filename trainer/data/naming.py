"""
What patients, accession numbers and images are called in every file that is written: as the archive calls them, or by pseudonyms.

A pseudonym is a keyed hash: the first 16 hex digits of HMAC-SHA256 with the key, over the kind and the identifier, such as
``patient:0042``. The same key gives the same pseudonyms, so that tables can be joined; without the key they say nothing. The key
belongs to the output folder, and not into what is published of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainer.data.records import ImageRecord
from trainer.errors import DataError

KEY_FILE = "pseudonyms.key"
_KEY_BYTES = 32
_DIGITS = 16
_TELLING = 5
"""Characters from which on an identifier is replaced wherever it stands alone: a shorter one may be a number of ours."""
_ALONE = r"(?<![A-Za-z0-9])(?<!\d\.)(?:{})(?![A-Za-z0-9])(?!\.\d)"
_NAMED = r"(?<=[/\\'\"])(?:{})(?=[/\\'\"])"
"""Between slashes or quotes."""
_PSEUDONYM = re.compile(rf"(?:patient|accession|image)-[0-9a-f]{{{_DIGITS}}}")


class Naming(Protocol):
    """What identifiers are called."""

    @property
    def identity(self) -> str:
        """Different for different names."""
        ...

    def patient(self, identifier: str) -> str:
        """Return what a patient is called."""
        ...

    def accession(self, identifier: str) -> str:
        """Return what the key of a label file is called: an accession number, or an image's own."""
        ...

    def path(self, path: str) -> str:
        """Return what an image is called, by its path relative to the root."""
        ...


@dataclass(frozen=True)
class AsTheArchive:
    """Everything is called what the archive calls it."""

    identity: str = ""

    def patient(self, identifier: str) -> str:
        """Return *identifier*."""
        return identifier

    def accession(self, identifier: str) -> str:
        """Return *identifier*."""
        return identifier

    def path(self, path: str) -> str:
        """Return *path*."""
        return path


@dataclass(frozen=True)
class Pseudonyms:
    """Everything is called by a keyed hash."""

    key: bytes

    @property
    def identity(self) -> str:
        """Tells keys apart without telling the key."""
        return self._of("key", "")

    def patient(self, identifier: str) -> str:
        """Return the pseudonym of a patient."""
        return f"patient-{self._of('patient', identifier)}"

    def accession(self, identifier: str) -> str:
        """Return the pseudonym of the key of a label file."""
        return f"accession-{self._of('accession', identifier)}"

    def path(self, path: str) -> str:
        """Return the pseudonym of an image."""
        return f"image-{self._of('image', path)}"

    def _of(self, kind: str, identifier: str) -> str:
        message = f"{kind}:{identifier}".encode(errors="surrogateescape")
        return hmac.new(self.key, message, hashlib.sha256).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Disguise:
    """
    Texts for other eyes: every identifier of a data set stands there under its pseudonym.

    An identifier is replaced wherever it stands alone, not as a part of a longer word or number; one of less than five
    characters only between slashes or quotes, for in a text `12` may be an epoch. What is below the archive's root is
    replaced whether it is known or not, up to the next blank. Not found is what the data set does not know: a PatientID beside
    the label file's own patient, or a name that a library quotes from a header.
    """

    pseudonyms: Pseudonyms
    root: Path
    """Of the archive."""
    identifiers: Mapping[str, Callable[[str], str]]
    """What each is called by: one of the pseudonyms' methods."""

    @classmethod
    def of(
        cls, pseudonyms: Pseudonyms, root: Path, records: Iterable[ImageRecord], rejected: Iterable[str]
    ) -> Disguise:
        """
        Return the disguise of a data set.

        Args:
            pseudonyms: What identifiers are called.
            root: Of the archive.
            records: Images that are used: path, accession number and patient of each are identifiers.
            rejected: Images and labels that are not.
        """
        identifiers: dict[str, Callable[[str], str]] = dict.fromkeys(rejected, pseudonyms.path)
        records = tuple(records)
        identifiers.update((record.path, pseudonyms.path) for record in records)
        identifiers.update((record.accession, pseudonyms.accession) for record in records)
        identifiers.update((record.patient, pseudonyms.patient) for record in records)
        identifiers.pop("", None)
        return cls(pseudonyms, root, identifiers)

    def text(self, text: str) -> str:
        """Return *text* with pseudonyms in place of identifiers."""
        # First the few that occur: one expression of all would take longer than a trial has time.
        found = sorted((each for each in self.identifiers if each in text), key=len, reverse=True)
        for pattern, names in (
            (_ALONE, [name for name in found if len(name) >= _TELLING]),
            (_NAMED, [name for name in found if len(name) < _TELLING]),
        ):
            if names:
                expression = pattern.format("|".join(map(re.escape, names)))
                text = re.sub(expression, lambda match: self.identifiers[match[0]](match[0]), text)
        return re.sub(rf"({re.escape(str(self.root))}/)([^\s'\",;:)]+)", self._below_root, text)

    def _below_root(self, match: re.Match[str]) -> str:
        name = match[2]
        return match[1] + (name if _PSEUDONYM.fullmatch(name) else self.pseudonyms.path(name))


def choose_naming(folder: Path, *, pseudonyms: bool) -> Naming:
    """Return what identifiers are called: by *pseudonyms* of the key in *folder*, or as they are. Raises DataError."""
    return read_or_make_key(folder) if pseudonyms else AsTheArchive()


def read_or_make_key(folder: Path) -> Pseudonyms:
    """
    Return the pseudonyms of the key in *folder*, which is made, readable by its owner alone, if there is none.

    Raises:
        DataError: it can be neither read nor made.
    """
    path = folder / KEY_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make_key(path)
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: the key of the pseudonyms cannot be read or made: {error}") from error
    if len(key) != _KEY_BYTES:
        raise DataError(f"{path}: {len(key)} bytes, expected a key of {_KEY_BYTES} in hexadecimal digits")
    return Pseudonyms(key)


def _make_key(path: Path) -> None:
    """Put a new key at *path*, whole, unless another process is faster: then its key stays."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)  # of mode 600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(_KEY_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            Path(path).hardlink_to(temporary)
    finally:
        Path(temporary).unlink()


_: tuple[type[Naming], type[Naming]] = (AsTheArchive, Pseudonyms)

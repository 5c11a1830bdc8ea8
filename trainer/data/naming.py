"""
What patients, accession numbers and images are called in every file that is written: as the archive calls them, or by pseudonyms.

A pseudonym is a keyed hash: the first 16 hex digits of HMAC-SHA256 with the key, over the kind and the identifier, such as
``patient:0042``. The same key gives the same pseudonyms, so that tables can be joined; without the key they say nothing. The key
belongs to the output folder, and not into what is published of it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import os
import re
import secrets
import tempfile
import unicodedata
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
_SHORTEST_PART = 3
_ALONE = r"(?<![^\W_])(?:(?<!\d\.)({0})(?!\.\d)|({0})(?=\.\d))(?![^\W_])"
"""Not in a longer word, nor the digits of a fraction; but the number before a point, which may be an identifier read as one."""
_NAMED = r"(?<=[/\\'\"])({0})(?=[/\\'\"])"
"""Between slashes or quotes."""
_CALLED = r"(?<![^\W_])(?P<word>(?:patient|accession)(?:[ _]?(?:id|name|number))?[\s:=#]{{1,3}})({0})(?![^\W_])"
"""After a word that says what it is."""
_PSEUDONYM = rf"(?:patient|accession|image)-[0-9a-f]{{{_DIGITS}}}"
_SUFFIX = r"\.(?:dcm|dicom|ima|png|jpe?g|jp2|ljpeg|pgm|tiff?)(?![^\W_])"


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

    Identifiers are paths, accession numbers and patients, and those parts of paths that occur with one patient only: what
    several share says how an archive is laid out, and not who is in it. One is replaced wherever it stands alone, in
    capitals or not, composed or decomposed, escaped as `repr` does it or not; one of less than five characters only between
    slashes or quotes, or after the word patient or accession: in a text `12` may be an epoch. What is below the archive's
    root is replaced whether it is known or not.

    Not found is what the data set does not know: a PatientID beside the label file's own patient, a name that a library
    quotes from a header; nor an identifier that is written otherwise than the data set does, or is a part of a longer word.
    """

    pseudonyms: Pseudonyms
    roots: tuple[str, ...]
    """The archive's root as it is called, and as it is found behind links."""
    identifiers: Mapping[str, Callable[[], str]]
    """What returns the pseudonym of each, by every form in which it is looked for, in small letters."""

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
        records, rejected = tuple(records), tuple(rejected)
        owners = [(record.path, record.patient) for record in records]
        # Whose the rejected ones are, nobody knows: one for each folder.
        owners += [(path, path.partition("/")[0]) for path in rejected]
        calls: dict[str, Callable[[str], str]] = dict.fromkeys(_telling_parts(owners), pseudonyms.path)
        calls.update(dict.fromkeys(rejected, pseudonyms.path))
        calls.update((record.path, pseudonyms.path) for record in records)
        calls.update((record.accession, pseudonyms.accession) for record in records)
        calls.update((record.patient, pseudonyms.patient) for record in records)
        calls.pop("", None)
        forms = {form: functools.partial(call, name) for name, call in calls.items() for form in _forms(name)}
        roots = {form for each in (root, root.absolute(), root.resolve()) for form in _forms(str(each))} - {"."}
        return cls(pseudonyms, tuple(sorted(roots, key=len, reverse=True)), forms)

    def text(self, text: str) -> str:
        """Return *text* with pseudonyms in place of identifiers."""
        # First the few that occur: one expression of all would take longer than a trial has time.
        folded = text.casefold()
        found = sorted((each for each in self.identifiers if each in folded), key=len, reverse=True)
        text = self._below_roots(text, found)
        short = [name for name in found if len(name) < _TELLING]
        for pattern, names in (
            (_ALONE, [name for name in found if len(name) >= _TELLING]),
            (_NAMED, short),
            (_CALLED, short),
        ):
            if names:
                text = re.sub(
                    pattern.format("|".join(map(re.escape, names))), self._replaced, text, flags=re.IGNORECASE
                )
        return text

    def _replaced(self, match: re.Match[str]) -> str:
        name = next(group for group in reversed(match.groups()) if group is not None)
        return f"{match.groupdict().get('word') or ''}{self._called(name)}"

    def _called(self, name: str) -> str:
        known = self.identifiers.get(name.casefold())
        return self.pseudonyms.path(name) if known is None else known()

    def _below_roots(self, text: str, found: Iterable[str]) -> str:
        """Return *text* with a pseudonym in place of every path below the root: to the quote, the suffix, or the next blank."""
        if not any(root in text.casefold() for root in self.roots):
            return text
        known = "|".join(re.escape(name) for name in found if "/" in name) or r"(?!)"
        root = rf"(?P<root>(?:{'|'.join(map(re.escape, self.roots))})/+)"
        in_quotes = rf"(?P<quote>['\"]){root}(?P<name>(?:\\.|(?!(?P=quote))[^\\\n])+)(?=(?P=quote))"
        # Blanks belong to it where it ends like an image; without a suffix nobody can tell.
        bare = rf"{root}(?P<name>(?:{known})(?![^\W_]|/)|[^\n'\"]*?{_SUFFIX}|[^\s'\",;:)]+)"
        for pattern in (in_quotes, bare):
            text = re.sub(pattern, self._below_root, text, flags=re.IGNORECASE)
        return text

    def _below_root(self, match: re.Match[str]) -> str:
        name = match["name"]
        before = match[0][: len(match[0]) - len(name)]
        own = re.match(rf"{_PSEUDONYM}(?![\w/])", name)  # of a text that has been here before
        return f"{before}{own[0]}{self.text(name[own.end() :])}" if own else f"{before}{self._called(name)}"


def _telling_parts(owners: Iterable[tuple[str, str]]) -> set[str]:
    """Return the parts of paths, with and without suffix, that occur with one owner only and can tell who that is."""
    owner_of: dict[str, str | None] = {}
    for path, owner in owners:
        last = path.rpartition("/")[2]
        for part in {*path.split("/"), last.rpartition(".")[0]}:
            owner_of[part] = owner if owner_of.get(part, owner) == owner else None
    return {
        part
        for part, owner in owner_of.items()
        if owner is not None and len(part) >= _SHORTEST_PART and not (part.isdigit() and len(part) < _TELLING)
    }


def _forms(name: str) -> set[str]:
    """Return *name* in small letters as it may stand in a text: as it is, composed, decomposed, and as `repr` escapes it."""
    if name.isascii() and name.isprintable() and not {"\\", "'"} & set(name):
        return {name.casefold()}
    written = (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))
    return {form.casefold() for each in written for form in (each, repr(each)[1:-1])}


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

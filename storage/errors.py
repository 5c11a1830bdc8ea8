"""What can go wrong with what lasts. A class's docstring is its default message; data are attributes."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

_SHOWN = 100
"""Characters of a name that a message shows."""


class StorageError(Exception):
    """The storage failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message if message is not None else type(self).__doc__)


class DatabaseUrlError(StorageError):
    """The database URL is not one of PostgreSQL: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE."""


class DatabaseUnavailableError(StorageError):
    """The database cannot be reached."""

    def __init__(self, reason: str, place: str | None = None) -> None:
        """Take the driver's *reason* in one line, and the *place* as `storage.database.display` shows it."""
        super().__init__(f"the database{f' {place}' if place else ''} cannot be reached: {reason}")
        self.reason = reason
        self.place = place


class UnknownStudyError(StorageError):
    """There is no study of that name."""

    def __init__(self, name: str, known: Sequence[str]) -> None:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known) or 'none'}"
        super().__init__(f"there is no study {name!r}; {hint}")
        self.name = name
        self.known = tuple(known)


class StudyDeletedError(StorageError):
    """The study was deleted meanwhile."""


class StudyExistsError(StorageError):
    """A study of that name exists."""

    def __init__(self, name: str) -> None:
        super().__init__(f"a study {name!r} exists already")
        self.name = name


class TakenOverError(StorageError):
    """The trial is another attempt's by now."""

    def __init__(self, trial_number: int) -> None:
        super().__init__(f"trial {trial_number} is another attempt's by now")
        self.trial_number = trial_number


class ConfigurationTakenError(StorageError):
    """A trial of the study has this configuration already."""

    def __init__(self, trial_number: int) -> None:
        super().__init__(f"trial {trial_number} has exactly this configuration: nothing is queued")
        self.trial_number = trial_number


class StudyInUseError(StorageError):
    """Workers are at work on the study."""

    def __init__(self, name: str, workers: int) -> None:
        at_work = "a worker is" if workers == 1 else f"{workers} workers are"
        super().__init__(f"{at_work} at work on study {name!r}: stop them first")
        self.name = name
        self.workers = workers


class PrivateServerError(StorageError):
    """The private PostgreSQL server does not work."""


class SchemaVersionError(StorageError):
    """The tables in the database are of another version."""

    def __init__(self, whose: str, found: str, expected: str) -> None:
        super().__init__(
            f"the database holds {whose}'s tables of version {found}; this program needs version {expected}"
        )
        self.whose = whose
        self.found = found
        self.expected = expected


class StudyNameError(StorageError):
    """A study's name must be able to be a folder's name."""

    def __init__(self, name: str) -> None:
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        super().__init__(
            f"{shown!r} cannot be a study's name: letters, digits, '.', '_' and '-', beginning with a letter or a digit,"
            " at most 100, and none of 'artifacts', 'cache' and 'train'"
        )
        self.name = name


class StudyFolderError(StorageError):
    """The folder of a new study holds something already."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} holds another study's files: move them away, or choose another name or output folder")
        self.path = path


class FolderVanishedError(StorageError):
    """A published fold is not on disk any more."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} was published and is not there any more: was the output folder moved or emptied?")
        self.path = path


class LimitError(StorageError):
    """A limit of a study cannot be extended like this."""

    def __init__(self, study: str, limit: str, problem: str) -> None:
        super().__init__(f"{limit} of study {study!r}: {problem}")
        self.study = study
        self.limit = limit


class ArtifactPlaceError(StorageError):
    """There can be no artifact store at that place."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"artifacts at {place!r}: {problem}")
        self.place = place


class ArtifactStoreError(StorageError):
    """The artifact store does not do what it is asked for."""

    def __init__(self, place: str, reason: str) -> None:
        """Take the *reason* in one line."""
        super().__init__(f"the artifact store {place}: {reason}")
        self.place = place
        self.reason = reason

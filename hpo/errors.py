"""What can go wrong in a search beside training and storing."""

from __future__ import annotations

from pathlib import Path


class SearchError(Exception):
    """Root of everything that a search raises on purpose."""


class StudyFileError(SearchError):
    """A study file that is not what it must be; the message names the file and the key."""


class NotTheStudysDataError(SearchError):
    """The data here are not the data that the study was created on."""

    def __init__(self, study: str, expected: str, found: str) -> None:
        super().__init__(
            f"the data differ from those of study {study!r}: its data hash is {expected[:12]}, here it is {found[:12]}"
        )


class NotTheStudysEmbeddingsError(SearchError):
    """The vectors of another backbone here are not those that the study was created on."""

    def __init__(self, study: str, folder: Path) -> None:
        super().__init__(f"{folder}: the vectors there differ from those that study {study!r} was created on")


class NoFinishedTrialError(SearchError):
    """No trial of the study has finished all its folds yet."""

    def __init__(self, study: str) -> None:
        super().__init__(f"study {study!r} has no trial yet that finished all its folds")


class TrialPrunedError(SearchError):
    """The trial is given up, since it cannot be expected to become the best."""


class NoDataPlaceError(SearchError):
    """Neither the command nor the study says where the data are."""


class QueuedValueError(SearchError):
    """Somebody asked for a configuration that the search space does not have."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        self.field = field
        self.value = value
        super().__init__(" ".join(f"{field}={value}: {problem}".split()))  # one line, whatever a script wrote

from __future__ import annotations

from storage.errors import (
    DatabaseUnavailableError,
    PrivateServerError,
    StorageError,
    StudyExistsError,
    TakenOverError,
    UnknownStudyError,
)


def test_docstring_is_the_default_message() -> None:
    """An error raised without words says what its class says."""
    assert str(PrivateServerError()) == "The private PostgreSQL server does not work."


def test_unknown_study_names_the_nearest() -> None:
    """A misspelt study is answered with the name that was probably meant."""
    error = UnknownStudyError("denisty", ["density", "other"])
    assert "did you mean 'density'?" in str(error)
    assert error.name == "denisty"
    assert error.known == ("density", "other")


def test_unknown_study_lists_what_there_is() -> None:
    """Where nothing is near, the known names are listed, and their absence is said."""
    assert "there are: abc, xyz" in str(UnknownStudyError("density", ["abc", "xyz"]))
    assert "there are: none" in str(UnknownStudyError("density", []))


def test_data_are_attributes() -> None:
    """What an error is about can be read from it without parsing its message."""
    assert TakenOverError(7).trial_number == 7
    assert StudyExistsError("density").name == "density"
    unavailable = DatabaseUnavailableError("Connection refused", "postgresql://u@h/d")
    assert (unavailable.reason, unavailable.place) == ("Connection refused", "postgresql://u@h/d")
    assert isinstance(unavailable, StorageError)

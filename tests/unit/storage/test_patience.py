"""Patience: which faults are the database's, how long they are waited for, and that they are remembered."""

from __future__ import annotations

import threading

import psycopg2
import pytest
import sqlalchemy as sa
from optuna.exceptions import StorageInternalError

from storage.errors import DatabaseUnavailableError
from storage.patience import Patience, first_line

FAULTS = [
    sa.exc.OperationalError("select 1", {}, Exception("server closed the connection unexpectedly")),
    sa.exc.InterfaceError("select 1", {}, Exception("connection already closed")),
    psycopg2.OperationalError("server closed the connection unexpectedly"),  # from the pool, unwrapped
    sa.exc.DatabaseError("select 1", {}, Exception("error with status PGRES_TUPLES_OK"), connection_invalidated=True),
    StorageInternalError("An exception is raised during the commit"),
]


@pytest.mark.parametrize("fault", FAULTS)
def test_call_is_made_again_after_a_fault_of_the_database(fault: Exception) -> None:
    """And the disturbance is remembered, by which a worker does not judge others."""
    faults = [fault]
    patience = Patience(5.0)

    def call() -> str:
        if faults:
            raise faults.pop()
        return "answer"

    assert patience.undisturbed_for(1000)
    assert patience.call(call) == "answer"
    assert not patience.undisturbed_for(1000)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_that_lasts_becomes_one_error_of_ours(fault: Exception) -> None:
    """When the patience is over, or at once when somebody asked to stop."""

    def call() -> None:
        raise fault

    stop = threading.Event()
    stop.set()
    for patience in (Patience(0.0), Patience(1000.0, stop)):
        with pytest.raises(DatabaseUnavailableError):
            patience.call(call)


def test_what_is_said_is_the_drivers_own_word() -> None:
    """Optuna puts a guess of its own in front of it."""
    wrapped = StorageInternalError("An exception is raised during the commit. Max length?")
    wrapped.__cause__ = FAULTS[0]
    assert first_line(wrapped) == "server closed the connection unexpectedly"


def test_what_was_asked_wrongly_is_asked_once() -> None:
    """An error of ours is not waited for."""
    asked = []

    def call() -> None:
        asked.append(1)
        raise sa.exc.IntegrityError("insert", {}, Exception("duplicate key"))

    with pytest.raises(sa.exc.IntegrityError):
        Patience(5.0).call(call)
    assert asked == [1]

"""The outbox: nobody waits for a call, none is forgotten, and what one raises comes out."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from storage.errors import DatabaseUnavailableError, TakenOverError
from storage.outbox import Outbox


def test_calls_are_made_in_order_while_the_work_goes_on() -> None:
    """A call that waits for the database holds up neither the caller nor, once it is through, the calls behind it."""
    outbox, back, made = Outbox(), threading.Event(), []
    outbox.put(back.wait)  # type: ignore[arg-type]
    for number in range(100):
        outbox.put(lambda number=number: made.append(number))  # type: ignore[misc]
    assert not outbox.flush(0.05)
    assert made == []
    back.set()
    assert outbox.flush()
    assert made == list(range(100))


@pytest.mark.parametrize("error", [TakenOverError(7), DatabaseUnavailableError("away"), KeyError("a defect of ours")])
def test_error_of_a_call_reaches_the_work(error: Exception) -> None:
    """At its next use, whichever it is, and nobody waits for ever; what was to be told afterwards is not told."""
    outbox, made = Outbox(), []

    def fail() -> None:
        raise error

    outbox.put(fail)
    with suppress(type(error)):  # it may have failed already
        outbox.put(lambda: made.append(0))
    with pytest.raises(type(error)):
        outbox.flush()
    with pytest.raises(type(error)):
        outbox.put(lambda: made.append(1))
    assert made == []


def test_empty_outbox_is_flushed_at_once() -> None:
    """Before anything was put into it, and after everything was made."""
    outbox = Outbox()
    assert outbox.flush(0)
    outbox.put(lambda: None)
    assert outbox.flush()
    assert outbox.flush(0)

"""Tables of trials: what a machine reads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from optuna.trial import TrialState, create_trial

from hpo.tables import trials_frame


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def test_times_are_utc_wherever_they_are_read(berlin: None) -> None:
    """Trials hold naive times in UTC; a reader in another zone sees the same moment."""
    trial = create_trial(state=TrialState.COMPLETE, value=0.5)
    trial.datetime_start = datetime(2026, 7, 1, 12, 0)  # noqa: DTZ001 - as Optuna gives it
    trial.datetime_complete = None
    row = trials_frame([trial]).iloc[0]
    assert row["started_at"] == "2026-07-01T12:00:00+00:00"
    assert row["finished_at"] is None


def test_study_without_trials_is_a_table_without_rows() -> None:
    """Its columns are there, so that what reads the file need not know."""
    assert list(trials_frame([]).columns) == ["number", "state", "value", "started_at", "finished_at"]

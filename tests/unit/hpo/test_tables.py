"""Tables of trials and studies: what a machine reads, and what people see on a narrow terminal."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from rich.console import Console

from hpo.live import at_changes, live_status
from hpo.status import BestStatus, Status
from hpo.tables import duration, ranking_table, status_line, status_view, trials_frame
from storage.ledger import Budget, Spending, WorkerState
from storage.summaries import Effort

NOW = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
SPACE = {
    "backbone_lr": FloatDistribution(1e-6, 1.0, log=True),
    "warmup_epochs": IntDistribution(0, 5),
    "class_weights": CategoricalDistribution(["none", "auto"]),
    "label_smoothing": FloatDistribution(0.0, 1.0),
}


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Berlin")
        time.tzset()
        yield
    time.tzset()


def tried(number: int, state: TrialState = TrialState.COMPLETE, **params: object) -> FrozenTrial:
    """Return a trial with fold scores; only a complete one has a value."""
    complete = state == TrialState.COMPLETE
    trial = create_trial(
        state=state,
        value=0.5 + number / 1000 if complete else None,
        params=params,
        distributions={name: SPACE[name] for name in params},
        intermediate_values=dict.fromkeys(range(3 if complete else 1), 0.123456),
        user_attrs={} if complete else {"reason": "worse than the others\nafter one fold"},
    )
    trial.number = number
    return trial


def test_times_are_utc_wherever_they_are_read(berlin: None) -> None:
    """Optuna gives naive times of the reader's own zone; the table says the same moment in UTC."""
    trial = create_trial(state=TrialState.COMPLETE, value=0.5)
    trial.number = 0
    trial.datetime_start = datetime(2026, 7, 1, 14, 0)  # noqa: DTZ001 - as Optuna gives it
    trial.datetime_complete = None
    row = trials_frame([trial], {0: Effort(1, 0.0)}).iloc[0]
    assert row["started_at"] == "2026-07-01T12:00:00+00:00"
    assert row["finished_at"] is None


def test_study_without_trials_is_a_table_without_rows() -> None:
    """Its columns are there, so that what reads the file need not know."""
    columns = ["number", "state", "value", "started_at", "finished_at", "attempts", "gpu_seconds", "reason"]
    assert list(trials_frame([], {}).columns) == columns


def test_csv_says_what_every_trial_took_and_had() -> None:
    """Whole numbers stay whole beside an empty cell; folds come in order; what does not exist is empty, not 0."""
    trials = [
        tried(0, TrialState.PRUNED, warmup_epochs=3),
        tried(1, warmup_epochs=2, label_smoothing=0.25),
        tried(2, TrialState.WAITING),
    ]
    efforts = {0: Effort(2, 12.5), 1: Effort(1, 0.0), 2: Effort(0, None)}
    lines = trials_frame(trials, efforts).drop(columns=["started_at", "finished_at"]).to_csv(index=False)
    assert lines == (
        "number,state,value,attempts,gpu_seconds,reason,fold_0,fold_1,fold_2,label_smoothing,warmup_epochs\n"
        '0,pruned,,2,12.5,"worse than the others\nafter one fold",0.123456,,,,3\n'
        "1,complete,0.501,1,0.0,,0.123456,0.123456,0.123456,0.25,2\n"
        '2,waiting,,0,,"worse than the others\nafter one fold",0.123456,,,,\n'
    )


def drawn(table: object, width: int) -> str:
    """Return what a terminal of that width shows."""
    console = Console(width=width, file=io.StringIO(), markup=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_no_number_of_the_ranking_is_cut(width: int) -> None:
    """Where the columns do not fit beside each other, the parameters share one."""
    params = {"backbone_lr": 0.000123456, "warmup_epochs": 4, "class_weights": "none", "label_smoothing": 0.0234}
    trials = [tried(0, **params), tried(1, TrialState.PRUNED, **params), tried(2, **params)]
    shown = drawn(ranking_table(trials, [trials[2], trials[0]], "density", width), width)
    lines = shown.splitlines()
    assert max(map(len, lines)) <= width
    assert shown.count("0.1235") == 3 + 1 + 3
    for cell in ("0.5020", "0.000123", "none", "0.0234"):
        assert cell in shown
    first, last = (next(line for line in lines if cell in line) for cell in ("0.5020", "pruned"))
    assert lines.index(first) < lines.index(last)
    assert ("parameters" in shown) == (width < 200)


def looked(*workers: str, state: str = "running", spent: int = 1, stop_reason: str | None = None) -> Status:
    """Return a study that those work on."""
    limits = Budget(
        asked=3, spent=spent, left=3 - spent, hours=Spending(asked=2, spent=0.25, left=1.75), gpu_hours=None,
        deadline=NOW + timedelta(days=3), ended=None, stop_reason=stop_reason,
    )  # fmt: skip
    return Status(
        study="density",
        state=state,
        direction="maximize",
        trials={"running": len(workers), "waiting": 0, "complete": spent, "pruned": 0, "fail": 0},
        budget=limits,
        best=BestStatus(number=0, value=0.51234, params={"arch": "[b]x[/b]", "lr": 0.000123456}),
        seconds_left=4000.0,
        workers=[
            WorkerState(
                name=name, device="cpu", trial=1, fold=0, epoch=None, images_per_second=None, last_heartbeat=NOW
            )
            for name in workers
        ],
    )


def test_status_on_a_narrow_terminal() -> None:
    """All there is to know is there, and what somebody named like markup is shown as it is."""
    shown = drawn(status_view(looked("a-host:17"), NOW + timedelta(seconds=3)), 80)
    assert "density: running, about 67 min left\n" in shown
    assert [line.split() for line in shown.splitlines()[1:5]] == [
        ["trials", "1", "of", "3", "finished", "(1", "running,", "1", "complete)"],
        ["hours", "0.25", "of", "2"],
        ["deadline", "2026-07-04", "12:00", "UTC"],
        ["best", "0.5123", "in", "trial", "0:", "arch=[b]x[/b],", "lr=0.000123"],
    ]
    assert shown.splitlines()[-2].split() == ["a-host:17", "cpu", "1", "0", "-", "-", "3", "s", "ago"]


def test_status_in_a_line() -> None:
    """Limits, and why it was stopped."""
    expected = (
        "density: stopped, 1 of 3 trials finished, 0.25 of 2 hours, until 2026-07-04 12:00 UTC, stopped: asked, 0 at work,"
        " best 0.5123 (trial 0)"
    )
    assert status_line(looked(state="stopped", stop_reason="asked")) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (7300, "2 h"), (400_000, "5 days")]
)
def test_duration(seconds: float, expected: str) -> None:
    """In the largest unit of which it is two."""
    assert duration(seconds) == expected


def test_worker_between_two_trials_is_no_news() -> None:
    """It holds none for a moment; one that is missing at the next look too has left. The end is told at once."""
    told: list[tuple[int, str]] = []
    look = at_changes(
        lambda status: told.append((len(status.workers), status.state)),
        lambda status: (len(status.workers), status.state, status.budget.spent),
    )
    for status in (
        looked("a", "b"),
        looked("a", "b"),
        looked("a"),
        looked("a", "b"),
        looked("a"),
        looked("a"),
        looked(state="finished", spent=3),
    ):
        look(status)
    assert told == [(2, "running"), (1, "running"), (0, "finished")]


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        """Return that it is one."""
        return True


def test_log_lines_stay_out_of_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """They go where the table is drawn, above it, and afterwards where they went before; those of a file stay in the file."""
    before, file = Terminal(), io.StringIO()
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.StreamHandler(before), logging.StreamHandler(file)])
    console = Console(width=80, file=io.StringIO(), force_terminal=True)
    with live_status(console) as show:
        show(looked("a-host:17"))
        logging.getLogger("hpo").warning("database away")
    logging.getLogger("hpo").warning("afterwards")
    assert before.getvalue() == "afterwards\n"
    assert file.getvalue() == "database away\nafterwards\n"
    assert isinstance(console.file, io.StringIO)
    drawn = console.file.getvalue()
    assert "database away" in drawn
    assert "a-host:17" in drawn[drawn.index("database away") :]

"""Claims on a real PostgreSQL: the budget is exact, tokens fence, what was lost is taken up."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from storage import exhibits, ledger, steering
from storage.claims import Claim, Claims, Ending, Idle, Progress
from storage.errors import ConfigurationTakenError, TakenOverError
from storage.heartbeat import Heartbeat
from storage.record import File
from storage.study_storage import StudyStorage, open_storage
from tests.trivial import make_study as make_bare_study

SPACE = {"lr": FloatDistribution(1e-5, 1.0, log=True), "arch": CategoricalDistribution(["a", "b"])}
EPOCH = Progress(fold=0, epoch=0, score=0.5, seconds=1.0, images_per_second=100.0)
MakeStudy = Callable[..., Claims]


@pytest.fixture
def storage(database_url: sa.URL) -> StudyStorage:
    """A study storage on a fresh database."""
    return open_storage(database_url, application_name="test")


@pytest.fixture
def make_study(storage: StudyStorage) -> MakeStudy:
    """A function from a budget to the claims of a new study."""

    def make(budget: int | None, **limits: Any) -> Claims:
        study_id = make_bare_study(storage, ledger.Limits(budget, **limits))
        return Claims(storage.engine, study_id, "worker", "cpu", "cpu", grace_s=30)

    return make


def number_of(storage: StudyStorage, trial_id: int) -> int | None:
    """Return the number of a trial's row, or None if there is no such row any more."""
    with storage.engine.connect() as connection:
        number: int | None = connection.scalar(
            sa.text("select number from trials where trial_id = :id"), {"id": trial_id}
        )
    return number


def claimed(claims: Claims) -> Claim:
    """Return a claim, which there must be."""
    claim = claims.claim()
    assert isinstance(claim, Claim)
    return claim


def states(storage: StudyStorage, claims: Claims) -> list[TrialState]:
    """Return the states of all trials as Optuna sees them."""
    return [trial.state for trial in storage.optuna.get_all_trials(claims.study_id)]


def make_stale(claims: Claims, claim: Claim) -> None:
    """Let a claim look as if its worker had died long ago, on a server that has been up for longer."""
    with claims.engine.begin() as connection:
        connection.execute(
            sa.text("update mammography.claim set heartbeat_at = now() - interval '1 hour' where trial_id = :trial"),
            {"trial": claim.trial_id},
        )


def impatient(claims: Claims) -> Claims:
    """Return the claims as a worker sees them for whom a silent worker is lost at once."""
    return Claims(claims.engine, claims.study_id, "impatient", "cpu", claims.device_kind, grace_s=0.0)


def test_budget_is_exact_with_many_claiming_at_once(storage: StudyStorage, make_study: MakeStudy) -> None:
    """Eight workers that claim and finish as fast as they can end with exactly the budget, numbered without gaps."""
    claims = make_study(25)

    def work(_: int) -> int:
        finished = 0
        while True:
            claim = claims.claim()
            if claim is Idle.SPENT:
                return finished
            if isinstance(claim, Claim):
                claims.finish(claim, Ending.COMPLETE, value=0.5, attributes={})
                finished += 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 25
    assert states(storage, claims) == [TrialState.COMPLETE] * 25
    assert [trial.number for trial in storage.optuna.get_all_trials(claims.study_id)] == list(range(25))


def test_running_trials_count_and_idle_workers_wait(make_study: MakeStudy) -> None:
    """While the last trial runs nobody gets another one; when it is finished the budget is spent."""
    claims = make_study(1)
    claim = claimed(claims)
    assert claims.claim() is Idle.WAIT
    claims.finish(claim, Ending.COMPLETE, value=1.0, attributes={})
    assert claims.claim() is Idle.SPENT


def test_failure_of_the_installation_does_not_spend_the_budget(make_study: MakeStudy) -> None:
    """A trial that failed by our own fault leaves its place to another one, under another number."""
    claims = make_study(1)
    claims.finish(claimed(claims), Ending.FAIL, attributes={}, spends_budget=False)
    assert claimed(claims).number == 1


def test_released_trial_is_taken_up_under_its_number(make_study: MakeStudy) -> None:
    """A trial that was given back is the next one to be claimed, as its second attempt."""
    claims = make_study(5)
    first = claimed(claims)
    claims.release(first)
    second = claimed(claims)
    assert (second.number, second.attempt) == (first.number, 1)
    assert second.token != first.token


def test_lost_worker_is_replaced_and_its_late_writes_are_refused(make_study: MakeStudy) -> None:
    """Whatever a worker tries with a token that is gone is refused, and nothing of it is stored."""
    claims = make_study(5)
    late = claimed(claims)
    make_stale(claims, late)
    # Nothing is lost before a grace period has passed since the server started, which in a test is just now.
    successor = impatient(claims).claim()
    assert isinstance(successor, Claim)
    assert successor.number == late.number

    assert not claims.beat(late)
    for write in (
        lambda: claims.advance(late, EPOCH),
        lambda: claims.resume(late, EPOCH),
        lambda: claims.publish_fold(late, 0, 0.9, ()),
        lambda: claims.settle_parameters(late, {"lr": 0.1}, SPACE),
        lambda: claims.settle_resolution(late, dict),
        lambda: claims.finish(late, Ending.COMPLETE, value=0.9, attributes={}),
        lambda: claims.release(late),
    ):
        with pytest.raises(TakenOverError):
            write()
    assert ledger.published_folds(claims.engine, late.trial_id) == {}
    assert [attempt.ending for attempt in ledger.attempts(claims.engine, late.trial_id)] == ["lost", None]


def test_nothing_is_lost_before_the_server_has_been_up_for_a_grace_period(make_study: MakeStudy) -> None:
    """After an outage every heartbeat is old; with a grace period longer than the server's life nobody is lost."""
    claims = make_study(1)
    claim = claimed(claims)
    make_stale(claims, claim)
    patient = Claims(claims.engine, claims.study_id, "patient", "cpu", "cpu", grace_s=7 * 24 * 3600.0)
    assert patient.claim() is Idle.WAIT
    assert claims.beat(claim)


def test_three_barren_attempts_in_a_row_fail_the_trial(storage: StudyStorage, make_study: MakeStudy) -> None:
    """A trial whose attempts all die without an epoch fails and spends the budget; one epoch starts the count again."""
    claims = make_study(1)
    for attempt in range(5):
        claim = claimed(impatient(claims))
        assert (claim.number, claim.attempt) == (0, attempt)
        if attempt == 1:
            claims.advance(claim, EPOCH)
        make_stale(claims, claim)
    assert impatient(claims).claim() is Idle.SPENT
    assert states(storage, claims) == [TrialState.FAIL]


def test_trial_begun_on_one_kind_of_device_is_not_continued_on_another(make_study: MakeStudy) -> None:
    """A GPU's half-finished trial is not taken up by a worker on the CPU, which gets a new one."""
    claims = make_study(5)
    gpu = Claims(claims.engine, claims.study_id, "gpu", "cuda:0", "NVIDIA H100", grace_s=30)
    begun = claimed(gpu)
    gpu.settle_resolution(begun, lambda: {"threads": 4})
    gpu.release(begun)
    assert claimed(claims).number == 1
    assert claimed(gpu).number == 0


def test_lost_attempt_ended_when_it_was_last_heard_of(make_study: MakeStudy) -> None:
    """Not when somebody looked: a worker that died on Friday did not hold its GPU until Monday."""
    claims = make_study(1)
    lost = claimed(claims)
    with claims.engine.begin() as connection:
        connection.execute(
            sa.text("update mammography.attempt set started_at = started_at - interval '2 hours'"),
        )
    make_stale(claims, lost)
    claimed(impatient(claims))
    attempt = ledger.attempts(claims.engine, lost.trial_id)[0]
    assert attempt.end is not None
    assert (attempt.end - attempt.start).total_seconds() == pytest.approx(3600, abs=60)


def test_study_is_registered_once(make_study: MakeStudy) -> None:
    """Of two processes that create the same study at once, the second learns it and changes nothing."""
    claims = make_study(3)
    with claims.engine.begin() as connection:
        assert not ledger.register(
            connection,
            study_id=claims.study_id,
            resolved={},
            data_hash="other",
            folds_hash="f",
            folds_csv="",
            limits=ledger.Limits(99),
        )
    found = ledger.registration(claims.engine, "s")
    assert found is not None
    assert found.data_hash == "d"
    assert ledger.budget(claims.engine, claims.study_id).asked == 3


def test_resolution_is_settled_by_the_first_attempt(make_study: MakeStudy) -> None:
    """A later attempt on a machine with other threads gets the threads of the first, and has nothing to find out."""
    claims = make_study(5)
    first = claimed(claims)
    assert claims.settle_resolution(first, lambda: {"threads": 2}) == {"threads": 2}
    claims.release(first)
    assert claims.settle_resolution(claimed(claims), unasked) == {"threads": 2}


def unasked() -> dict[str, int]:
    """What would be settled, where it is settled already."""
    pytest.fail("what is settled was settled again")


def test_parameters_are_stored_all_at_once_and_never_twice(storage: StudyStorage, make_study: MakeStudy) -> None:
    """Optuna reads the parameters back; the same configuration is refused to another trial unless it is wanted again."""
    claims = make_study(5)
    first, second, third = (claimed(claims) for _ in range(3))
    params = {"lr": 0.001, "arch": "b"}
    assert claims.settle_parameters(first, params, SPACE)
    assert storage.optuna.get_trial(first.trial_id).params == params
    assert not claims.settle_parameters(second, params, SPACE)
    assert storage.optuna.get_trial(second.trial_id).params == {}
    assert claims.settle_parameters(second, {**params, "lr": 0.002}, SPACE)
    assert claims.settle_parameters(third, params, SPACE, repetition=True)


def test_same_configuration_proposed_at_once_is_stored_once(make_study: MakeStudy) -> None:
    """Eight workers that settle the same parameters at the same moment: one may have them."""
    claims = make_study(8)
    mine = [claimed(claims) for _ in range(8)]
    together = threading.Barrier(8)

    def settle(claim: Claim) -> bool:
        together.wait()
        return claims.settle_parameters(claim, {"lr": 0.1, "arch": "a"}, SPACE)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(settle, mine)) == 1


def test_calls_repeated_after_a_lost_answer_change_nothing(storage: StudyStorage, make_study: MakeStudy) -> None:
    """Progress, publication and telling may be repeated: they are found done."""
    claims = make_study(1)
    claim = claimed(claims)
    files = (File(name="fold_0/x", bytes=1, sha256="0"),)
    for _ in range(2):
        claims.advance(claim, EPOCH)
        claims.publish_fold(claim, 0, 0.25, files)
    for _ in range(2):
        claims.finish(claim, Ending.COMPLETE, value=0.25, attributes={"note": "n"})
    trial = storage.optuna.get_trial(claim.trial_id)
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, 0.25, {0: 0.25})
    assert trial.user_attrs == {"note": "n"}
    assert ledger.attempts(claims.engine, claim.trial_id)[0].epochs == {0: [0]}
    assert ledger.published_folds(claims.engine, claim.trial_id)[0].files == files


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_complete_trial_needs_a_finite_value(make_study: MakeStudy, value: float | None) -> None:
    """A number that does not exist is never optimised."""
    claims = make_study(1)
    with pytest.raises(ValueError, match="no finite value"):
        claims.finish(claimed(claims), Ending.COMPLETE, value=value, attributes={})


def test_queued_trial_is_claimed_before_a_new_one(storage: StudyStorage, make_study: MakeStudy) -> None:
    """What an Optuna script enqueued is taken up, under its own number, and keeps its wish."""
    claims = make_study(5)
    study = optuna.load_study(study_name="s", storage=storage.optuna)
    study.enqueue_trial({"lr": 0.5})
    claim = claimed(claims)
    trial = storage.optuna.get_trial(claim.trial_id)
    assert (trial.state, trial.system_attrs["fixed_params"]) == (TrialState.RUNNING, {"lr": 0.5})


def test_heartbeat_beats_and_notices_the_loss(make_study: MakeStudy) -> None:
    """While the heartbeat runs a claim stays fresh; when another token stands there its event is set."""
    claims = make_study(5)
    claim = claimed(claims)
    make_stale(claims, claim)
    with Heartbeat(claims, claim, interval_s=0.05) as heartbeat:
        assert not heartbeat.lost.wait(0.5)
        age = sa.text("select extract(epoch from now() - heartbeat_at) from mammography.claim")
        with claims.engine.connect() as connection:
            assert connection.execute(age).scalar_one() < 1.0
        assert isinstance(impatient(claims).claim(), Claim)
        assert heartbeat.lost.wait(5.0)


def test_deleting_a_study_with_optuna_takes_our_rows_along(storage: StudyStorage, make_study: MakeStudy) -> None:
    """An Optuna script may delete a study of ours."""
    claims = make_study(1)
    claim = claimed(claims)
    claims.publish_fold(claim, 0, 0.5, ())
    optuna.delete_study(study_name="s", storage=storage.optuna)
    with claims.engine.connect() as connection:
        for table in ("study", "claim", "attempt", "fold"):
            assert connection.execute(sa.text(f"select count(*) from mammography.{table}")).scalar_one() == 0  # noqa: S608


def age(claims: Claims, claim: Claim, *, hours: float) -> None:
    """Let the current attempt at a trial look as if it had begun earlier."""
    with claims.engine.begin() as connection:
        connection.execute(
            sa.text(
                "update mammography.attempt set started_at = started_at - make_interval(secs => :s) where token = :t"
            ),
            {"s": hours * 3600, "t": claim.token},
        )


def test_budget_of_hours_counts_the_time_in_which_anybody_worked(make_study: MakeStudy) -> None:
    """Two workers at once spend an hour in an hour, a pause spends nothing, and what has begun is finished."""
    claims = make_study(None, hours=3.0)
    first, second = claimed(claims), claimed(claims)
    age(claims, first, hours=2.0)
    age(claims, second, hours=1.0)
    claims.finish(first, Ending.COMPLETE, value=0.1, attributes={})
    third = claimed(claims)
    budget = ledger.budget(claims.engine, claims.study_id)
    assert budget.hours is not None
    assert budget.hours.spent == pytest.approx(2.0, abs=0.01)
    assert (budget.asked, budget.left, budget.ended) == (None, None, None)
    age(claims, third, hours=3.5)
    assert claims.claim() is Idle.WAIT
    claims.release(second)
    assert claimed(claims).number == second.number
    claims.finish(third, Ending.COMPLETE, value=0.2, attributes={})
    assert claims.claim() is Idle.WAIT


def test_budget_of_gpu_hours_counts_each_worker_by_its_share(make_study: MakeStudy) -> None:
    """Half a GPU for two hours is one GPU-hour; the processor costs none."""
    claims = make_study(None, gpu_hours=1.5)
    half = replace(claims, device="cuda:0", gpus=0.5)
    for each in (claims, half):
        claim = claimed(each)
        age(each, claim, hours=2.0)
        each.finish(claim, Ending.PRUNED, attributes={})
    budget = ledger.budget(claims.engine, claims.study_id)
    assert budget.gpu_hours is not None
    assert budget.gpu_hours.spent == pytest.approx(1.0, abs=0.01)
    claim = claimed(half)
    age(half, claim, hours=1.1)
    half.finish(claim, Ending.COMPLETE, value=0.1, attributes={})
    assert half.claim() is Idle.SPENT


def test_nothing_begins_after_the_deadline(make_study: MakeStudy) -> None:
    """A deadline in the past ends the study, one in the future does not."""
    late = make_study(5, deadline=datetime.now(UTC) - timedelta(seconds=1))
    assert late.claim() is Idle.SPENT
    steering.extend(late.engine, late.study_id, deadline=datetime.now(UTC) + timedelta(hours=1))
    claimed(late)


def test_used_up_space_ends_the_study(make_study: MakeStudy) -> None:
    """Of two configurations two trials can be made; a failure that was not theirs gives one back."""
    claims = make_study(9, configurations=2)
    space = {"arch": CategoricalDistribution(["a", "b"])}
    for arch in ("a", "b"):
        claim = claimed(claims)
        assert claims.settle_parameters(claim, {"arch": arch}, space)
        if arch == "b":
            assert claims.claim() is Idle.WAIT
        claims.finish(claim, Ending.FAIL, attributes={}, spends_budget=arch == "a")
    again = claimed(claims)
    assert claims.settle_parameters(again, {"arch": "b"}, space)
    claims.finish(again, Ending.COMPLETE, value=0.5, attributes={})
    assert claims.claim() is Idle.EXHAUSTED
    assert ledger.budget(claims.engine, claims.study_id).ended == "exhausted"


def test_study_is_stopped_and_extended_while_it_runs(make_study: MakeStudy) -> None:
    """After a stop what has begun is finished and nothing more begins; an extension takes the stop back."""
    claims = make_study(2)
    first = claimed(claims)
    steering.stop(claims.engine, claims.study_id, "asked")
    steering.stop(claims.engine, claims.study_id, "plateau")
    assert claims.claim() is Idle.WAIT
    claims.release(first)
    first = claimed(claims)
    claims.finish(first, Ending.COMPLETE, value=0.5, attributes={})
    assert claims.claim() is Idle.STOPPED
    assert ledger.budget(claims.engine, claims.study_id).stop_reason == "asked"
    steering.extend(claims.engine, claims.study_id, trials=1)
    for _ in range(2):
        claims.finish(claimed(claims), Ending.COMPLETE, value=0.5, attributes={})
    assert claims.claim() is Idle.SPENT
    assert ledger.budget(claims.engine, claims.study_id).asked == 3


def test_deleted_study_has_nothing_to_claim(storage: StudyStorage, make_study: MakeStudy) -> None:
    """A worker whose study is gone learns it when it asks for the next trial."""
    claims = make_study(2)
    optuna.delete_study(study_name="s", storage=storage.optuna)
    assert claims.claim() is Idle.DELETED


def test_what_dead_scripts_left_is_taken_in(storage: StudyStorage, make_study: MakeStudy) -> None:
    """
    A trial that an Optuna script began and never told, with half a configuration or none, with a heartbeat of Optuna's or
    without, is taken up under its number once nothing was heard of it for a grace period; a fresh one is left alone.
    """
    claims = make_study(4)
    study = optuna.load_study(study_name="s", storage=storage.optuna)
    bare, half = study.ask(), study.ask()
    half.suggest_float("lr", 1e-5, 1.0, log=True)
    half.report(0.5, step=0)
    assert claimed(claims).number == 2
    with claims.engine.begin() as connection:
        connection.execute(
            sa.text("update trials set datetime_start = datetime_start - interval '1 hour' where number < 2")
        )
        connection.execute(
            sa.text(
                "insert into trial_heartbeats (trial_id, heartbeat) values (:id, timezone('utc', clock_timestamp()))"
            ),
            {"id": bare._trial_id},
        )
    others = replace(claims, worker="other", grace_s=0.5)  # the server of a test has been up for a few seconds
    assert claimed(others).number == half.number
    with claims.engine.begin() as connection:
        connection.execute(sa.text("update trial_heartbeats set heartbeat = heartbeat - interval '1 hour'"))
    assert claimed(others).number == bare.number
    fresh = open_storage(storage.engine.url, application_name="another").optuna
    trials = {trial.number: trial for trial in fresh.get_all_trials(claims.study_id)}
    assert (trials[half.number].params, trials[half.number].intermediate_values) == ({}, {})
    assert number_of(storage, half._trial_id) is None
    with pytest.raises((KeyError, ValueError)):  # it was only slow, and learns that it lost the trial
        half.report(0.9, step=1)
    assert sorted(trials) == [0, 1, 2]


def test_trial_that_a_script_told_is_not_written_to(storage: StudyStorage, make_study: MakeStudy) -> None:
    """An Optuna script may end a trial of ours; its worker learns it at its next write."""
    claims = make_study(1)
    claim = claimed(claims)
    optuna.load_study(study_name="s", storage=storage.optuna).tell(claim.number, state=TrialState.FAIL)
    with pytest.raises(TakenOverError):
        claims.advance(claim, EPOCH)
    assert claims.claim() is Idle.SPENT


def test_epoch_that_was_saved_and_not_told_is_its_trainers(make_study: MakeStudy) -> None:
    """The attempt that continues tells it for the one that died, once, and the trial has advanced."""
    claims = make_study(1)
    died = claimed(claims)
    make_stale(claims, died)
    second = claimed(impatient(claims))
    for _ in range(2):
        claims.resume(second, EPOCH)
    claims.advance(second, replace(EPOCH, epoch=1, score=None))
    assert [attempt.epochs for attempt in ledger.attempts(claims.engine, died.trial_id)] == [{0: [0]}, {0: [1]}]
    (course,) = ledger.courses(claims.engine, claims.study_id)
    assert (course.finished, course.epochs) == (False, {0: (0.5, None)})
    assert ledger.courses(claims.engine, claims.study_id, first=1) == []


def test_attempts_that_give_up_count_like_dead_ones(storage: StudyStorage, make_study: MakeStudy) -> None:
    """A trial that hangs three times in a row before its first epoch fails; being asked to stop never counts."""
    claims = make_study(1)
    for _ in range(4):
        claims.release(claimed(claims))
    for _ in range(3):
        claims.release(claimed(claims), Ending.HUNG, died=True)
    assert claims.claim() is Idle.SPENT
    (trial,) = storage.optuna.get_all_trials(claims.study_id)
    assert (trial.state, trial.user_attrs["reason"]) == (
        TrialState.FAIL, "three attempts in a row died without finishing an epoch",
    )  # fmt: skip


def test_who_was_cut_off_does_not_judge_the_others(make_study: MakeStudy) -> None:
    """After an outage everybody's heartbeat is old: who comes back first must not take the others' trials."""
    claims = make_study(1)
    claim = claimed(claims)
    make_stale(claims, claim)
    back_first = replace(impatient(claims), grace_s=0.3)
    back_first.patience.disturbance.note()
    assert back_first.claim() is Idle.WAIT
    assert claims.beat(claim)


def test_claim_whose_answer_was_lost_is_found_again(make_study: MakeStudy) -> None:
    """The same token asks twice: it gets the same trial, and no second one is begun."""
    claims = make_study(3)
    call = "select trial_number from mammography.claim_trial(:s, :t, 'w', 'cpu', 'cpu', 0, '{}', interval '1 h', true)"
    values = {"s": claims.study_id, "t": "11111111-1111-1111-1111-111111111111"}
    assert [claims._row(call, **values)[0] for _ in range(2)] == [0, 0]
    assert claimed(claims).number == 1


def test_frozen_worker_holds_no_lock(make_study: MakeStudy) -> None:
    """After a claim and after a write no transaction is open, so that a worker may be frozen at any moment."""
    claims = make_study(2)
    claim = claimed(claims)
    claims.advance(claim, EPOCH)
    with claims.engine.connect() as connection:
        idle = sa.text(
            "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in%'"
        )
        assert connection.execute(idle).scalar_one() == 0


def test_queued_configuration_is_taken_before_it_is_tried(storage: StudyStorage, make_study: MakeStudy) -> None:
    """A whole one is refused to every other trial from then on, a part of one to nobody."""
    claims = make_study(5)
    params = {"lr": 0.001, "arch": "b"}
    first = claimed(claims)
    number = steering.enqueue(claims.engine, claims.study_id, params, whole=True)
    assert not claims.settle_parameters(first, params, SPACE)
    for _ in range(2):
        with pytest.raises(ConfigurationTakenError, match=f"trial {number} has exactly this configuration"):
            steering.enqueue(claims.engine, claims.study_id, params, whole=True)
    steering.enqueue(claims.engine, claims.study_id, {"arch": "b"}, whole=False)
    queued = claimed(claims)
    assert queued.number == number
    assert storage.optuna.get_trial(queued.trial_id).system_attrs["fixed_params"] == params
    assert claims.settle_parameters(queued, params, SPACE)


def test_trial_of_another_study_informs_and_costs_nothing(storage: StudyStorage, make_study: MakeStudy) -> None:
    """It is complete, with its parameters and fold scores, and its configuration is taken; the budget stays whole."""
    claims = make_study(1)
    finished: dict[str, Any] = {
        "state": TrialState.COMPLETE, "value": 0.7, "params": {"lr": 0.1, "arch": "a"}, "distributions": SPACE,
        "scores": {0: 0.6, 1: 0.8}, "attributes": {"from": {"study": "old", "number": 3}},
    }  # fmt: skip
    assert steering.add_finished(claims.engine, claims.study_id, **finished) == 0
    assert steering.add_finished(claims.engine, claims.study_id, **finished) is None
    (trial,) = storage.optuna.get_all_trials(claims.study_id)
    assert (trial.value, trial.params, trial.intermediate_values) == (0.7, {"lr": 0.1, "arch": "a"}, {0: 0.6, 1: 0.8})
    assert trial.user_attrs == {"from": {"study": "old", "number": 3}}
    assert ledger.budget(claims.engine, claims.study_id).left == 1
    claims.finish(claimed(claims), Ending.COMPLETE, value=0.1, attributes={})
    assert claims.claim() is Idle.SPENT


def test_claims_are_counted_right_however_trials_end(make_study: MakeStudy) -> None:
    """What is settled and what is counted anew add up to what a count of everything says."""
    claims = make_study(30)
    kept: list[Claim] = []
    for number in range(24):
        claim = claimed(claims)
        if number % 5 == 0:
            kept.append(claim)
        else:
            claims.finish(claim, Ending.FAIL, attributes={}, spends_budget=number % 3 != 0)
    spent = sum(number % 5 != 0 and number % 3 != 0 for number in range(24))
    assert ledger.budget(claims.engine, claims.study_id).spent == spent
    for claim in kept:
        claims.finish(claim, Ending.PRUNED, attributes={})
    left = 30 - spent - len(kept)
    assert ledger.budget(claims.engine, claims.study_id).left == left
    for _ in range(left):
        claims.finish(claimed(claims), Ending.COMPLETE, value=0.5, attributes={})
    assert claims.claim() is Idle.SPENT


def test_trial_that_workers_leave_over_does_not_block_the_others(make_study: MakeStudy) -> None:
    """After three that could not go on with it new trials come first, and it again when nothing else is left."""
    claims = make_study(3)
    for _ in range(3):
        left = claimed(claims)
        assert left.number == 0
        claims.release(left, Ending.LEFT)
    for number in (1, 2):
        claim = claimed(claims)
        assert claim.number == number
        claims.finish(claim, Ending.COMPLETE, value=0.1, attributes={})
    last = claimed(claims)
    assert last.number == 0
    claims.finish(last, Ending.COMPLETE, value=0.1, attributes={})
    assert claims.claim() is Idle.SPENT


def test_who_waits_for_another_kind_of_device_is_told(make_study: MakeStudy) -> None:
    """What a GPU began and gave back is nothing for the processor: it waits, and can say for what."""
    claims = make_study(1)
    gpu = replace(claims, device="cuda:0", device_kind="NVIDIA H100")
    begun = claimed(gpu)
    gpu.settle_resolution(begun, lambda: {"threads": 4})
    assert claims.claim() is Idle.WAIT
    gpu.release(begun)
    assert claims.claim() is Idle.OTHER_DEVICE


def test_claim_that_was_lost_before_its_answer_arrived_is_made_anew(make_study: MakeStudy) -> None:
    """The token stands at a lost attempt by then; another one is drawn."""
    claims = make_study(2)
    token = str(uuid.UUID(int=7))
    first = claims._claim(token)
    assert isinstance(first, Claim)
    make_stale(claims, first)
    assert claimed(impatient(claims)).number == first.number
    assert claims._claim(token) is None
    assert claimed(claims).number == 1


def attached(storage: StudyStorage, claim: Claim) -> dict[str, str]:
    """Return what was attached to a trial."""
    with storage.engine.connect() as connection:
        rows = connection.execute(
            sa.text("select key, value_json from trial_system_attributes where trial_id = :id order by 1"),
            {"id": claim.trial_id},
        )
        return {key: json.loads(value) for key, value in rows}


def test_what_a_trial_shows_is_attached_under_its_token(storage: StudyStorage, make_study: MakeStudy) -> None:
    """In place of what an earlier attempt attached, and as often as the call is made; who lost the trial attaches nothing."""
    claims = make_study(1)
    late = claimed(claims)
    first = dict([exhibits.artifact_attribute(exhibits.artifact_id(late.token, name), name) for name in exhibits.FILES])
    claims.attach(late, {exhibits.NOTE: "first \x00\u2603 \\u0000 \udce7", **first})
    assert attached(storage, late) == {exhibits.NOTE: "first \u2603 \\u0000 \\udce7", **first}
    make_stale(claims, late)
    claim = claimed(impatient(claims))
    assert attached(storage, claim) == {}, "it is trained again: what it says of its end is not true any more"
    with pytest.raises(TakenOverError):
        claims.attach(late, {exhibits.NOTE: "late"})
    for _ in range(2):
        claims.attach(claim, {exhibits.NOTE: "second"})
    assert attached(storage, claim) == {exhibits.NOTE: "second"}
    claims.finish(claim, Ending.COMPLETE, value=0.5, attributes={})
    with pytest.raises(TakenOverError):
        claims.attach(claim, {exhibits.NOTE: "third"})
    assert attached(storage, claim) == {exhibits.NOTE: "second"}


def test_what_a_finished_trial_shows_is_attached_once(storage: StudyStorage, make_study: MakeStudy) -> None:
    """By whoever is idle first, and to no trial that somebody still works on."""
    claims = make_study(2)
    done, running = claimed(claims), claimed(claims)
    claims.finish(done, Ending.PRUNED, attributes={})
    assert exhibits.unshown(claims.engine, claims.study_id) == [done.trial_id]
    assert exhibits.attach_late(claims.engine, done.trial_id, {exhibits.NOTE: "a"})
    assert not exhibits.attach_late(claims.engine, done.trial_id, {exhibits.NOTE: "b"})
    assert not exhibits.attach_late(claims.engine, running.trial_id, {exhibits.NOTE: "a"})
    assert (attached(storage, done), attached(storage, running)) == ({exhibits.NOTE: "a"}, {})
    assert exhibits.unshown(claims.engine, claims.study_id) == []

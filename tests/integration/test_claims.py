"""Claims on a real PostgreSQL: the budget is exact, tokens fence, what was lost is taken up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy as sa
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from storage import ledger
from storage.claims import Claim, Claims, Ending, Idle
from storage.errors import TakenOverError
from storage.heartbeat import Heartbeat
from storage.record import File
from storage.study_storage import StudyStorage, open_storage

SPACE = {"lr": FloatDistribution(1e-5, 1.0, log=True), "arch": CategoricalDistribution(["a", "b"])}
MakeStudy = Callable[[int], Claims]


@pytest.fixture
def storage(database_url: sa.URL) -> StudyStorage:
    """A study storage on a fresh database."""
    return open_storage(database_url, application_name="test")


@pytest.fixture
def make_study(storage: StudyStorage) -> MakeStudy:
    """A function from a budget to the claims of a new study."""

    def make(budget: int) -> Claims:
        study = optuna.create_study(storage=storage.optuna, study_name="s", direction="maximize")
        with storage.engine.begin() as connection:
            ledger.register(
                connection,
                study_id=study._study_id,
                resolved={},
                data_hash="d",
                folds_hash="f",
                folds_csv="",
                budget_trials=budget,
            )
        return Claims(storage.engine, study._study_id, "worker", "cpu", "cpu", grace_s=30)

    return make


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
        lambda: claims.progress(late, 0, 0),
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
            claims.progress(claim, fold=0, epoch=0)
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
            budget_trials=99,
        )
    found = ledger.registration(claims.engine, "s")
    assert found is not None
    assert (found.data_hash, found.budget_trials) == ("d", 3)


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
        claims.progress(claim, 0, 0)
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

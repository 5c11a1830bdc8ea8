"""Where artifacts lie, a folder or S3, and what the trials of a real study show there, also after kills and outages."""

from __future__ import annotations

import io
import json
import logging
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import boto3
import optuna
import pytest
import sqlalchemy as sa
from moto.server import ThreadedMotoServer
from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.trial import TrialState

from hpo import steering
from hpo.errors import TrialPrunedError
from hpo.objective import Training
from storage import exhibits, ledger
from storage.artifact_store import ArtifactStore, open_artifacts
from storage.claims import Claim, Ending, Idle
from storage.errors import ArtifactPlaceError, ArtifactStoreError
from storage.exhibits import CONFUSION, CURVES, FILES, RECORD, TABLE
from storage.record import describe_files
from tests.artifact_lab import NEVER, Faulty, Killed, Lab, killed, open_lab
from trainer.artifacts import HISTORY
from trainer.by_hand import Quiet
from trainer.fit import fit

BUCKET = "mammography"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The endpoint of a local server that speaks S3, with one bucket."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        point_at(patch, f"http://{host}:{port}")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
    yield f"http://{host}:{port}"
    server.stop()


def point_at(patch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let AWS's own environment variables say where S3 is and who asks."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """An empty store of either kind."""
    if request.param == "folder":
        return open_artifacts(str(tmp_path / "artifacts"))
    point_at(monkeypatch, request.getfixturevalue("s3"))
    return open_artifacts(f"s3://{BUCKET}/{uuid.uuid4()}/below/")


def test_what_is_written_can_be_read_replaced_and_removed(store: ArtifactStore) -> None:
    """Of a folder and of S3 alike, and an artifact that is not there is Optuna's own error."""
    name = str(uuid.uuid4())
    with pytest.raises(ArtifactNotFound):
        store.open_reader(name)
    for content in (b"first", b"second"):
        store.write(name, io.BytesIO(content))
        with store.open_reader(name) as stream:
            assert stream.read() == content
    store.remove(name)
    with pytest.raises(ArtifactNotFound):
        store.open_reader(name)


def test_objects_lie_below_the_prefix(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a bucket can be shared."""
    point_at(monkeypatch, s3)
    open_artifacts(f"s3://{BUCKET}/lab/density").write("abc", io.BytesIO(b"x"))
    open_artifacts(f"s3://{BUCKET}").write("def", io.BytesIO(b"x"))
    keys = {each["Key"] for each in boto3.client("s3").list_objects_v2(Bucket=BUCKET)["Contents"]}
    assert {"lab/density/abc", "def"} <= keys


class Torn(io.BytesIO):
    """A content that cannot be read to its end."""

    def read(self, _: int | None = -1, /) -> bytes:
        """Give a part, then fail."""
        if self.tell() == 0:
            return super().read(2)
        raise OSError(28, "No space left on device")


def test_an_artifact_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """A write that fails in the middle leaves what was there before."""
    store = open_artifacts(str(tmp_path))
    store.write("abc", io.BytesIO(b"before"))
    with pytest.raises(ArtifactStoreError, match="No space left on device"):
        store.write("abc", Torn(b"after"))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("abc", b"before")]


def test_a_folder_is_made_only_by_writing(tmp_path: Path) -> None:
    """Who only reads may see the tree read-only."""
    store = open_artifacts(str(tmp_path / "artifacts"))
    with pytest.raises(ArtifactNotFound):
        store.open_reader("abc")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["s3://", "s3:///prefix", "s3://Not_A_Bucket/x", "gs://bucket", "http://host/x"])
def test_places_that_can_be_none(place: str) -> None:
    """One line that says what was expected, and no folder of an odd name."""
    with pytest.raises(ArtifactPlaceError, match=r"expected a folder, or s3://BUCKET/PREFIX"):
        open_artifacts(place)


def test_s3_without_its_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ArtifactPlaceError, match=r"pip install 'mammography-hpo\[s3\]'"):
        open_artifacts(f"s3://{BUCKET}")


@pytest.mark.parametrize("wrong", ["bucket", "endpoint", "url"])
def test_s3_that_cannot_be_had(wrong: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong bucket, a server that is away, an endpoint that is none: one line, and no secret in it."""
    point_at(monkeypatch, {"bucket": s3, "endpoint": "http://127.0.0.1:9", "url": "nonsense"}[wrong])
    with pytest.raises((ArtifactStoreError, ArtifactPlaceError)) as raised:
        open_artifacts(f"s3://{'other' if wrong == 'bucket' else BUCKET}").write("abc", io.BytesIO(b"x"))
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_complete_trial_shows_everything_and_no_patient(lab: Lab, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On S3: record, pictures, predictions by pseudonyms in an order that tells nothing, and a note."""
    point_at(monkeypatch, s3)
    store = open_artifacts(f"s3://{BUCKET}/{uuid.uuid4()}")
    lab.worker(store)._take(lab.claim())
    shown = lab.shown(0, store)
    assert shown.keys() == FILES.keys()
    assert shown[CURVES] == (lab.study.folder.trial(0).path / CURVES).read_bytes()
    assert shown[CONFUSION].startswith(b"\x89PNG")
    header, *rows = shown[TABLE].decode().splitlines()
    assert header.startswith("image,patient,label,prediction,p_")
    assert len(rows) == len(lab.station.dataset.records)
    assert all(row.startswith("image-") for row in rows)
    assert rows == sorted(rows)
    record, own = json.loads(shown[RECORD]), lab.study.folder.trial(0).record.read_text()
    told_nobody = [file for file in json.loads(own)["artifacts"] if not file["name"].endswith("predictions.csv")]
    assert record == {**json.loads(own), "artifacts": told_nobody}
    trial = lab.trial(0)
    assert f"**{trial.value:.4f}**" in str(lab.note(0))
    pictures = {each.filename: each.artifact_id for each in lab.look(0)[1]}
    place = f"/artifacts/{lab.study.registration.study_id}/{trial._trial_id}"
    assert f"![learning curves]({place}/{pictures[CURVES]})" in str(lab.note(0))
    assert f"![confusion matrix]({place}/{pictures[CONFUSION]})" in str(lab.note(0))
    everything = b"".join([*shown.values(), json.dumps([trial._system_attrs, trial.user_attrs]).encode()])
    assert not [name for name in lab.identifiers if name.encode() in everything]


def test_reasons_name_nobody(lab: Lab) -> None:
    """Neither on the dashboard nor in Optuna's attributes nor in what is uploaded; the lab's own files say it as it was."""
    record, root = lab.station.dataset.records[0], lab.station.place.dicom_root
    worker = lab.worker()
    error = RuntimeError(f"{root}/{record.path}: of patient {record.patient}, '{record.accession}' <b>, {root}/new.dcm")
    worker._judge(lab.begun(worker), error)
    trial = lab.trial(0)
    assert trial.state == TrialState.FAIL
    shown = lab.shown(0)
    assert list(shown) == [RECORD]
    for text in (shown[RECORD].decode(), str(lab.note(0)), trial.user_attrs["reason"]):
        assert "RuntimeError" in text
        assert not [name for name in (*lab.identifiers, "new.dcm") if name in text]
    assert record.path in lab.study.folder.trial(0).record.read_text()


def test_a_pruned_trial_shows_its_finished_folds_and_every_curve(lab: Lab) -> None:
    """Also that of the fold in which it was given up; the predictions are those of the finished one alone."""
    worker = lab.worker()
    claim = lab.begun(worker)
    assert isinstance(worker.work, Training)
    trial = worker.work._trial
    assert trial is not None
    dataset, folds = lab.station.data(trial.config)
    place = trial.folder.fold(0)
    result = fit(
        trial.config, dataset, folds.split(0), trial.seeds.fold(0),
        compute=trial.compute, folder=place, listener=Quiet(), stop=NEVER,
    )  # fmt: skip
    assert result.score is not None
    history = (place / HISTORY).read_bytes()
    lab.station.claims.publish_fold(claim, 0, result.score, describe_files(place, prefix="fold_0/"))
    trial.folder.publish(0)
    (trial.folder.fold(1) / HISTORY).write_bytes(history)
    worker._judge(claim, TrialPrunedError("hopeless"))
    shown = lab.shown(0)
    assert shown.keys() == FILES.keys()
    assert len(shown[TABLE].splitlines()) == 1 + len(folds.split(0).validation)
    assert json.loads(shown[RECORD])["reason"] == "hopeless"
    assert "1 fold finished" in str(lab.note(0))
    assert "hopeless" in str(lab.note(0))


def check_shown_once(lab: Lab, last: Claim, *, attempts: int) -> None:
    """Accept a complete trial of so many attempts if it shows what the *last* one has uploaded, and idle workers add nothing."""
    engine, trial_id = lab.study.storage.engine, last.trial_id
    assert [bool(each.epochs) for each in ledger.attempts(engine, trial_id)] == [True] + [False] * (attempts - 1)
    trial, artifacts = lab.look(last.number)
    assert trial.state == TrialState.COMPLETE
    assert {each.artifact_id for each in artifacts} == {exhibits.artifact_id(last.token, name) for name in FILES}
    before = lab.shown(last.number)
    assert json.loads(before[RECORD])["attempts"][-1]["ending"] == "complete"
    assert lab.worker().work.tidy() is False
    assert lab.shown(last.number) == before


def test_a_kill_at_any_moment_leaves_each_trial_shown_once(lab: Lab) -> None:
    """Before, between and after upload, attachment and end: who takes the trial over shows it anew, and trains nothing again."""
    engine = lab.study.storage.engine
    claim = lab.claim()
    with pytest.raises(Killed):
        lab.worker(Faulty(lab.store, 2, Killed()))._take(claim)
    for moment in ("before", "after"):
        claim = lab.claim()
        with killed(engine, moment, "mammography.attach("):
            lab.worker()._take(claim)
    lab.worker()._take(last := lab.claim())
    check_shown_once(lab, last, attempts=4)

    with killed(engine, "before", "mammography.finish("):
        lab.worker()._take(lab.claim())
    last = lab.claim()
    with killed(engine, "after", "mammography.finish("):
        lab.worker()._take(last)
    check_shown_once(lab, last, attempts=2)
    other = str(uuid.uuid4())
    lab.store.write(other, io.BytesIO(b"another study's"))
    assert len(list(lab.artifacts.iterdir())) > 5
    elsewhere = open_artifacts(str(lab.artifacts.rename(lab.study.folder.path.with_name(f"artifacts-{other}"))))
    steering.delete(lab.study, elsewhere)
    with elsewhere.open_reader(other) as stream:
        assert stream.read() == b"another study's"
    assert [path.name for path in (lab.study.folder.path.parent / f"artifacts-{other}").iterdir()] == [other]


def test_a_store_that_is_away_costs_no_trial(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """The trial is finished, the log says why it shows nothing, and whoever is idle later makes up for it."""
    lab.artifacts.write_text("no folder")
    worker = lab.worker()
    with caplog.at_level(logging.WARNING):
        worker._judge(lab.begun(worker), TrialPrunedError("hopeless"))
    assert "trial 0 shows nothing yet: the artifact store" in caplog.text
    assert lab.trial(0).state == TrialState.PRUNED
    assert (lab.shown(0), lab.note(0)) == ({}, None)
    caplog.clear()
    assert worker.work.tidy() is False
    lab.artifacts.unlink()
    assert worker.work.tidy() is False  # a store that was away a moment ago is left alone
    assert (lab.note(0), caplog.text) == (None, "")
    assert lab.worker().work.tidy() is False
    assert list(lab.shown(0)) == [RECORD]
    assert "hopeless" in str(lab.note(0))


def test_a_moments_trouble_is_not_noticed(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    """A write that fails once is made again."""

    class Once(Faulty):
        def write(self, artifact_id: str, content_body: BinaryIO) -> None:
            failed, self.at = self.at == 0, self.at - 1
            if failed:
                raise self.fault
            self.store.write(artifact_id, content_body)

    worker = lab.worker(Once(lab.store, 0, ArtifactStoreError("here", "a moment")))
    worker._judge(lab.begun(worker), TrialPrunedError("hopeless"))
    assert list(lab.shown(0)) == [RECORD]
    assert "shows nothing" not in caplog.text


def test_what_an_earlier_attempt_attached_does_not_outlive_it(lab: Lab) -> None:
    """Not where the store is away when the trial ends, nor where it ends without a worker; what people attached stays."""
    engine = lab.study.storage.engine
    for number in range(2):
        worker = lab.worker()
        claim = lab.begun(worker)
        theirs, about = exhibits.artifact_attribute(str(uuid.uuid4()), TABLE)
        lab.store.write(theirs.removeprefix("artifacts:"), io.BytesIO(b"theirs"))
        lab.study.storage.optuna.set_trial_system_attr(claim.trial_id, theirs, about)
        with killed(engine, "before", "mammography.finish("):
            worker._judge(claim, TrialPrunedError("too early"))
        assert "too early" in str(lab.note(number))
        if number == 0:
            away = lab.worker(Faulty(lab.store, 0, ArtifactStoreError("here", "away")))
            away._judge(lab.begun(away), TrialPrunedError("at last"))
        else:
            for _ in range(3):
                lab.station.claims.release(lab.claim(), Ending.LEFT, died=True)
        assert theirs in lab.trial(number)._system_attrs
        assert lab.note(number) is None
    assert lab.worker().work.tidy() is False
    assert "at last" in str(lab.note(0))
    assert "three attempts in a row" in str(lab.note(1))
    assert lab.shown(1).keys() == {TABLE, RECORD}
    assert lab.shown(1)[TABLE] == b"theirs"


def test_a_trial_of_a_script_has_a_note(lab: Lab) -> None:
    """Nothing else is known of it."""
    name = lab.station.dataset.records[0].accession
    study = optuna.load_study(study_name=lab.study.name, storage=lab.study.storage.optuna)
    study.ask()  # the queued default
    trial = study.ask()
    trial.set_user_attr("reason", f"saw {name}")
    study.tell(trial, state=TrialState.FAIL)
    assert lab.worker().work.tidy() is False
    assert (lab.shown(1), lab.note(0)) == ({}, None)
    assert "No worker of this study" in str(lab.note(1))
    assert name not in str(lab.note(1))


def test_idle_workers_make_up_for_much_in_parts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the parts they look for a trial, and at the end of the budget they leave only when all is done."""
    study = optuna.load_study(study_name=lab.study.name, storage=lab.study.storage.optuna)
    for number in range(20):
        study.tell(study.ask(), number / 20)
    monkeypatch.setattr("hpo.gallery._AT_A_TIME_S", 0.005)
    worker = lab.worker()
    assert worker.run() is Idle.SPENT
    assert exhibits.unshown(lab.study.storage.engine, lab.study.registration.study_id) == []


def test_study_with_pseudonyms_of_its_own(archive: Path, database_url: sa.URL) -> None:
    """Its names are hashes already, and are not hashed twice: tables can be joined with the lab's own."""
    with open_lab(archive, database_url, pseudonyms=True) as lab:
        lab.worker()._take(lab.claim())
        assert lab.shown(0)[TABLE] == (lab.study.folder.trial(0).path / TABLE).read_bytes()

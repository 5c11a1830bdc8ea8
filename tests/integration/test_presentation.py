"""What is added to optuna-dashboard's answer about a study."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
import sqlalchemy as sa
from optuna_dashboard import save_note, wsgi
from sqlalchemy import URL

from hpo.dashboard.presentation import PLOT, Presentation
from storage import exhibits
from storage.artifact_store import open_artifacts
from storage.study_storage import StudyStorage, open_storage
from storage.tree import OutputTree
from tests.exhibition import artifact, exhibit, folds_csv, note, register, trial

PICTURE = Path(__file__).parents[2] / "docs" / "phantom.png"


@pytest.fixture
def storage(database_url: URL) -> Iterator[StudyStorage]:
    """An empty storage."""
    opened = open_storage(database_url, application_name="dashboard")
    yield opened
    opened.engine.dispose()


def plain(storage: StudyStorage) -> Any:
    """Return optuna-dashboard as it is."""
    return wsgi(storage.optuna)


def presented(storage: StudyStorage, folder: Path, prefix: str = "") -> Presentation:
    """Return it with what is added."""
    return Presentation(plain(storage), storage, OutputTree(folder), prefix=prefix)


def ask(application: Any, path: str) -> tuple[str, bytes]:
    """Return status and body of an answer whose length is what it says."""
    path, _, query = path.partition("?")
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET", "PATH_INFO": path, "QUERY_STRING": query}
    environ["wsgi.input"] = io.BytesIO()
    setup_testing_defaults(environ)
    begun: list[Any] = []
    body = b"".join(application(environ, lambda *arguments: begun.extend(arguments)))
    assert dict(begun[1])["Content-Length"] == str(len(body))
    return begun[0], body


def detail(application: Any, study_id: int, query: str = "") -> dict[str, Any]:
    """Return what is said of a study."""
    status, body = ask(application, f"/api/studies/{study_id}{query}")
    assert status == "200 OK"
    said: dict[str, Any] = json.loads(body)
    return said


def test_notes_and_a_plot_are_added_and_nothing_else_changes(storage: StudyStorage, tmp_path: Path) -> None:
    """Every trial has its note, the study has its own, and the rest is what optuna-dashboard says."""
    study_id = exhibit(storage, open_artifacts(str(tmp_path / "artifacts")), PICTURE, trials=5)
    said = detail(presented(storage, tmp_path), study_id)
    assert [each["note"]["body"] for each in said["trials"]] == [note(number) for number in range(5)]
    assert said["best_trials"][0]["note"]["body"].startswith("### Trial")
    (plot,) = said["plotly_graph_objects"]
    assert plot["id"] == PLOT
    assert json.loads(plot["graph_object"])["data"][1]["x"][0] == f"trial {said['best_trials'][0]['number']}"
    original = detail(plain(storage), study_id)
    for each in [*said["trials"], *said["best_trials"], said]:
        each["note"]["body"] = ""
    assert said == {**original, "plotly_graph_objects": [plot], "objective_names": said["objective_names"]}


def test_the_studys_note_says_how_far_it_is_and_names_nobody(storage: StudyStorage, tmp_path: Path) -> None:
    """Data, folds, budget, the best trial, rejections where the folder is at hand; counts, never names."""
    study_id = exhibit(storage, open_artifacts(str(tmp_path / "artifacts")), PICTURE, trials=5)
    said = detail(presented(storage, tmp_path), study_id)["note"]["body"]
    for fact in (
        "60 images of 30 patients",
        "1: 16, 2: 16, 3: 14, 4: 14",
        "20, 20, 20 images",
        "5 of 24 trials finished",
    ):
        assert fact in said
    assert "of 12 hours" in said
    assert "sampler tpe" in said
    assert "seed 42" in said
    assert "± 0." in said
    assert f"`{tmp_path / 'density'}`" in said
    assert "unknown here" in said
    assert "secret" not in said
    assert "secret" in folds_csv()


def test_rejections_are_counted_where_the_studys_folder_is(storage: StudyStorage, tmp_path: Path) -> None:
    """From `study.json`; one that cannot be read is no error."""
    study_id = register(storage, "density")
    (tmp_path / "density").mkdir()
    record = {
        "schema_version": 1,
        "study": "density",
        "resolved": {},
        "data_hash": "d",
        "folds_hash": "f",
        "images": 60,
        "patients": 30,
        "class_names": ["1"],
        "rejected": {"TRUNCATED": 2, "DUPLICATE": 7},
        "versions": {},
        "git_commit": None,
        "created_at": "2026-11-25T08:00:00Z",
    }
    (tmp_path / "density" / "study.json").write_text(json.dumps(record), encoding="utf-8")
    said = detail(presented(storage, tmp_path), study_id)
    assert "2 TRUNCATED, 7 DUPLICATE" in said["note"]["body"]
    assert "no trial has finished all its folds yet" in said["note"]["body"]
    assert said["plotly_graph_objects"] == []
    (tmp_path / "density" / "study.json").write_text("{", encoding="utf-8")
    assert "unknown here" in detail(presented(storage, tmp_path), study_id)["note"]["body"]


def test_a_note_that_a_person_wrote_wins(storage: StudyStorage, tmp_path: Path) -> None:
    """Of a trial and of the study: what optuna-dashboard keeps itself is shown as it is."""
    study_id = exhibit(storage, open_artifacts(str(tmp_path / "artifacts")), PICTURE, trials=2)
    study = optuna.load_study(study_name="density", storage=storage.optuna)
    save_note(study, "mine")
    save_note(optuna.Trial(study, study.get_trials(deepcopy=False)[1]._trial_id), "mine too")
    said = detail(presented(storage, tmp_path), study_id)
    assert said["note"]["body"] == "mine"
    assert [each["note"]["body"] for each in said["trials"]] == [note(0), "mine too"]


def test_studies_of_others_pass_untouched(storage: StudyStorage, tmp_path: Path) -> None:
    """A plain study of Optuna's in the same database, a study that is not there, and every other page, byte for byte."""
    study = optuna.create_study(study_name="plain", storage=storage.optuna, directions=["minimize", "maximize"])
    study.add_trial(optuna.trial.create_trial(values=[1.0, 2.0], system_attrs={exhibits.NOTE: "no note of ours"}))
    ours, theirs = presented(storage, tmp_path), plain(storage)
    for path in (
        f"/api/studies/{study._study_id}",
        "/api/studies/999",
        "/api/studies/1?after=x",
        "/api/meta",
        "/api/studies",
    ):
        assert ask(ours, path) == ask(theirs, path)


def test_only_what_is_asked_for_is_answered(storage: StudyStorage, tmp_path: Path) -> None:
    """A page that has the first trials asks for the others; the best one may be among the first."""
    study_id = exhibit(storage, open_artifacts(str(tmp_path / "artifacts")), PICTURE, trials=8)
    said = detail(presented(storage, tmp_path), study_id, "?after=7")
    assert [each["note"]["body"] for each in said["trials"]] == [note(7)]
    assert said["best_trials"][0]["note"]["body"] == note(said["best_trials"][0]["number"])


def test_what_is_attached_late_is_shown(storage: StudyStorage, tmp_path: Path) -> None:
    """A note and a picture that another worker attaches to a trial that Optuna keeps in memory already."""
    store = open_artifacts(str(tmp_path / "artifacts"))
    study_id = register(storage, "density")
    optuna.load_study(study_name="density", storage=storage.optuna).add_trial(trial(0))
    application = presented(storage, tmp_path, prefix="/hpo")
    (first,) = detail(application, study_id)["trials"]
    assert (first["note"]["body"], first["artifacts"]) == ("", [])
    attributes = artifact(store, "late.png", "image/png", PICTURE.read_bytes())
    with storage.engine.begin() as connection:
        for key, value in {**attributes, exhibits.NOTE: "![late](/artifacts/1/2/3)"}.items():
            connection.execute(
                sa.text(
                    "insert into trial_system_attributes (trial_id, key, value_json) values (:trial, :key, :value)"
                ),
                {"trial": first["trial_id"], "key": key, "value": json.dumps(value)},
            )
    (later,) = detail(application, study_id)["trials"]
    assert later["note"]["body"] == "![late](/hpo/artifacts/1/2/3)"
    assert [each["filename"] for each in later["artifacts"]] == ["late.png"]


def test_a_study_of_another_version_is_shown_plainly(storage: StudyStorage, tmp_path: Path) -> None:
    """Whose file this program does not understand."""
    study_id = register(storage, "density")
    with storage.engine.begin() as connection:
        connection.execute(sa.text("""update mammography.study set resolved = '{"study": "density", "news": 1}'"""))
    path = f"/api/studies/{study_id}"
    assert ask(presented(storage, tmp_path), path) == ask(plain(storage), path)

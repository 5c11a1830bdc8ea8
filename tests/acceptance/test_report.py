"""The page of a study, as a user gets it: by the command, in a real browser, of a real search, and of two thousand trials."""

from __future__ import annotations

import csv
import json
import random
import shutil
import statistics
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright
from plotly.offline import get_plotlyjs

from hpo import cli
from hpo import study as studies
from hpo.report.page import write_page
from hpo.study import Study
from hpo.study_file import StudyFile
from storage import ledger, steering
from storage.study_storage import open_storage
from storage.tree import OutputTree, TrialFolder
from tests.laboratory import STUDY, Laboratory
from trainer.artifacts import Predictions, write_history, write_predictions
from trainer.metrics import evaluate
from trainer.records import EpochRecord, Metrics

N_FOLDS, N_IMAGES = 5, 200
CLASSES = ("1", "2", "3", "4")
FOLDS = "image,patient,label,fold\n" + "".join(
    f"{7_000_000 + n // 4}/L_CC_{n}.dcm,PAT{n // 4:05},{CLASSES[n % 4]},{n // 4 % N_FOLDS}\n" for n in range(N_IMAGES)
)
FIGURES = {"history", "importances", "slices", "parallel", "folds", "confusion", "reliability", "learning"}
RATE = {"type": "float", "low": 1e-6, "high": 1e-1, "log": True}
SHARE = {"type": "float", "low": 0.0, "high": 0.5}
SEARCH = {
    **dict.fromkeys(("lr", "backbone_lr", "weight_decay"), RATE),
    **dict.fromkeys(("dropout", "drop_path", "label_smoothing"), SHARE),
    "warmup_epochs": {"type": "int", "low": 0, "high": 5},
    "class_weights": {"type": "categorical", "choices": ["none", "auto"]},
    "arch": {"type": "categorical", "choices": ["efficientnet_b0", "resnet50", "resnet18"]},
    "freeze": {"type": "categorical", "choices": ["none", "backbone"]},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium that is installed."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium is installed: nobody has looked at the page")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


def look(page: Page, path: Path) -> list[str]:
    """Open the page at *path* and return what it asked for elsewhere and what it complained of."""
    found: list[str] = []

    def hear(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            found.append(f"{message.type}: {message.text}")

    page.on("request", lambda request: found.append(request.url))
    page.on("console", hear)
    page.on("pageerror", lambda error: found.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_function("[...document.querySelectorAll('.plot')].every(one => one.querySelector('.main-svg'))")
    return [each for each in found if each != path.as_uri()]


def private_parts(path: Path, private: Collection[str]) -> list[str]:
    """Return which of *private* stands on the page at *path*, outside plotly's own script."""
    html = path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")
    return [each for each in private if each in html]


def names_in(folds_csv: str) -> set[str]:
    """Return every patient, image and folder in a table of folds."""
    rows = list(csv.DictReader(folds_csv.splitlines()))
    return {name for row in rows for name in (row["patient"], row["image"], *row["image"].split("/"))}


def make_study(url: sa.URL, tree: OutputTree, *, trials: int) -> Study:
    """Return a study of so many trials, a quarter of them pruned, some failed, with their attempts and epochs."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url, application_name="test")
    file = StudyFile.model_validate(
        {"study": "large", "search": SEARCH, "pruning": {"name": "auto"}, "budget": {"trials": max(trials, 1)}}
    )
    created = optuna.create_study(storage=storage.optuna, study_name="large", direction="maximize")
    with storage.engine.begin() as connection:
        ledger.register(
            connection, study_id=created._study_id, resolved=file.model_dump(mode="json"), data_hash="d" * 64,
            folds_hash="f" * 64, limits=file.budget.limits(None), folds_csv=FOLDS,
        )  # fmt: skip
    study = studies.load("large", tree, storage)
    chance = random.Random(3)  # noqa: S311 - of a test
    for _ in range(trials):
        params = study.space.suggest(lambda name, _: study.space.dimensions[name].at(chance.random()))
        state = chance.choices([TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL], [70, 25, 5])[0]
        value = 0.2 - 0.1 * params["dropout"] + chance.gauss(0, 0.05)
        n_folds = {TrialState.COMPLETE: N_FOLDS, TrialState.PRUNED: 2, TrialState.FAIL: 0}[state]
        reason = f"expected at {value:.4f} of PAT00003: a chance of {chance.random():.1%}"
        add(study, state, params, {fold: value + 0.02 * (fold - 2) for fold in range(n_folds)}, reason)
    attempt_all(study)
    return study


def add(study: Study, state: TrialState, params: Mapping[str, Any], scores: Mapping[int, float], reason: str) -> int:
    """Add a trial that has ended, and return its number."""
    complete = state == TrialState.COMPLETE
    number = steering.add_finished(
        study.storage.engine, study.registration.study_id, state=state, params=params, scores=scores,
        value=statistics.fmean(scores.values()) if complete else None, distributions=study.space.distributions(params),
        attributes={} if complete else {"reason": reason},
    )  # fmt: skip
    assert number is not None
    return number


def attempt_all(study: Study) -> None:
    """Give every trial of a study one attempt of a minute, and every fold with a score twelve epochs."""
    environment = {"versions": {"torch": "2.9.0"}, "git_commit": "c" * 40, "git_dirty": False}
    with study.storage.engine.begin() as connection:
        connection.execute(
            sa.text(
                "insert into mammography.attempt"
                " select trial_id, 0, gen_random_uuid(), 'w', 'cpu', 0, cast(:environment as jsonb), datetime_start,"
                " datetime_complete + interval '1 minute', lower(state::text) from trials where study_id = :study"
            ),
            {"environment": json.dumps(environment), "study": study.registration.study_id},
        )
        connection.execute(
            sa.text(
                "insert into mammography.epoch select trial_id, step, epoch, token, intermediate_value, 1, 1"
                " from trial_intermediate_values join mammography.attempt using (trial_id) join trials using (trial_id),"
                " generate_series(0, 11) epoch where study_id = :study"
            ),
            {"study": study.registration.study_id},
        )


def add_best(study: Study) -> Metrics:
    """Add the best trial with its files, as a worker would leave them, and return the pooled metrics of its predictions."""
    rows = list(csv.DictReader(FOLDS.splitlines()))
    chance = np.random.default_rng(5)
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    probabilities = chance.dirichlet(np.ones(len(CLASSES)), size=N_IMAGES) + 0.25 * np.eye(len(CLASSES))[labels]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    folds = np.array([int(row["fold"]) for row in rows])
    by_fold = [evaluate(labels[folds == fold], probabilities[folds == fold], CLASSES) for fold in range(N_FOLDS)]
    scores = {fold: metrics.balanced_acc_adj or 0.0 for fold, metrics in enumerate(by_fold)}
    params = study.space.suggest(lambda name, _: study.space.dimensions[name].at(0.4))
    folder = study.folder.trial(add(study, TrialState.COMPLETE, params, scores, ""))
    folder.path.mkdir(parents=True)
    predictions = Predictions(
        tuple(row["image"] for row in rows), tuple(row["patient"] for row in rows), labels, probabilities
    )
    write_predictions(folder.path / "oof_predictions.csv", predictions, CLASSES, folds=folds.tolist())
    for fold, metrics in enumerate(by_fold):
        write_epochs(folder, fold, metrics)
    return evaluate(labels, probabilities, CLASSES)


def write_epochs(folder: TrialFolder, fold: int, metrics: Metrics) -> None:
    """Write the history of a fold that got a little better in each of six epochs."""
    shared = {
        "train_acc": 0.5, "val_acc": metrics.acc, "balanced_acc": metrics.balanced_acc, "kappa_quadratic": None, "auc_ovr": None,
        "auc_ovo": None, "lr": {"head": 1e-3}, "per_class": metrics.per_class, "skipped_steps": 0, "seconds": 1.0,
        "images_per_second": 9.0, "best": True,
    }  # fmt: skip
    records = [
        EpochRecord(
            epoch=epoch, train_loss=1.4 - 0.15 * epoch, val_loss=1.4 - 0.1 * epoch + 0.02 * fold,
            balanced_acc_adj=(metrics.balanced_acc_adj or 0) * (epoch + 1) / 6, **shared,
        )
        for epoch in range(6)
    ]  # fmt: skip
    folder.fold(fold).mkdir()
    write_history(folder.fold(fold), tuple(records))


def test_page_in_a_browser(database_url: sa.URL, tmp_path: Path, browser: Browser) -> None:
    """Every figure is drawn, nothing is asked of a network, nobody is named, and the numbers are those of the files."""
    study = make_study(database_url, OutputTree(tmp_path), trials=24)
    pooled = add_best(study)
    path = tmp_path / "page.html"
    write_page(study, path)
    assert private_parts(path, {*names_in(FOLDS), str(tmp_path), "postgresql", database_url.database or ""}) == []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    assert look(page, path) == []
    drawn = page.eval_on_selector_all(
        "figure", "all => all.filter(one => one.querySelector('.main-svg')).map(one => one.id)"
    )
    assert set(drawn) == {f"figure-{name}" for name in FIGURES}
    assert page.locator("#figure-parallel .scatterlayer .trace").count() == 3, "lines, without WebGL"
    assert page.locator(".modebar-btn").count() > 0
    assert page.locator(".modebar-btn[data-title*=hare]").count() == 0, "a button that gives the data away"
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (
        "tables scroll, the page does not"
    )
    for name, of_class in pooled.per_class.items():
        shown = [
            f"{each:.4f}"
            for each in (of_class.precision, of_class.recall, of_class.f1, of_class.loss)
            if each is not None
        ]
        row = [name, *shown, str(of_class.support)]
        assert row in cells(page)
    page.set_viewport_size({"width": 400, "height": 800})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "on a telephone neither"
    page.close()


def cells(page: Page) -> list[list[str]]:
    """Return the cells of all tables of a page, row by row."""
    rows: list[list[str]] = page.eval_on_selector_all(
        "tbody tr", "rows => rows.map(row => [...row.children].map(cell => cell.innerText))"
    )
    return rows


def test_predictions_of_another_trial_are_not_shown(database_url: sa.URL, tmp_path: Path) -> None:
    """Where the folder's predictions do not give the scores that the database has, the page says so."""
    study = make_study(database_url, OutputTree(tmp_path), trials=0)
    add_best(study)
    folder = study.folder.trial(0)
    content = (folder.path / "oof_predictions.csv").read_text().splitlines()
    other = [line.rsplit(",", 1)[0] + f",{number % N_FOLDS}" for number, line in enumerate(content[1:])]
    (folder.path / "oof_predictions.csv").write_text("\n".join([content[0], *other]) + "\n")
    (folder.fold(3) / "train_history.json").unlink()
    (folder.fold(4) / "train_history.json").write_text("[{}]")
    write_page(study, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "oof_predictions.csv gives other fold scores than the database has: it is not this trial&#39;s" in html
    assert "fold_3/train_history.json is not there" in html
    assert "fold_4/train_history.json cannot be read" in html
    assert 'id="figure-confusion"' not in html
    assert 'id="figure-learning"' in html, "of the folds that are there"


def test_command(database_url: sa.URL, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The page lies in the study's folder, made if need be, or where one wants it, in place of what was there."""
    url = database_url.render_as_string(hide_password=False)
    make_study(database_url, OutputTree(tmp_path), trials=0)
    everywhere = ("--database", url, "--outputs", str(tmp_path))
    assert cli.run(["study", "report", "large", *everywhere]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'large' / 'report.html'}\n"
    assert "No trial has finished all its folds yet" in (tmp_path / "large" / "report.html").read_text(encoding="utf-8")
    out = tmp_path / "own.html"
    out.write_text("older")
    assert cli.run(["study", "report", "large", "--out", str(out), *everywhere]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert cli.run(["study", "report", "larg", *everywhere]) == 2
    assert capsys.readouterr().err == "mammography: there is no study 'larg'; did you mean 'large'?\n"


@pytest.mark.chaos
def test_page_of_a_real_search(laboratory: Laboratory, browser: Browser) -> None:
    """What real workers leave is what the page reads: all figures but importances, which want more trials."""
    laboratory.study(STUDY.replace("epochs: 2", "epochs: 1").replace("trials: 4", "trials: 2"))
    laboratory.ok("launch", "small", "--workers", 1)
    out = laboratory.folder / "page.html"
    assert laboratory.ok("study", "report", "small", "--out", out) == f"{out}\n"
    folds = (laboratory.outputs / "small" / "folds.csv").read_text(encoding="utf-8")
    assert private_parts(out, {*names_in(folds), str(laboratory.folder), "postgresql"}) == []
    page = browser.new_page()
    assert look(page, out) == []
    assert page.locator("figure").count() == len(FIGURES) - 1
    best = json.loads(laboratory.ok("study", "best", "small", "--json"))
    summary = json.loads((laboratory.outputs / "small" / f"trial_{best['number']:04d}" / "cv_summary.json").read_text())
    row = next(row for row in cells(page) if row[0] == "AUC, one class against the rest")
    numbers = (summary["mean"]["auc_ovr"], summary["std"]["auc_ovr"], summary["pooled"]["auc_ovr"])
    assert row[1:] == [f"{number:.4f}" for number in numbers]
    page.close()


@pytest.mark.chaos
def test_page_of_two_thousand_trials(database_url: sa.URL, tmp_path: Path, browser: Browser) -> None:
    """It is written within ten seconds of processor time, has less than 8 MB, and a browser draws it within twenty seconds."""
    study = make_study(database_url, OutputTree(tmp_path), trials=2000)
    path = tmp_path / "page.html"
    begun = time.process_time()
    write_page(study, path)
    took_s = time.process_time() - begun
    assert path.stat().st_size < 8e6
    assert took_s < 10
    page = browser.new_page()
    begun = time.monotonic()
    assert look(page, path) == []
    assert time.monotonic() - begun < 20
    assert "trials, evenly from the ranking of" in page.inner_text("main")
    page.close()

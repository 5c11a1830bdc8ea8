"""A run by hand: what is chosen is recorded and repeated, where images are kept changes nothing, a resumed run stays itself."""

from __future__ import annotations

import csv
import json
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from trainer.by_hand import train_density
from trainer.cli import checked, config_options, flag, run_config, to_flags
from trainer.config import RunConfig
from trainer.data.phantom import make_phantom
from trainer.errors import InputError, StopRequestedError
from trainer.opening import open_archive
from trainer.run_record import alone_in, read_run, resumed_config
from trainer.summary import Summary

TINY = {"arch": "test_efficientnet", "weights": "none", "img_size": 32, "epochs": 2, "threads": 1}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic archive of 24 patients."""
    folder = tmp_path_factory.mktemp("archive")
    make_phantom(folder, patients=24, seed=1)
    return folder


@pytest.fixture
def given(archive: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A function that returns the flags of a tiny run on the archive, with what else it is given."""

    def make(**flags: Any) -> dict[str, Any]:
        places = {"csv": archive / "classificacao.csv", "dicom_root": archive / "archive", "outdir": tmp_path / "runs"}
        return {**places, **TINY, **flags}

    return make


@pytest.fixture
def train(given: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., tuple[Path, Summary]]:
    """A function that trains a tiny run with these flags."""
    return lambda **flags: train_density(run_config(given(**flags)), tmp_path / "outputs")


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the epochs in *folder* without their times."""
    records: list[dict[str, Any]] = json.loads((folder / "train_history.json").read_text())
    return [{name: each[name] for name in each if name not in {"seconds", "images_per_second"}} for each in records]


def parsed(command: str) -> RunConfig:
    """Return the configuration that a command line makes."""

    @click.command()
    @config_options(RunConfig)
    def train_density(**flags: Any) -> dict[str, Any]:
        return flags

    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("mammography", "train-density")
    return run_config(train_density.main(arguments, standalone_mode=False))


def test_what_is_chosen_is_recorded_and_the_command_repeats_it(
    train: Callable[..., tuple[Path, Summary]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a batch size one is chosen; the command in the summary names it and trains the same again."""
    caplog.set_level("INFO")
    first, summary = train()
    assert summary.loader_heuristics
    assert summary.batch_size == summary.resolution.micro_batch == 16
    assert summary.loading.streamed is False
    assert "batch size 16 in parts of 16" in (first / "run.log").read_text()
    repeated = parsed(summary.command)
    assert "batch_size" in repeated.model_fields_set
    second, again = train_density(repeated, tmp_path / "outputs")
    assert second.name == "results_2"
    assert history(second) == history(first)
    assert again.command == summary.command


def test_flags_win_over_what_would_be_chosen(train: Callable[..., tuple[Path, Summary]]) -> None:
    """A batch size, parts of it and threads are taken as asked, and without the heuristics the default is."""
    _, summary = train(batch_size=6, micro_batch=3)
    assert (summary.batch_size, summary.resolution.micro_batch, summary.threads) == (6, 3, 1)
    _, summary = train(loader_heuristics=False)
    assert (summary.batch_size, summary.loader_heuristics) == (16, False)


def test_where_decoded_images_are_kept_changes_no_number(
    train: Callable[..., tuple[Path, Summary]], tmp_path: Path
) -> None:
    """On the disk, in memory, or decoded again by reading processes each time: the same history and data hash."""
    disk, one = train()
    assert (tmp_path / "outputs" / "cache").is_dir()
    memory, two = train(cache_mode="memory", cache_dir=tmp_path / "nothing")
    workers = {"num_workers": 1, "prefetch_factor": 3, "persistent_workers": True}
    none, three = train(cache_mode="none", cache_dir=tmp_path / "nothing", **workers)
    assert history(memory) == history(none) == history(disk)
    assert one.data_hash == two.data_hash == three.data_hash
    assert three.loading.model_dump() == {"streamed": True, **workers}
    assert not (tmp_path / "nothing").exists()


def test_a_split_leaves_curves_and_a_record(train: Callable[..., tuple[Path, Summary]]) -> None:
    """What a cross-validation has for all folds, one split has for itself."""
    folder, summary = train(export_embeddings=True)
    assert (folder / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "embeddings_val.npy").exists()
    assert read_run(folder).config.batch_size == summary.batch_size


def test_a_resumed_run_refuses_to_become_another(train: Callable[..., tuple[Path, Summary]], tmp_path: Path) -> None:
    """The flag is named; nothing is trained. What says what the run has anyway is accepted."""
    folder, summary = train(epochs=1)
    before = (folder / "train_history.json").read_bytes()
    refused = (
        ({"lr": "0.5"}, "--lr: the run in .* has 0.0001, and a resumed run keeps it, got 0.5"),
        ({"cv_folds": "3"}, "--cv-folds: the run in"),
        ({"batch_size": "4"}, "--batch-size: the run in"),
        ({"micro_batch": "4"}, "--micro-batch: the run in"),
        ({"img_size": "31"}, "--img-size"),
        ({"cv_outdir": "elsewhere", "cv_folds": "3"}, "--cv-"),
    )
    for flags, message in refused:
        with pytest.raises(InputError, match=message):
            train_density(resumed_config(folder, flags), tmp_path / "outputs", resume=folder)
    assert (folder / "train_history.json").read_bytes() == before
    same = {**TINY, "epochs": "1", "batch_size": "16", "micro_batch": "16", "threads": "1"}
    _, again = train_density(resumed_config(folder, same), tmp_path / "outputs", resume=folder)
    assert again.value == summary.value


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"device": "cuda:99"}, "device: cuda:99 was asked for"),
        ({"embeddings_dir": "nowhere"}, "nowhere/features.npy: No such file"),
        ({"outdir": "a file"}, "--outdir a file: a file is a file, expected a folder"),
        (
            {"cv_folds": 2, "cv_outdir": "a file/below"},
            "--cv-outdir a file/below: .*/a file is a file, expected a folder",
        ),
        ({"arch": "dla46x_c", "drop_path": 0.1}, "arch: dla46x_c cannot be built"),
        ({"weights": "bundled"}, "weights: bundled are for arch"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_decoded(
    given: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, Any], message: str,
) -> None:  # fmt: skip
    """In seconds and not after hours, and no folder is left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    with pytest.raises(InputError, match=message):
        train_density(run_config(given(**flags)), tmp_path / "outputs")
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


def test_weights_of_too_few_classes_leave_no_folder(given: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """The corrected command may use the same one."""
    folds = {"cv_folds": 2, "cv_outdir": tmp_path / "folds"}
    with pytest.raises(InputError, match="class_weights: 2 weights for 4 classes"):
        train_density(run_config(given(**folds, class_weights="1,2")), tmp_path / "outputs")
    assert not (tmp_path / "folds").exists()


def test_a_folder_that_was_only_locked_is_still_free(
    train: Callable[..., tuple[Path, Summary]], tmp_path: Path
) -> None:
    """A kill before the record was whole leaves a lock and half a file: nothing to resume, and nothing in the way."""
    folder = tmp_path / "folds"
    folder.mkdir()
    for name in (".lock", ".run.json.77.part"):
        (folder / name).touch()
    train(epochs=1, cv_folds=2, cv_outdir=folder)
    assert (folder / "cv_summary.json").exists()
    assert not (folder / ".run.json.77.part").exists()


def test_a_resumed_run_may_find_its_data_elsewhere(
    train: Callable[..., tuple[Path, Summary]], given: Callable[..., dict[str, Any]], archive: Path, tmp_path: Path
) -> None:
    """A copy of the archive is the same data, and other data are refused by their hash."""
    folder, summary = train(cv_folds=2, cv_outdir=tmp_path / "folds")
    (tmp_path / "copy").symlink_to(archive)
    moved = given(
        csv=str(tmp_path / "copy" / "classificacao.csv"), cv_folds="2", cv_outdir=str(folder), num_workers="3"
    )
    config = resumed_config(folder, moved)
    assert config.csv == tmp_path / "copy" / "classificacao.csv"
    again, repeated = train_density(config, tmp_path / "outputs", resume=folder)
    assert (again, repeated.value, repeated.started_at) == (folder, summary.value, summary.started_at)
    assert resumed_config(folder, {}).csv == tmp_path / "copy" / "classificacao.csv"  # the next time without a flag
    labels = (archive / "classificacao.csv").read_text().splitlines(keepends=True)
    (tmp_path / "fewer.csv").write_text("".join(labels[:-1]))
    other = resumed_config(folder, {"csv": str(tmp_path / "fewer.csv")})
    with pytest.raises(InputError, match="--resume: was begun with other data"):
        train_density(other, tmp_path / "outputs", resume=folder)


def test_a_resumed_run_has_the_files_that_are_asked_for_now(
    train: Callable[..., tuple[Path, Summary]], tmp_path: Path
) -> None:
    """Embeddings of folds that were finished without them; what a killed process had half written goes."""
    folder, _ = train(epochs=1, cv_folds=2, cv_outdir=tmp_path / "folds")
    before = [history(folder / f"fold_{fold}") for fold in range(2)]
    half = folder / "fold_1" / ".best_model.pth.1234.part"
    half.write_bytes(b"half")
    train_density(resumed_config(folder, {"export_embeddings": True}), tmp_path / "outputs", resume=folder)
    for fold in range(2):
        rows = np.load(folder / f"fold_{fold}" / "embeddings_val.npy")
        index = (folder / f"fold_{fold}" / "embeddings_val.csv").read_text().splitlines()
        predictions = (folder / f"fold_{fold}" / "val_predictions.csv").read_text().splitlines()
        assert [line.split(",")[0] for line in index] == [line.split(",")[0] for line in predictions]
        assert rows.shape[0] == len(index) - 1
    assert [history(folder / f"fold_{fold}") for fold in range(2)] == before
    assert not half.exists()


def test_a_stop_says_how_to_go_on(given: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """In the one line that ends the run, and that is enough to finish it; before there is a run, the same command does."""
    config, stop = run_config(given(outdir=tmp_path / "my runs")), threading.Event()
    stop.set()
    with pytest.raises(StopRequestedError, match="the same command goes on from there"):
        train_density(config, tmp_path / "outputs", stop=stop)
    assert not (tmp_path / "my runs").exists()
    time.sleep(max(0.0, config.csv.stat().st_ctime + 2.1 - time.time()))  # files this old are known from now on
    open_archive(config, config.preprocessing(), tmp_path / "outputs", stop=None, progress=None)
    with pytest.raises(StopRequestedError, match="go on with: mammography train-density --resume") as caught:
        train_density(config, tmp_path / "outputs", stop=stop)
    folder = Path(shlex.split(str(caught.value))[-1])
    assert folder.parent == tmp_path / "my runs"
    _, summary = train_density(resumed_config(folder, {}), tmp_path / "outputs", resume=folder)
    assert summary.value is not None


def test_other_versions_are_said(
    train: Callable[..., tuple[Path, Summary]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on, and the log says that its last bits may differ."""
    folder, _ = train()
    content = json.loads((folder / "run.json").read_text())
    content["versions"]["torch"] = "1.0"
    (folder / "run.json").write_text(json.dumps(content))
    train_density(resumed_config(folder, {}), tmp_path / "outputs", resume=folder)
    assert "the last bits may differ: torch 1.0 ->" in caplog.text
    assert "the last bits may differ: torch 1.0 ->" in (folder / "run.log").read_text()


def test_two_processes_never_train_in_one_folder(tmp_path: Path) -> None:
    """The second is refused; once the first has left, the folder is free."""
    with alone_in(tmp_path), pytest.raises(InputError, match="another process trains in it"), alone_in(tmp_path):
        pass
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize("content", [None, "{}", "nothing of ours"])
def test_a_folder_without_a_run_is_refused(tmp_path: Path, content: str | None) -> None:
    """In one line that names it."""
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=f"--resume {tmp_path}"):
        resumed_config(tmp_path, {})


def test_every_field_goes_through_the_command_line_and_back(given: Callable[..., dict[str, Any]]) -> None:
    """Each field at another value than its default becomes a flag that gives the same configuration."""
    other = {
        bool: lambda default: not default,
        int: lambda default: (default or 3) + 1,
        float: lambda default: (default or 0.25) * 0.5,
    }
    values: dict[str, Any] = {"epochs": 9, "sampler": "weighted", "class_weights": (1.0, 2.5), "loss": "ordinal"}
    for name, field in RunConfig.model_fields.items():
        if type(field.default) in other and name not in {"rescale_high", "epochs"}:
            values[name] = other[type(field.default)](field.default)
    config = checked(RunConfig, given(**values, cv_folds=3, cv_outdir="folds", micro_batch=2, embeddings_dir="vectors"))
    assert parsed(shlex.join(["mammography", "train-density", *to_flags(config)])) == config
    assert len(values) > 25
    assert flag("embeddings_dir") == "--embeddings-dir"


def test_a_published_split_trains_and_validates_as_published(archive: Path, tmp_path: Path) -> None:
    """By hand, the label file's own validation images validate; folds leave its test images out, and all files agree."""
    with (archive / "classificacao.csv").open() as file:
        grade_of = {row["AccessionNumber"]: row["Classification"] for row in csv.DictReader(file)}
    sides = ("training", "training", "validation", "test")
    of_grade = {grade: sorted(name for name in grade_of if grade_of[name] == grade) for grade in "1234"}
    side_of = {name: sides[place % 4] for names in of_grade.values() for place, name in enumerate(names)}
    table = "".join(
        f"{path.relative_to(archive / 'archive').as_posix()},{grade_of[path.parent.name]},{side_of[path.parent.name]}\n"
        for path in sorted(archive.rglob("*.dcm"))
        if grade_of[path.parent.name] in "23"
    )
    (tmp_path / "table.csv").write_text("image,label,split\n" + table)
    flags = {"csv": tmp_path / "table.csv", "dicom_root": archive / "archive", "outdir": tmp_path, **TINY, "epochs": 1}

    def images(path: Path) -> set[str]:
        with path.open() as file:
            return {side_of[row["image"].partition("/")[0]] for row in csv.DictReader(file)}

    folder, summary = train_density(run_config({**flags, "published_split": True}), tmp_path / "outputs")
    assert images(folder / "val_predictions.csv") == {"validation"}
    assert summary.train_samples == 4 * sum(side_of[name] == "training" for grade in "23" for name in of_grade[grade])
    folds = {**flags, "published_split": True, "cv_folds": 2, "cv_outdir": tmp_path / "cv"}
    folder, _ = train_density(run_config(folds), tmp_path / "outputs")
    assert images(folder / "oof_predictions.csv") == {"training", "validation"}
    assert images(folder / "folds.csv") == set(sides)

"""Study files: what is wrong is refused in one line that names file and key; what is right is complete."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from hpo.errors import StudyFileError
from hpo.study_file import StudyFile, read_study_file
from storage.errors import StudyNameError

GOOD = """\
study: density
data: {csv: labels.csv, dicom_root: archive}
cv: {folds: 3}
train: {arch: efficientnet_b0, epochs: 12, warmup_epochs: 2}
search:
  lr: {type: float, low: 1e-5, high: 1.0e-3, log: true}
  arch: {type: categorical, choices: [efficientnet_b0, resnet50]}
  dropout: {type: float, low: 0.0, high: 0.5, when: {arch: efficientnet_b0}}
  warmup_epochs: {type: int, low: 0, high: 3}
budget: {trials: 50}
"""


def read(tmp_path: Path, text: str, **overrides: object) -> StudyFile:
    """Return the study in a file with that text."""
    path = tmp_path / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return read_study_file(path, overrides=overrides)


def test_good_file_is_complete(tmp_path: Path) -> None:
    """Defaults are filled in, paths are relative to the file, numbers are numbers."""
    study = read(tmp_path, GOOD)
    assert study.data.csv == tmp_path / "labels.csv"
    assert study.train.epochs == 12
    assert study.seed == 42
    assert study.search["lr"].corners() == [1e-5, 1e-3]


def test_paths_of_weights_and_vectors_are_relative_to_the_file_too(tmp_path: Path) -> None:
    """Below train and as choices; the words that name no file stay, and so does an absolute path."""
    text = GOOD.replace("train: {", "train: {weights: mine.pth, embeddings_dir: vectors, ")
    searched = "  weights: {type: categorical, choices: [none, a.pth, /b.pth]}\n"
    searched += "  drop_path: {type: float, low: 0.1, high: 0.2, when: {weights: a.pth}}\n"
    searched += "  label_smoothing: {type: float, low: 0.1, high: 0.2, when: {weights: [none, a.pth]}}\n"
    text = text.replace("search:\n", f"search:\n{searched}")
    study = read(tmp_path, text)
    assert study.train.weights == str(tmp_path / "mine.pth")
    assert study.train.embeddings_dir == tmp_path / "vectors"
    assert study.search["weights"].corners() == ["none", str(tmp_path / "a.pth"), "/b.pth"]
    assert study.search["drop_path"].when == {"weights": str(tmp_path / "a.pth")}
    assert study.search["label_smoothing"].when == {"weights": ["none", str(tmp_path / "a.pth")]}
    assert study.embeddings_dirs() == [tmp_path / "vectors"]
    assert StudyFile.model_validate(study.model_dump(mode="json")) == study
    assert read(tmp_path, GOOD).train.weights == "imagenet"


def test_resolved_study_reads_back_as_itself(tmp_path: Path) -> None:
    """What is stored in the database is the study that was checked."""
    study = read(tmp_path, GOOD)
    assert StudyFile.model_validate(study.model_dump(mode="json")) == study


def test_overrides_of_the_command_line_win(tmp_path: Path) -> None:
    """--name, --trials and the data's place take the place of what the file says, and of nothing else."""
    study = read(tmp_path, GOOD, study="other", budget={"trials": 3}, data={"csv": "/elsewhere/l.csv"})
    assert (study.study, study.budget.trials, study.data.csv) == ("other", 3, Path("/elsewhere/l.csv"))
    assert study.data.dicom_root == tmp_path / "archive"


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("budget:", "budgte:", "unknown name 'budgte', did you mean 'budget'?"),
        ("epochs: 12", "epoch: 12", "train: unknown name 'epoch', did you mean 'epochs'?"),
        ("  lr:", "  lrr:", "search: unknown name 'lrr', did you mean 'lr'?"),
        ("data: {", "data: {embeddings: {a: b}, ", "data.embeddings: is filled in when the study is created"),
        ("epochs: 12", "epochs: 12, cache_mode: none", "train.cache_mode must be disk: all workers of a study share"),
        ("search:", "search:\n  num_workers: {type: int, low: 0, high: 3}", "num_workers changes no number"),
        ("low: 1e-5", "low: 1", "search.lr: low (1) must not be above high (0.001)"),
        ("low: 1e-5", "low: 0", "search.lr: low (0) must be above 0 on a logarithmic scale"),
        ("low: 1e-5", "lwo: 1e-5", "search.lr: unknown name 'lwo', did you mean 'low'?"),
        ("high: 3}", "high: 12}", "warmup_epochs (12) must be smaller than epochs (12)"),
        ("high: 0.5", "high: 1.5", "search: dropout: Input should be less than 1, got 1.5"),
        ("arch: efficientnet_b0}", "arch: vgg}", "search.dropout.when: 'vgg' is not one of the choices of 'arch'"),
        ("when: {arch", "when: {arhc", "search.dropout.when: 'arhc' is not searched, did you mean 'arch'?"),
        ("[efficientnet_b0, resnet50]", "[resnet50, resnet50]", "search.arch: choices holds a value twice"),
        ("type: int", "type: integer", "search.warmup_epochs"),
        ("epochs: 12", "epochs: twelve", "train.epochs: Input should be a valid integer"),
        ("trials: 50", "trials: 0", "budget.trials: Input should be greater than or equal to 1, got 0"),
        ("cv: {folds: 3}", "cv: {folds: 3}\ncv: {folds: 4}", 'line 4: found duplicate key "cv"'),
        ("budget: {trials: 50}", "budget: {trials: 50", "line "),
        (GOOD, "- 1", "must hold keys and values"),
    ],
)
def test_wrong_file_is_refused_in_one_line(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    """The line names the file, the key, and what was expected."""
    assert old in GOOD
    with pytest.raises(StudyFileError) as caught:
        read(tmp_path, GOOD.replace(old, new))
    line = str(caught.value)
    assert complaint in line
    assert line.startswith(str(tmp_path / "study.yaml"))
    assert "\n" not in line


def test_missing_file_is_named(tmp_path: Path) -> None:
    """A study file that is not there is said so."""
    with pytest.raises(StudyFileError, match="no such study file"):
        read_study_file(tmp_path / "nowhere.yaml", overrides={})


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    """A tag that would run code when loaded unsafely is refused."""
    with pytest.raises(StudyFileError):
        read(tmp_path, GOOD + "x: !!python/object/apply:os.system ['true']\n")


def test_conditions_in_a_circle_are_refused(tmp_path: Path) -> None:
    """Two dimensions that wait for each other never exist."""
    circle = """\
  optimizer: {type: categorical, choices: [adam, adamw], when: {sampler: none}}
  sampler: {type: categorical, choices: [none, weighted], when: {optimizer: adam}}
"""
    with pytest.raises(StudyFileError, match="in a circle"):
        read(tmp_path, GOOD.replace("budget:", f"{circle}budget:"))


@pytest.mark.parametrize(
    "name",
    [
        "../../x", "/etc/x", ".", "..", "a/b", "a\\b", "..\\..\\x", "C:/x", "~", "~root", ".hidden", "-x", " x", "x ", "a\nb",
        "a\n", "a\0b", "\u202ex", "ä", "", "x" * 101, "y" * 100_000, "cache", "train", "artifacts",
    ],
)  # fmt: skip
def test_a_name_that_is_no_plain_folder_is_refused(tmp_path: Path, name: str) -> None:
    """In the file as on the command line, in one short line, before anything is asked, started or made."""
    for text, overrides in ((GOOD.replace("density", json.dumps(name)), {}), (GOOD, {"study": name})):
        with pytest.raises(StudyNameError, match="cannot be a study's name") as caught:
            read(tmp_path, text, **overrides)
        line = str(caught.value)
        assert line.isprintable()
        assert len(line) < 500


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:os"])
def test_yaml_makes_no_objects(tmp_path: Path, tag: str) -> None:
    """A tag that calls something in other readers of YAML is refused, and nothing is called."""
    for text in (
        GOOD.replace("density", f"!!python/{tag} [{tmp_path}/made]"),
        f"{GOOD}x: !!python/{tag} [{tmp_path}/made]",
    ):
        with pytest.raises(StudyFileError, match=r"study\.yaml: line \d+: could not determine a constructor") as caught:
            read(tmp_path, text)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 5000,
        "study: x\ndata: {csv: &a [*a]}\n",
        "study: &a {x: *a}\n",
        "study: 1" + "0" * 5000,
        "study: 2026-13-45\n",
        "a: &a [x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in pairwise("abcdefghijklmnop")),
    ],
)
def test_a_file_made_to_break_its_reader_is_refused(tmp_path: Path, text: str) -> None:
    """Endless nesting, endless numbers and senseless dates are wrong input like any other: one line, at once."""
    with pytest.raises(StudyFileError, match=r"study\.yaml: ") as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500

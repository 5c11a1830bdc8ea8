"""A YAML study file, checked. Every key is known, every value has its type, every path is absolute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from hpo.errors import StudyFileError
from hpo.search_space import AnyDimension, CategoricalDimension, SearchSpace
from trainer.config import NO_WEIGHTS_FILES, SelectionConfig, Strict, TrainConfig, one_line

_PATHS = {"data": ("csv", "dicom_root"), "train": ("embeddings_dir", "weights")}
"""Keys of each section whose values are paths, relative to the study file."""


class DataSection(SelectionConfig):
    """Where the archive is, which a command may say instead, and what is taken of it."""

    csv: Path | None = None
    """Label file, relative to the study file."""
    dicom_root: Path | None = None
    """Folder of the images, relative to the study file."""
    embeddings: dict[str, str] = Field(default_factory=dict)
    """sha256 of the vectors in each `embeddings_dir` of the study; filled in when it is created."""


class CrossValidationSection(Strict):
    """How a configuration is judged."""

    folds: int = Field(5, ge=2)
    """Folds, grouped by patient and stratified by label."""


class SamplerSection(Strict):
    """What proposes configurations."""

    name: Literal["tpe", "random"] = "tpe"
    startup_trials: int = Field(10, ge=1)
    """Trials that tpe proposes at random before it models them."""


class PruningSection(Strict):
    """When a trial is given up before its last fold."""

    name: Literal["none"] = "none"


class BudgetSection(Strict):
    """When the search ends."""

    trials: int = Field(ge=1)
    """Trials that finish."""


class StudyFile(Strict):
    """A study as it is written down."""

    study: str
    """Its name, which is also its folder's."""
    seed: int = Field(42, ge=0)
    """Seed of the folds, the proposals and the training."""
    data: DataSection = DataSection()
    cv: CrossValidationSection = CrossValidationSection()
    train: TrainConfig = TrainConfig()
    """What all trials share, where `search` does not say otherwise."""
    search: dict[str, AnyDimension] = Field(min_length=1)
    """What is searched: a field of `train` each."""
    sampler: SamplerSection = SamplerSection()
    pruning: PruningSection = PruningSection()
    budget: BudgetSection

    @model_validator(mode="after")
    def _one_decoded_copy(self) -> Self:
        if self.train.cache_mode != "disk":
            raise ValueError("train.cache_mode must be disk: all workers of a study share one decoded copy")
        return self

    def embeddings_dirs(self) -> list[Path]:
        """Return the folders of another backbone's vectors that a trial may ask for."""
        searched = self.search.get("embeddings_dir")
        choices = searched.choices if isinstance(searched, CategoricalDimension) else []
        named = {str(each) for each in (self.train.embeddings_dir, *choices) if each is not None}
        return [Path(each) for each in sorted(named)]

    def space(self) -> SearchSpace:
        """Return the search space. Raises StudyFileError if it does not make sense."""
        return SearchSpace.build(self.train, self.search)


def read_study_file(path: Path, *, overrides: dict[str, Any]) -> StudyFile:
    """
    Return the study in the file at *path*, with *overrides* (such as ``{"budget": {"trials": 3}}``) laid over it.

    Raises:
        StudyFileError: One line that names the file, the key, and what was expected.
    """
    content = _with_absolute_paths(_read_yaml(path), path.absolute().parent)
    if isinstance(content.get("data"), dict) and "embeddings" in content["data"]:
        raise StudyFileError(f"{path}: data.embeddings: is filled in when the study is created; leave it out")
    for section, values in overrides.items():
        given = content.get(section)
        content[section] = {**given, **values} if isinstance(given, dict) and isinstance(values, dict) else values
    try:
        study = StudyFile.model_validate(content)
        study.space()
    except ValidationError as error:
        # pydantic names the kind of a dimension in its place: search.lr.float.low
        where = re.sub(r"^(search\.[^.:]+)\.(float|int|categorical)\b", r"\1", one_line(error))
        raise StudyFileError(f"{path}: {where}") from error
    except StudyFileError as error:
        raise StudyFileError(f"{path}: {error}") from error
    return study


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyFileError(f"{path}: no such study file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise StudyFileError(f"{path}: cannot be read: {error}") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}:" if mark else ""
        raise StudyFileError(f"{path}:{line} {(error.problem or 'not YAML').splitlines()[0]}") from error
    except YAMLError as error:
        raise StudyFileError(f"{path}: not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise StudyFileError(f"{path}: must hold keys and values, starting with `study: NAME`")
    return content


def _with_absolute_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return *content* with its paths taken relative to *folder*; what is no path yet is left for the check to refuse."""
    changed = dict(content)
    for section, names in _PATHS.items():
        given = content.get(section)
        if isinstance(given, dict):
            changed[section] = {
                key: _absolute(value, folder) if key in names else value for key, value in given.items()
            }
    search = content.get("search")
    if isinstance(search, dict):
        changed["search"] = {name: _with_absolute_dimension(name, given, folder) for name, given in search.items()}
    return changed


def _with_absolute_dimension(name: str, dimension: Any, folder: Path) -> Any:
    """Return the *dimension* of field *name* with its choices and conditions, where they are paths, relative to *folder*."""
    if not isinstance(dimension, dict):
        return dimension
    changed = dict(dimension)
    if name in _PATHS["train"] and "choices" in dimension:
        changed["choices"] = _absolute(dimension["choices"], folder)
    when = dimension.get("when")
    if isinstance(when, dict):
        changed["when"] = {
            parent: _absolute(wanted, folder) if parent in _PATHS["train"] else wanted
            for parent, wanted in when.items()
        }
    return changed


def _absolute(value: Any, folder: Path) -> Any:
    """Return *value*, or each of a list, as a path below *folder* if it is a relative one, else as it is."""
    if isinstance(value, list):
        return [_absolute(each, folder) for each in value]
    return str(folder / value) if isinstance(value, str) and value not in NO_WEIGHTS_FILES else value

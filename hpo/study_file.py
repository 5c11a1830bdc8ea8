"""A YAML study file, checked. Every key is known, every value has its type, every path is absolute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from hpo import grid
from hpo.errors import StudyFileError
from hpo.search_space import AnyDimension, CategoricalDimension, SearchSpace
from storage.ledger import Limits
from storage.tree import check_study_name
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

    name: Literal["tpe", "random", "gp", "grid", "qmc", "cmaes"] = "tpe"
    """tpe and gp model what they have seen; cmaes moves a cloud of numbers towards the better ones and draws choices at random;
    qmc fills the space evenly, random does not; grid tries all there is of a finite space, in an order of its own."""
    startup_trials: int = Field(10, ge=1)
    """Trials that finished, pruned ones too, before tpe, gp and cmaes learn from them; until then they propose at random."""


Switch = Literal["off", "on", "auto"]


class PruningSection(Strict):
    """When a trial is given up before its last epoch of its last fold."""

    name: Literal["none", "auto"] = "none"
    """auto: by folds and by epochs, as the measurements say; none: only what the two fields below ask for."""
    folds: Switch | None = None
    """Between folds, on the scores of the folds so far; what `name` says if it is not given."""
    epochs: Switch | None = None
    """Inside a fold, on its validation curve; what `name` says if it is not given."""

    @property
    def by_folds(self) -> Switch:
        """Whether and how trials are given up between folds."""
        return self.folds or ("auto" if self.name == "auto" else "off")

    @property
    def by_epochs(self) -> Switch:
        """Whether and how trials are given up inside a fold."""
        return self.epochs or ("auto" if self.name == "auto" else "off")

    @property
    def asked(self) -> bool:
        """Whether any trial may be given up."""
        return (self.by_folds, self.by_epochs) != ("off", "off")


_MOST_HOURS = 10**6


def _moment(value: Any) -> Any:
    """Return *value* if it is a moment; a bare number is none, though it could be read as seconds since 1970."""
    if isinstance(value, int | float):
        raise ValueError("expected a moment with its zone, such as 2027-01-31 08:00:00+01:00")  # noqa: TRY004 - pydantic's
    return value


class BudgetSection(Strict):
    """When the search ends: at the first of these."""

    trials: int | None = Field(None, ge=1, le=10**9, strict=True)
    """Trials that finish: complete, pruned, or failed by their own fault."""
    hours: float | None = Field(None, gt=0, le=_MOST_HOURS)
    """Hours in which at least one worker is at work; no trial begins afterwards."""
    gpu_hours: float | None = Field(None, gt=0, le=_MOST_HOURS)
    """Hours that workers hold GPUs, all workers together; no trial begins afterwards."""
    deadline: Annotated[AwareDatetime, BeforeValidator(_moment)] | None = None
    """No trial begins after this moment, such as 2027-01-31 08:00:00+01:00."""
    plateau: int | None = Field(None, ge=2, strict=True)
    """No trial begins after so many in a row without an improvement beyond the noise of the folds."""

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError(f"names no limit: expected at least one of {', '.join(type(self).model_fields)}")
        return self

    def in_words(self) -> str:
        """Return the limits as people say them."""
        said = {
            "trials": f"{self.trials} trials",
            "hours": f"{self.hours} hours",
            "gpu_hours": f"{self.gpu_hours} GPU-hours",
            "deadline": f"until {self.deadline}",
            "plateau": f"until {self.plateau} trials bring nothing new",
        }
        return ", ".join(words for name, words in said.items() if getattr(self, name) is not None)

    def limits(self, configurations: int | None) -> Limits:
        """Return what the database watches over; *configurations* are those of a finite space."""
        return Limits(self.trials, self.hours, self.gpu_hours, self.deadline, configurations)


class StudyFile(Strict):
    """A study as it is written down."""

    study: str
    """Its name, which is also its folder's."""
    seed: int = Field(42, ge=0, lt=2**32)
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
        StudyNameError: Its name cannot be that of a folder.
    """
    try:
        content = _with_absolute_paths(_read_yaml(path), path.absolute().parent)
    except RecursionError as error:  # also of a list that is in itself: in YAML it can be
        raise StudyFileError(f"{path}: nested without end, expected a study") from error
    if isinstance(content.get("data"), dict) and "embeddings" in content["data"]:
        raise StudyFileError(f"{path}: data.embeddings: is filled in when the study is created; leave it out")
    for section, values in overrides.items():
        given = content.get(section)
        content[section] = {**given, **values} if isinstance(given, dict) and isinstance(values, dict) else values
    try:
        study = StudyFile.model_validate(content)
        check_sampler(study.sampler, study.space())
    except ValidationError as error:
        # pydantic names the kind of a dimension in its place: search.lr.float.low
        where = re.sub(r"^(search\.[^.:]+)\.(float|int|categorical)\b", r"\1", one_line(error))
        raise StudyFileError(f"{path}: {where}") from error
    except StudyFileError as error:
        raise StudyFileError(f"{path}: {error}") from error
    check_study_name(study.study)  # before anything is asked, started or made for it
    return study


def check_sampler(section: SamplerSection, space: SearchSpace) -> None:
    """Accept a sampler that can work on *space*. Raises StudyFileError, with what to do about it."""
    if section.name == "grid":
        grid.check_finite(space)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StudyFileError(f"{path}: no such study file") from error
    except (OSError, ValueError) as error:  # no UTF-8, or a scalar that is no value: a day of month 13, 5000 digits
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

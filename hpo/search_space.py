"""The search space: which dimensions exist, how many configurations there are, and a trial's parameters as a `TrainConfig`."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from optuna.distributions import BaseDistribution
from pydantic import ValidationError

from hpo.dimensions import AnyDimension, CategoricalDimension, FloatDimension, Scalar, accepts, values
from hpo.errors import StudyFileError
from trainer.config import CHANGES_NO_NUMBER, TrainConfig, nearest, one_line

__all__ = ["AnyDimension", "CategoricalDimension", "SearchSpace", "Suggest"]  # a study file is written in these

Suggest = Callable[[str, BaseDistribution], Any]

MOST_CONFIGURATIONS = 100_000
"""A space with more of them counts as one without end: nobody lists them."""
_MOST_CORNERS = 20_000


@dataclass(frozen=True)
class SearchSpace:
    """The dimensions of a study, each after those it depends on, and the configuration that they change."""

    base: TrainConfig
    dimensions: Mapping[str, AnyDimension]

    @classmethod
    def build(cls, base: TrainConfig, dimensions: Mapping[str, AnyDimension]) -> SearchSpace:
        """
        Return the space, checked as a whole: names, conditions, and every corner a valid configuration.

        Raises:
            StudyFileError: One line that names the dimension and what is wrong with it.
        """
        for name, dimension in dimensions.items():
            _check_name(name)
            _check_kind(name, dimension)
            _check_condition(name, dimension, dimensions)
        space = cls(base, _ordered(dimensions))
        for name in dimensions:
            _check_possible(name, space)
        for _ in space.corners():
            pass
        return space

    @property
    def conditional(self) -> bool:
        """Whether some dimension exists only beside certain values of others."""
        return any(dimension.when for dimension in self.dimensions.values())

    def suggest(self, suggest: Suggest) -> dict[str, Any]:
        """Return a value for every dimension that exists, asked of *suggest* one after the other."""
        params: dict[str, Any] = {}
        for name, dimension in self.dimensions.items():
            if dimension.holds(params):
                params[name] = suggest(name, dimension.distribution())
        return params

    def distributions(self, params: Iterable[str]) -> dict[str, BaseDistribution]:
        """Return the distribution of each of *params*."""
        return {name: self.dimensions[name].distribution() for name in params}

    def configure(self, params: Mapping[str, Any]) -> TrainConfig:
        """Return the base configuration with *params* in place. Raises pydantic's ValidationError."""
        return TrainConfig.model_validate({**self.base.model_dump(), **params})

    def contains(self, params: Mapping[str, Any]) -> bool:
        """Return whether *params* are a configuration: a value for every dimension that exists, and nothing else."""
        existing = {name for name, dimension in self.dimensions.items() if dimension.holds(params)}
        return params.keys() == existing and all(accepts(self.dimensions[name], params[name]) for name in existing)

    def size(self) -> int | None:
        """Return the number of configurations; None if there is no end to them, or more than 100 000."""
        parents = {parent for dimension in self.dimensions.values() for parent in dimension.when}
        count = _count(list(self.dimensions.items()), {}, parents)
        return int(count) if count <= MOST_CONFIGURATIONS else None

    def configurations(self) -> Iterator[dict[str, Any]]:
        """Return all configurations, always in the same order. Raises ValueError where `size` is None."""
        if self.size() is None:
            raise ValueError("there is no end to the configurations")
        return _combinations(list(self.dimensions.items()), {})

    def defaults(self) -> dict[str, Any]:
        """Return what the base configuration itself has for the dimensions that exist, where it is one of their values."""
        params: dict[str, Any] = {}
        for name, dimension in self.dimensions.items():
            own = self._choice_of_base(name, dimension)
            if dimension.holds(params) and accepts(dimension, own):
                params[name] = dimension.take(own)
        return params

    def _choice_of_base(self, name: str, dimension: AnyDimension) -> Any:
        """Return the base's value of a field as *dimension* writes it: a path or a list of weights is text in a study file."""
        own = getattr(self.base, name)
        if not isinstance(dimension, CategoricalDimension):
            return own
        for choice in dimension.choices:
            try:
                if getattr(self.configure({name: choice}), name) == own:
                    return choice
            except ValidationError:  # beside the base's other values, which others of the space replace
                continue
        return own

    def requirements(self, names: Iterable[str]) -> dict[str, list[Scalar]]:
        """Return, for every dimension that *names* depend on, near or far, the values beside which all of them exist."""
        required: dict[str, list[Scalar]] = {}
        waiting = list(names)
        while waiting:
            for parent, wanted in self.dimensions[waiting.pop()].wanted.items():
                if parent not in required:
                    waiting.append(parent)
                required[parent] = [value for value in required.get(parent, wanted) if value in wanted]
        return required

    def narrowed(self, queued: Mapping[str, Any]) -> SearchSpace:
        """Return the part of the space in which the dimensions of *queued* exist and have these values, which are checked."""
        narrow = dict(self.dimensions)
        for parent, wanted in self.requirements(queued).items():
            dimension = narrow[parent]
            if isinstance(dimension, CategoricalDimension):  # as all on which others depend
                narrow[parent] = dimension.among(wanted)
        for name, value in queued.items():
            narrow[name] = narrow[name].only(value)
        return dataclasses.replace(self, dimensions=narrow)

    def corners(self) -> Iterator[TrainConfig]:
        """
        Yield the configurations at the ends of the ranges and for every choice, in all combinations, up to 20 000.

        Raises:
            StudyFileError: One of them is not a configuration.
        """
        corners = itertools.product(*(dimension.corners() for dimension in self.dimensions.values()))
        for at_ends in itertools.islice(corners, _MOST_CORNERS):
            at_corner = dict(zip(self.dimensions, at_ends, strict=True))
            params = self.suggest(lambda name, _, at=at_corner: at[name])  # type: ignore[misc]
            try:
                yield self.configure(params)
            except ValidationError as error:
                shown = ", ".join(f"{name}={value}" for name, value in params.items())
                raise StudyFileError(f"search: {one_line(error)} (at {shown})") from error


def _count(dimensions: list[tuple[str, AnyDimension]], params: dict[str, Any], parents: set[str]) -> float:
    """Return how many combinations of *dimensions* there are beside *params*; infinity once they are too many to matter."""
    if not dimensions:
        return 1
    (name, dimension), *others = dimensions
    if not dimension.holds(params):
        return _count(others, params, parents)
    count = dimension.count()
    if count is None:
        return math.inf
    if name not in parents:
        return count * _count(others, params, parents)
    total = 0.0
    for value in values(dimension):
        total += _count(others, {**params, name: value}, parents)
        if total > MOST_CONFIGURATIONS:
            return math.inf
    return total


def _combinations(dimensions: list[tuple[str, AnyDimension]], params: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield *params* with every combination of *dimensions* beside them."""
    if not dimensions:
        yield params
        return
    (name, dimension), *others = dimensions
    if not dimension.holds(params):
        yield from _combinations(others, params)
        return
    for value in values(dimension):
        yield from _combinations(others, {**params, name: value})


def _check_name(name: str) -> None:
    if name in CHANGES_NO_NUMBER:
        raise StudyFileError(f"search: {name} changes no number, so there is nothing to search; write it below train")
    known = [field for field in TrainConfig.model_fields if field not in CHANGES_NO_NUMBER]
    if name not in known:
        raise StudyFileError(f"search: unknown name {name!r}{nearest(name, known)}")


def _check_kind(name: str, dimension: AnyDimension) -> None:
    """Refuse a float where the field takes none: its ends may be whole numbers, what lies between is not."""
    annotation = TrainConfig.model_fields[name].annotation
    if isinstance(dimension, FloatDimension) and float not in (get_args(annotation) or (annotation,)):
        raise StudyFileError(f"search.{name}: takes no fractions; it cannot be of type float")


def _check_condition(name: str, dimension: AnyDimension, dimensions: Mapping[str, AnyDimension]) -> None:
    for parent, wanted in dimension.wanted.items():
        depends_on = dimensions.get(parent)
        if depends_on is None:
            hint = nearest(parent, list(dimensions))
            raise StudyFileError(f"search.{name}.when: {parent!r} is not searched{hint}")
        if not isinstance(depends_on, CategoricalDimension):
            raise StudyFileError(f"search.{name}.when: {parent!r} must be categorical")
        for value in wanted:
            if value not in depends_on.choices:
                raise StudyFileError(f"search.{name}.when: {value!r} is not one of the choices of {parent!r}")


def _check_possible(name: str, space: SearchSpace) -> None:
    """Refuse a dimension that exists nowhere, since what it depends on cannot be as it wants it."""
    for parent, wanted in space.requirements([name]).items():
        if not wanted:
            raise StudyFileError(
                f"search.{name}.when: never holds: no value of {parent!r} is right for all that it needs"
            )


def _ordered(dimensions: Mapping[str, AnyDimension]) -> dict[str, AnyDimension]:
    """Return the dimensions as written, but each after those it depends on."""
    ordered: dict[str, AnyDimension] = {}
    waiting = dict(dimensions)
    while waiting:
        ready = [name for name, dimension in waiting.items() if all(parent in ordered for parent in dimension.when)]
        if not ready:
            raise StudyFileError(f"search: {', '.join(sorted(waiting))} depend on each other in a circle")
        for name in ready:
            ordered[name] = waiting.pop(name)
    return ordered

"""The search space: field names with Optuna's distributions, and a trial's parameters as a `TrainConfig`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, ValidationError, model_validator

from hpo.errors import StudyFileError
from trainer.config import CHANGES_NO_NUMBER, Strict, TrainConfig, nearest, one_line

Scalar = str | int | float | bool | None
Suggest = Callable[[str, BaseDistribution], Any]

_MOST_CORNERS = 20_000


class Dimension(Strict):
    """What all dimensions have."""

    when: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    """The dimension exists only where these others have this value, or one of these."""

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Return whether the dimension exists beside *params*, which hold every dimension that it may depend on."""
        return all(
            name in params and params[name] in (wanted if isinstance(wanted, list) else [wanted])
            for name, wanted in self.when.items()
        )


class FloatDimension(Dimension):
    """A real number."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    """Sample on a logarithmic scale."""
    step: float | None = Field(None, gt=0)
    """Grid width, from `low`."""

    @model_validator(mode="after")
    def _range_makes_sense(self) -> Self:
        _check_range(self.low, self.high, log=self.log)
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def corners(self) -> list[Any]:
        """Return the values at which a check of the whole space looks."""
        return [self.low, self.high]


class IntDimension(Dimension):
    """A whole number."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    """Sample on a logarithmic scale."""
    step: int = Field(1, ge=1)
    """Grid width, from `low`."""

    @model_validator(mode="after")
    def _range_makes_sense(self) -> Self:
        _check_range(self.low, self.high, log=self.log)
        if self.log and self.step != 1:
            raise ValueError("log and step exclude each other")
        if (self.high - self.low) % self.step:
            raise ValueError(f"step {self.step} does not lead from {self.low} to {self.high}")
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def corners(self) -> list[Any]:
        """Return the values at which a check of the whole space looks."""
        return [self.low, self.high]


class CategoricalDimension(Dimension):
    """One of several values."""

    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1)

    @model_validator(mode="after")
    def _choices_differ(self) -> Self:
        if len({(type(choice), choice) for choice in self.choices}) < len(self.choices):
            raise ValueError("choices holds a value twice")
        return self

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        return CategoricalDistribution(self.choices)

    def corners(self) -> list[Any]:
        """Return the values at which a check of the whole space looks."""
        return list(self.choices)


AnyDimension = Annotated[FloatDimension | IntDimension | CategoricalDimension, Field(discriminator="type")]


def _check_range(low: float, high: float, *, log: bool) -> None:
    if low > high:
        raise ValueError(f"low ({low:g}) must not be above high ({high:g})")
    if log and low <= 0:
        raise ValueError(f"low ({low:g}) must be above 0 on a logarithmic scale")


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
            _check_condition(name, dimension, dimensions)
        space = cls(base, _ordered(dimensions))
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

    def distributions(self, params: Mapping[str, Any]) -> dict[str, BaseDistribution]:
        """Return the distribution of each of *params*."""
        return {name: self.dimensions[name].distribution() for name in params}

    def configure(self, params: Mapping[str, Any]) -> TrainConfig:
        """Return the base configuration with *params* in place. Raises pydantic's ValidationError."""
        return TrainConfig.model_validate({**self.base.model_dump(), **params})

    def corners(self) -> Iterator[TrainConfig]:
        """
        Yield the configurations at the ends of the ranges and for every choice, in all combinations, up to 20 000.

        Raises:
            StudyFileError: One of them is not a configuration.
        """
        corners = itertools.product(*(dimension.corners() for dimension in self.dimensions.values()))
        for values in itertools.islice(corners, _MOST_CORNERS):
            at_corner = dict(zip(self.dimensions, values, strict=True))
            params = self.suggest(lambda name, _, at=at_corner: at[name])  # type: ignore[misc]
            try:
                yield self.configure(params)
            except ValidationError as error:
                shown = ", ".join(f"{name}={value}" for name, value in params.items())
                raise StudyFileError(f"search: {one_line(error)} (at {shown})") from error


def _check_name(name: str) -> None:
    if name in CHANGES_NO_NUMBER:
        raise StudyFileError(f"search: {name} changes no number, so there is nothing to search; write it below train")
    known = [field for field in TrainConfig.model_fields if field not in CHANGES_NO_NUMBER]
    if name not in known:
        raise StudyFileError(f"search: unknown name {name!r}{nearest(name, known)}")


def _check_condition(name: str, dimension: Dimension, dimensions: Mapping[str, AnyDimension]) -> None:
    for parent, wanted in dimension.when.items():
        depends_on = dimensions.get(parent)
        if depends_on is None:
            hint = nearest(parent, list(dimensions))
            raise StudyFileError(f"search.{name}.when: {parent!r} is not searched{hint}")
        if not isinstance(depends_on, CategoricalDimension):
            raise StudyFileError(f"search.{name}.when: {parent!r} must be categorical")
        for value in wanted if isinstance(wanted, list) else [wanted]:
            if value not in depends_on.choices:
                raise StudyFileError(f"search.{name}.when: {value!r} is not one of the choices of {parent!r}")


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

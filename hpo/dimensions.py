"""One dimension of a search space: the values it has, on a scale from 0 to 1 and as people write them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import Field, model_validator

from trainer.config import Strict

Scalar = str | int | float | bool | None

_MOST_STEPS = 1e9
_OFF_GRID = 1e-8
"""Largest distance from a step's grid, in steps, that counts as rounding. Optuna's."""


class Dimension(Strict):
    """What all dimensions have."""

    when: dict[str, Scalar | list[Scalar]] = Field(default_factory=dict)
    """The dimension exists only where these others have this value, or one of these."""

    @property
    def wanted(self) -> dict[str, list[Scalar]]:
        """What `when` says, with a list for every one of the others."""
        return {name: values if isinstance(values, list) else [values] for name, values in self.when.items()}

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Return whether the dimension exists beside *params*, which hold every dimension that it may depend on."""
        return all(name in params and params[name] in values for name, values in self.wanted.items())


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
        if self.step is None:
            return self
        if self.log:
            raise ValueError("log and step exclude each other")
        if (self.high - self.low) / self.step > _MOST_STEPS:
            raise ValueError(f"step {self.step} is too small for a range from {self.low} to {self.high}")
        if (Decimal(str(self.high)) - Decimal(str(self.low))) % Decimal(str(self.step)):
            raise ValueError(f"step {self.step} does not lead from {self.low} to {self.high}")
        return self

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        return _range_in_words("a number", self.low, self.high, self.step)

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def corners(self) -> list[Any]:
        """Return the values at which a check of the whole space looks."""
        return [self.low, self.high]

    def count(self) -> int | None:
        """Return the number of values, or None if there is no end to them."""
        if self.low == self.high:
            return 1
        return None if self.step is None else round((self.high - self.low) / self.step) + 1

    def value(self, index: int) -> float:
        """Return a value by its place among the `count` ones."""
        # In decimals, so that the third step of 0.1 is 0.3 and not 0.30000000000000004, which would be another configuration.
        return float(Decimal(str(self.low)) + index * Decimal(str(self.step or 0.0)))

    def at(self, share: float) -> float:
        """Return the value at *share* (0..1) of the scale."""
        count = self.count()
        if count is not None:
            return self.value(_part(share, count))
        low, high = self._scale(self.low), self._scale(self.high)
        number = low * (1 - share) + high * share
        return min(max(math.exp(number) if self.log else number, self.low), self.high)

    def cell(self, value: float) -> tuple[float, float]:
        """Return the part of the scale, from and to, that stands for *value*: a point, unless there is a grid."""
        count = self.count()
        if count is not None:
            index = 0 if self.step is None else round((value - self.low) / self.step)
            return index / count, (index + 1) / count
        low, high = self._scale(self.low), self._scale(self.high)
        share = (self._scale(value) - low) / (high - low)
        return share, share

    def _scale(self, value: float) -> float:
        return math.log(value) if self.log else value

    def take(self, value: Any) -> float:
        """Return *value* as the dimension writes it. Raises ValueError if it is none of its values."""
        number = _number(value)
        if self.step is not None:
            steps = (number - self.low) / self.step
            if (
                math.isfinite(steps)
                and abs(steps - round(steps)) < _OFF_GRID
                and 0 <= round(steps) < (self.count() or 0)
            ):
                return self.value(round(steps))
        elif self.low <= number <= self.high:
            return number
        raise ValueError(self.expected)

    def read(self, text: str) -> float:
        """Return the value that somebody wrote as *text*. Raises ValueError."""
        return self.take(float(text))

    def only(self, value: Any) -> FloatDimension:
        """Return the dimension with *value* alone. Raises ValueError if it is none of its values."""
        number = self.take(value)
        return self.model_copy(update={"low": number, "high": number})


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

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        return _range_in_words("a whole number", self.low, self.high, self.step if self.step > 1 else None)

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def corners(self) -> list[Any]:
        """Return the values at which a check of the whole space looks."""
        return [self.low, self.high]

    def count(self) -> int:
        """Return the number of values."""
        return (self.high - self.low) // self.step + 1

    def value(self, index: int) -> int:
        """Return a value by its place among the `count` ones."""
        return self.low + index * self.step

    def at(self, share: float) -> int:
        """Return the value at *share* (0..1) of the scale, on which every value has a part from half a step below it."""
        if not self.log:
            return self.value(_part(share, self.count()))
        number = math.exp(math.log(self.low - 0.5) * (1 - share) + math.log(self.high + 0.5) * share)
        return min(max(round(number), self.low), self.high)

    def cell(self, value: int) -> tuple[float, float]:
        """Return the part of the scale, from and to, that stands for *value*."""
        if not self.log:
            index, count = (value - self.low) // self.step, self.count()
            return index / count, (index + 1) / count
        low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
        return (math.log(value - 0.5) - low) / (high - low), (math.log(value + 0.5) - low) / (high - low)

    def take(self, value: Any) -> int:
        """Return *value* as the dimension writes it. Raises ValueError if it is none of its values."""
        number = value if isinstance(value, int) and not isinstance(value, bool) else _number(value)
        if self.low <= number <= self.high and (number - self.low) % self.step == 0:
            return int(number)
        raise ValueError(self.expected)

    def read(self, text: str) -> int:
        """Return the value that somebody wrote as *text*. Raises ValueError."""
        return self.take(int(text))

    def only(self, value: Any) -> IntDimension:
        """Return the dimension with *value* alone. Raises ValueError if it is none of its values."""
        number = self.take(value)
        return self.model_copy(update={"low": number, "high": number})


class CategoricalDimension(Dimension):
    """One of several values."""

    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1)

    @model_validator(mode="after")
    def _choices_differ(self) -> Self:
        # To Optuna, as to Python, 1 and 1.0 and True are the same: it would store the first of them for each.
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("choices holds a value twice")
        return self

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        return f"one of {', '.join(as_text(choice) for choice in self.choices)}"

    def distribution(self) -> BaseDistribution:
        """Return Optuna's distribution."""
        return CategoricalDistribution(self.choices)

    def corners(self) -> list[Any]:
        """Return the values at which a check of the whole space looks."""
        return list(self.choices)

    def count(self) -> int:
        """Return the number of values."""
        return len(self.choices)

    def value(self, index: int) -> Scalar:
        """Return a value by its place among the `count` ones."""
        return self.choices[index]

    def at(self, share: float) -> Scalar:
        """Return the value at *share* (0..1), of which every one has an equal part."""
        return self.choices[_part(share, len(self.choices))]

    def take(self, value: Any) -> Scalar:
        """Return *value* as the dimension writes it. Raises ValueError if it is none of its values."""
        if value not in self.choices:
            raise ValueError(self.expected)
        return self.choices[self.choices.index(value)]

    def read(self, text: str) -> Scalar:
        """Return the value that somebody wrote as *text*: a choice of just these letters before any other. Raises ValueError."""
        choices = [choice for choice in self.choices if text == choice or _means(text, choice)]
        if not choices:
            raise ValueError(self.expected)
        return text if text in choices else choices[0]

    def only(self, value: Any) -> CategoricalDimension:
        """Return the dimension with *value* alone. Raises ValueError if it is none of its values."""
        return self.among([self.take(value)])

    def among(self, values: list[Scalar]) -> CategoricalDimension:
        """Return the dimension with those of its choices that are in *values*."""
        return self.model_copy(update={"choices": [choice for choice in self.choices if choice in values]})


AnyDimension = Annotated[FloatDimension | IntDimension | CategoricalDimension, Field(discriminator="type")]


def values(dimension: AnyDimension) -> Iterator[Any]:
    """Yield all values of a dimension that has an end. Raises ValueError for another."""
    count = dimension.count()
    if count is None:
        raise ValueError("there is no end to the values")
    return (dimension.value(index) for index in range(count))


def accepts(dimension: AnyDimension, value: Any) -> bool:
    """Return whether *value* is one of the dimension's."""
    try:
        dimension.take(value)
    except ValueError:
        return False
    return True


def as_text(value: Scalar) -> str:
    """Return *value* as one writes it in a study file."""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _means(text: str, choice: Scalar) -> bool:
    """Return whether *text* stands for *choice*, which is no text itself."""
    if isinstance(choice, str):
        return False
    if choice is None:
        return text.lower() in {"none", "null"}
    if isinstance(choice, bool):
        return text.lower() == as_text(choice)
    try:
        return float(text) == choice
    except ValueError:
        return False


def _check_range(low: float, high: float, *, log: bool) -> None:
    if low > high:
        raise ValueError(f"low ({low:g}) must not be above high ({high:g})")
    if log and low <= 0:
        raise ValueError(f"low ({low:g}) must be above 0 on a logarithmic scale")


def _range_in_words(what: str, low: float, high: float, step: float | None) -> str:
    if low == high:
        return f"{what}, only {low}"
    return f"{what} from {low} to {high}" + (f" in steps of {step}" if step is not None else "")


def _part(share: float, count: int) -> int:
    """Return in which of *count* equal parts of 0..1 *share* lies; 1 itself belongs to the last."""
    return min(int(share * count), count - 1)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number")  # noqa: TRY004 - the caller tells a wrong value from a right one
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"{value!r} is no number of ours") from error
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is no number of ours")
    return number

"""Values that people chose themselves: on a command line as FIELD=VALUE, or in a trial that a script put into the queue."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpo.dimensions import as_text
from hpo.errors import QueuedValueError
from hpo.search_space import SearchSpace
from trainer.config import nearest


def parse_assignments(space: SearchSpace, assignments: Iterable[str]) -> dict[str, Any]:
    """
    Return ``["lr=0.001", "arch=resnet50"]`` as parameters, each as its dimension writes it.

    Whether they can exist beside each other is left to `check_queued`.

    Raises:
        QueuedValueError: One that names no dimension, or none of its values.
    """
    params: dict[str, Any] = {}
    for assignment in assignments:
        name, separator, text = (part.strip() for part in assignment.partition("="))
        if not separator:
            raise QueuedValueError(name, "", "has no value, expected FIELD=VALUE")
        if name in params:
            raise QueuedValueError(name, text, "is given twice")
        _check_known(space, name, text)
        dimension = space.dimensions[name]
        try:
            params[name] = dimension.read(text)
        except ValueError as error:
            raise QueuedValueError(name, text, f"expected {dimension.expected}") from error
    return params


def check_queued(space: SearchSpace, params: Mapping[str, Any]) -> None:
    """
    Accept *params*, which may leave dimensions open, if some configuration of the space has them.

    Raises:
        QueuedValueError: Optuna itself would use what is out of range, and drop what it does not know.
    """
    for name, value in params.items():
        _check_known(space, name, value)
        dimension = space.dimensions[name]
        try:
            dimension.take(value)
        except ValueError as error:
            raise QueuedValueError(name, as_text(value), f"expected {dimension.expected}") from error
    for name, value in params.items():
        for parent, wanted in space.requirements([name]).items():
            if parent in params and params[parent] not in wanted:
                _refuse(name, value, f"where {parent} is {_either(wanted)}, not {as_text(params[parent])}")
    for parent, wanted in space.requirements(params).items():
        if not wanted:
            name = next(name for name in params if parent in space.requirements([name]))
            _refuse(name, params[name], f"at values of {parent} at which others of these do not")


def _check_known(space: SearchSpace, name: str, value: Any) -> None:
    if name not in space.dimensions:
        raise QueuedValueError(
            name, value, f"the study does not search {name!r}{nearest(name, list(space.dimensions))}"
        )


def _refuse(name: str, value: Any, where: str) -> None:
    raise QueuedValueError(name, as_text(value), f"exists only {where}")


def _either(values: list[Any]) -> str:
    return " or ".join(as_text(value) for value in values)

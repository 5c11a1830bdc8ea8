"""
The command line of a run by hand, made from its config class: every field is a flag, and every run can be written as flags.

Nothing here loads torch, so that `--help` is fast.
"""

from __future__ import annotations

import shlex
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from trainer.config import RunConfig, one_line
from trainer.errors import InputError

Command = TypeVar("Command", bound=Callable[..., Any])
Config = TypeVar("Config", bound=BaseModel)

_CHOSEN_IF_ABSENT = frozenset({"batch_size"})


def flag(name: str) -> str:
    """Return the flag of a field."""
    return f"--{name.replace('_', '-')}"


def config_options(config_class: type[BaseModel], *, only: Iterable[str] | None = None) -> Callable[[Command], Command]:
    """Return a decorator that gives a command one option for each field of *config_class*, or for those in *only*."""
    names = list(only if only is not None else config_class.model_fields)

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            command = _option(name, config_class.model_fields[name])(command)
        return command

    return decorate


def _option(name: str, field: FieldInfo) -> Callable[[Command], Command]:
    """Return the option of one field. Values stay text here: the config class checks them, once."""
    description = " ".join((field.description or "").split())
    default = None if field.is_required() else field.default
    if default is not None:
        description = f"{description} [{default}]"
    kinds = _kinds(field.annotation)
    if kinds == {bool}:
        return click.option(f"{flag(name)}/--no-{name.replace('_', '-')}", name, default=None, help=description)
    words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    metavar = "|".join(words) if words and kinds == {Literal[tuple(words)]} else _metavar(kinds)
    return click.option(flag(name), name, default=None, metavar=metavar, help=description)


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that a field may have, without None."""
    if typing.get_origin(annotation) in {typing.Union, types.UnionType}:
        return {kind for part in typing.get_args(annotation) for kind in _kinds(part)} - {type(None)}
    return {annotation}


def _metavar(kinds: set[Any]) -> str:
    if Path in kinds:
        return "PATH"
    if float in kinds:
        return "NUMBER"
    return "N" if int in kinds else "TEXT"


def run_config(given: Mapping[str, Any]) -> RunConfig:
    """
    Return the checked configuration of a run of `train-density` from what was *given* on its command line.

    Raises:
        InputError: One line that names the flag.
    """
    return checked(RunConfig, given)


def checked(config_class: type[Config], given: Mapping[str, Any]) -> Config:
    """
    Return the checked configuration of what was *given* on a command line; flags that were not given keep their defaults.

    Raises:
        InputError: One line that names the flag.
    """
    values = {name: value for name, value in given.items() if value is not None}
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        where = str(error.errors()[0]["loc"][0]) if error.errors()[0]["loc"] else ""
        line = one_line(error)
        raise InputError(line.replace(line.partition(":")[0], flag(where), 1) if where else line) from error


def command_line(name: str, config: BaseModel) -> str:
    """Return the command that runs *config*, as a shell takes it."""
    return shlex.join(["mammography", name, *to_flags(config)])


def to_flags(config: BaseModel) -> list[str]:
    """Return the flags that make *config*: those that differ from their defaults, or whose absence would mean a choice."""
    flags: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if value is None or (not field.is_required() and value == field.default and name not in _CHOSEN_IF_ABSENT):
            continue
        if isinstance(value, bool):
            flags.append(flag(name) if value else f"--no-{name.replace('_', '-')}")
        else:
            flags += [flag(name), ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return flags

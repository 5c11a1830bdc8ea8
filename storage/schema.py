"""Our own tables and functions, beside Optuna's: the SQL in `storage/sql/`, in the order in which it is run."""

from __future__ import annotations

from importlib.resources import files

SCHEMA_VERSION = 3

_TABLES = "tables"
_FUNCTIONS = ("gallery", "tally", "attempt", "claim", "steering")
"""Made anew by every upgrade. Their signatures stay, for workers of the version before may be at work."""
_STEPS: dict[int, tuple[str, ...]] = {2: ()}
"""Files that alter the tables of a version into those of the next one."""


def schema() -> str:
    """Return the SQL that is run once on a database that holds Optuna's tables."""
    version = f"insert into mammography.schema_version values ({SCHEMA_VERSION});"  # nosec # noqa: S608 - our constant
    return "\n".join([*map(_read, (_TABLES, *_FUNCTIONS)), version])


def can_upgrade(version: int) -> bool:
    """Return whether tables of that version can be made into ours."""
    return version in _STEPS


def upgrade(version: int) -> str:
    """Return the SQL that makes tables of an earlier *version* into ours; what is in them stays."""
    steps = [name for number in range(version, SCHEMA_VERSION) for name in _STEPS[number]]
    now = f"update mammography.schema_version set version = {SCHEMA_VERSION};"  # nosec # noqa: S608 - our constant
    return "\n".join([*map(_read, (*steps, *_FUNCTIONS)), now])


def _read(name: str) -> str:
    return (files("storage") / "sql" / f"{name}.sql").read_text(encoding="utf-8")

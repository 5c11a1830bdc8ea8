"""Our own tables and functions, beside Optuna's: the SQL in `storage/sql/`, in the order in which it is run."""

from __future__ import annotations

from importlib.resources import files

SCHEMA_VERSION = 2

_FILES = ("tables", "tally", "attempt", "claim", "steering")


def schema() -> str:
    """Return the SQL that is run once on a database that holds Optuna's tables."""
    folder = files("storage") / "sql"
    statements = [(folder / f"{name}.sql").read_text(encoding="utf-8") for name in _FILES]
    return "\n".join([*statements, f"insert into mammography.schema_version values ({SCHEMA_VERSION});"])  # noqa: S608 - a constant of ours

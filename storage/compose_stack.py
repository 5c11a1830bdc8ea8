"""The compose stack, as commands on the same machine find it in its folder: its database, by its passfile, and its outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:  # every command asks whether there is a stack, and --help answers at once
    from sqlalchemy import URL

PASSFILE = Path("secrets", "database.pgpass")
"""Made by the stack's first run, in the project's folder; a passfile of libpq."""

PRIVATE = "private"
"""Said in place of a URL: the private server, also where the stack's database would be taken."""

_ADVICE = {
    "Connection refused": f"`docker compose up -d` starts it, `--database {PRIVATE}` is the private server",
    "password authentication failed": "what is in secrets/ is not what its volume was made with: put that back; "
    "`docker compose down -v` begins anew and loses all studies",
}
"""What helps, by what the driver says."""
_COMPOSE_FILE = "docker-compose.yml"


@dataclass(frozen=True)
class ComposeStack:
    """What the containers of a stack use, as it is reached from the host."""

    database: str
    """A URL, without a password."""
    outputs: Path
    artifacts: str | None
    """None where they are in the output folder."""


def find_stack(folder: Path, environment: Mapping[str, str]) -> ComposeStack | None:
    """
    Return the stack that was started in *folder*; None where there is none.

    Settings are those that compose would take: of *environment*, else of `.env`, else the defaults.

    Raises:
        OSError: The passfile or `.env` is there and is not ours to read.
    """
    passfile = folder.absolute() / PASSFILE
    if not (folder / _COMPOSE_FILE).is_file() or not passfile.is_file():
        return None
    said = {**_settings_in(folder / ".env"), **environment}
    port = said.get("DATABASE_PORT") or 5432
    return ComposeStack(
        database=f"postgresql://mammography@127.0.0.1:{port}/mammography?passfile={quote(str(passfile))}",
        outputs=folder.absolute() / (said.get("OUTPUTS") or "outputs"),
        artifacts=said.get("ARTIFACTS") or None,
    )


def is_of_stack(url: URL) -> bool:
    """Return whether *url* is that of a stack as `find_stack` gives it."""
    passfile = url.query.get("passfile")
    if not isinstance(passfile, str) or Path(passfile).parts[-2:] != PASSFILE.parts:
        return False
    return (Path(passfile).parents[1] / _COMPOSE_FILE).is_file()


def advice(reason: str) -> str:
    """Return what to add to the driver's *reason* why a stack's database cannot be reached; nothing where we know nothing."""
    return next((f"; {what_helps}" for why, what_helps in _ADVICE.items() if why in reason), "")


def _settings_in(file: Path) -> dict[str, str]:
    """Return the settings in a `.env`, the last line of each, without quotes and comments."""
    if not file.is_file():
        return {}
    # As compose reads it: with a byte order mark or without. Other encodings are not ours to refuse.
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    lines = re.findall(r"^[ \t]*(?:export[ \t]+)?(\w+)[ \t]*=[ \t]*(.*)$", text, re.MULTILINE)
    return {name: _value(rest) for name, rest in lines}


def _value(rest: str) -> str:
    quoted = re.match(r"""(["'])(.*?)\1""", rest)
    return quoted[2] if quoted else re.sub(r"(^|\s)#.*", "", rest).strip()

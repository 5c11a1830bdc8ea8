"""The database of the compose stack, as commands on the same machine find it: in the stack's folder, with its passfile."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:  # every command asks whether there is a stack, and --help answers at once
    from sqlalchemy import URL

PASSFILE = Path("secrets", "database.pgpass")
"""Made by the stack's first run, in the project's folder; a passfile of libpq."""

PRIVATE = "private"
"""Said in place of a URL: the private server, also where the stack's database would be taken."""
ADVICE = f"`docker compose up -d` starts it, `--database {PRIVATE}` is the private server"
"""For who finds the stack's database away."""

_COMPOSE_FILE = "docker-compose.yml"
_USUAL_PORT = 5432


def stack_url(folder: Path, environment_port: str | None = None) -> str | None:
    """
    Return the URL of the stack that was started in *folder*, without a password; None where there is none.

    The port is what compose would take: *environment_port*, else DATABASE_PORT in `.env`, else 5432.
    """
    passfile = folder.absolute() / PASSFILE
    if not (folder / _COMPOSE_FILE).is_file() or not passfile.is_file():
        return None
    port = environment_port or _port_in(folder / ".env") or _USUAL_PORT
    return f"postgresql://mammography@127.0.0.1:{port}/mammography?passfile={quote(str(passfile))}"


def is_of_stack(url: URL) -> bool:
    """Return whether *url* is one that `stack_url` gives."""
    passfile = url.query.get("passfile")
    if not isinstance(passfile, str) or Path(passfile).parts[-2:] != PASSFILE.parts:
        return False
    return (Path(passfile).parents[1] / _COMPOSE_FILE).is_file()


def _port_in(file: Path) -> str | None:
    if not file.is_file():
        return None
    said = re.findall(
        r"^\s*(?:export\s+)?DATABASE_PORT\s*=\s*[\"']?(\d+)", file.read_text(encoding="utf-8"), re.MULTILINE
    )
    return said[-1] if said else None

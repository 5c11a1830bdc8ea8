"""Log lines: set up once, by the command line."""

from __future__ import annotations

import logging
import sys
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

LogFormat = Literal["text", "json"]


def set_up(level: str, log_format: LogFormat) -> None:
    """Send log lines to standard error, as text or as one JSON object each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s", rename_fields={"levelname": "level"})
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)  # libraries may warn, not chat
    for package in ("hpo", "trainer", "storage"):
        logging.getLogger(package).setLevel(level.upper())
    logging.captureWarnings(capture=True)


def quiet_optuna() -> None:
    """Let Optuna's warnings go the way of all log lines, and drop its chatter. It sets its logging up when it is loaded."""
    optuna = logging.getLogger("optuna")
    optuna.handlers.clear()
    optuna.propagate = True
    optuna.setLevel(logging.WARNING)

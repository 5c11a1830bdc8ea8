"""The page: its sections in order, and around them the one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

import jinja2
from plotly.offline import get_plotlyjs

from hpo.report.archive import archive
from hpo.report.blocks import Figure, Section
from hpo.report.course import course
from hpo.report.findings import Findings, read
from hpo.report.origins import origins
from hpo.report.outcomes import outcomes
from hpo.report.overview import overview
from hpo.report.predictions import predictions
from hpo.report.winner import top_trials, winner
from hpo.report.wording import moment
from hpo.study import Study
from trainer.files import write_text

_SECTIONS = (overview, winner, course, top_trials, predictions, outcomes, archive, origins)
_FOLDER = files("hpo.report")


def write_page(study: Study, path: Path) -> None:
    """Write what is known of *study* now to *path*, whole or not at all. Raises StudyDeletedError, OSError."""
    write_text(path, page(read(study)))


def page(found: Findings) -> str:
    """Return the page as HTML that asks for nothing: its scripts, its style and its figures are in it."""
    sections = [section(found) for section in _SECTIONS]
    scripts = [get_plotlyjs(), _text("figures.js")] if _has_figures(sections) else []
    return (
        _environment()
        .from_string(_text("page.html.jinja"))
        .render(
            study=found.study.name,
            at=moment(found.at),
            sections=sections,
            scripts=scripts,
            policy=_policy(scripts),
            style=_text("page.css"),
        )
    )


def _has_figures(sections: list[Section]) -> bool:
    return any(isinstance(block, Figure) for section in sections for block in section.blocks)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def _policy(scripts: list[str]) -> str:
    """
    Return what a browser may do on the page: run just these *scripts*, and load nothing.

    Plotly writes style rules of its own, and turns a figure into a picture by way of a blob.
    """
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts]
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(hashes)}" if hashes else "script-src 'none'",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _text(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")

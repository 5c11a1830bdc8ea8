"""The group `data`: archives of images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hpo.commands.options import PATH, Everywhere, everywhere
from hpo.commands.speech import DONE, exit_code, say, stderr, stdout
from trainer.cli import checked, config_options
from trainer.config import CheckConfig


@click.group("data", no_args_is_help=False)
@everywhere
def data() -> None:
    """Archives of images and labels."""


@data.command("check")
@config_options(CheckConfig)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@click.option(
    "--preview", type=PATH, metavar="FILE.png", help="Draw images of each class before and after preprocessing."
)
@everywhere
@click.pass_obj
def data_check(everywhere: Everywhere, /, *, as_json: bool, preview: Path | None, **given: Any) -> int:
    """Say what would be used of an archive, and what not and why, before anything is trained."""
    from hpo.signals import stop_on_signal

    config = checked(CheckConfig, given)
    stop = stop_on_signal()  # before a library starts threads of its own
    from hpo.live import opening_progress
    from hpo.tables import archive_tables
    from trainer.archive_check import check_archive

    with opening_progress(stderr()) as progress:
        found = check_archive(config, everywhere.settings().outputs, preview=preview, stop=stop, progress=progress)
    if as_json:
        click.echo(found.report.model_dump_json(indent=2))
    else:
        stdout().print(*archive_tables(found.report), sep="\n", markup=False, highlight=False)
    return DONE if found.error is None else say(found.error, exit_code(found.error))


@data.command("phantom")
@click.argument("out", type=PATH)
@click.option("--patients", type=click.IntRange(min=1), default=60, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True)
@click.option(
    "--imbalance",
    type=click.FloatRange(1, 20),
    help="Patients of the most frequent grade for one of the rarest [as in screening].",
)
@click.option(
    "--malformed",
    is_flag=True,
    help="Add broken and odd files of every kind; with fewer than 42 patients the broken ones are more than the share "
    "that --max-rejected allows by default.",
)
@everywhere
def data_phantom(out: Path, patients: int, seed: int, imbalance: float | None, *, malformed: bool) -> int:
    """Make a synthetic DICOM archive with labels in OUT."""
    from trainer.data.phantom import make_phantom

    make_phantom(out, patients=patients, seed=seed, imbalance=imbalance, malformed=malformed)
    click.echo(f"--csv {out / 'classificacao.csv'} --dicom-root {out / 'archive'}")
    return DONE

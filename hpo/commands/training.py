"""Commands that train or run one network by hand: `train-density` and `embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from hpo.commands.options import PATH, Everywhere, everywhere
from hpo.commands.speech import DONE, stderr
from trainer.cli import checked, config_options, run_config
from trainer.config import EmbedConfig, RunConfig

TAKE_A_LONE_DASH = frozenset({"train-density", "embed"})
"""Commands that are also written with ``--`` before their flags."""


@click.command("train-density", context_settings={"ignore_unknown_options": False})
@config_options(RunConfig)
@click.option(
    "--resume",
    type=PATH,
    help="Folder of a run, to be continued to the bit; no other flag is needed then.",
    metavar="DIR",
)
@everywhere
@click.pass_obj
def train_density(everywhere: Everywhere, /, resume: Path | None, **given: Any) -> int:
    """Train one configuration; with --cv-folds K, K-fold cross-validation."""
    from hpo.signals import stop_on_signal

    stop = stop_on_signal()  # before torch starts threads of its own
    from hpo.live import opening_progress
    from trainer import by_hand, run_record

    config = run_config(given) if resume is None else run_record.resumed_config(resume, given)
    outputs = everywhere.settings().outputs
    with opening_progress(stderr()) as progress:
        folder, summary = by_hand.train_density(config, outputs, resume=resume, stop=stop, progress=progress)
    value = "does not exist" if summary.value is None else f"{summary.value:.4f}"
    click.echo(f"balanced accuracy adjusted for chance: {value}")
    click.echo(str(folder))
    return DONE


@click.command("embed")
@config_options(EmbedConfig)
@everywhere
@click.pass_obj
def embed(everywhere: Everywhere, /, **given: Any) -> int:
    """Write a backbone's pooled features of all images, for --embeddings-dir."""
    from hpo.signals import stop_on_signal

    config = checked(EmbedConfig, given)
    stop = stop_on_signal()  # before torch starts threads of its own
    from hpo.live import opening_progress
    from trainer import pooled_features

    with opening_progress(stderr()) as progress:
        record, computed = pooled_features.embed(config, everywhere.settings().outputs, stop=stop, progress=progress)
    click.echo(f"features: ({record.n_images}, {record.n_features}) float32{'' if computed else ', there already'}")
    click.echo(str(config.outdir))
    return DONE

"""Commands that look at what a study has found: `study best`, `trials`, `importance` and `report`."""

from __future__ import annotations

from pathlib import Path

import click

from hpo.commands.options import PATH, Everywhere, everywhere
from hpo.commands.speech import DONE, stdout


@click.command("best")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="The content of its optuna_trial.json.")
@everywhere
@click.pass_obj
def study_best(everywhere: Everywhere, /, name: str, *, as_json: bool) -> int:
    """Show the best trial of study NAME: of those that finished all their folds."""
    from hpo import study as studies

    _, found = everywhere.study(name, "study")
    best = studies.best_trial(found)
    folder = found.folder.trial(best.number)
    if as_json:
        click.echo(folder.record.read_text(encoding="utf-8"), nl=False)
        return DONE
    click.echo(f"trial {best.number}: {best.values[0]:.4f}")
    for key, value in best.params.items():
        click.echo(f"  {key} = {value}")
    click.echo(str(folder.path))
    return DONE


@click.command("trials")
@click.argument("name")
@click.option("--csv", "csv", type=PATH, help="Write them there instead of showing the ranking.")
@everywhere
@click.pass_obj
def study_trials(everywhere: Everywhere, /, name: str, csv: Path | None) -> int:
    """Show the trials of study NAME, the best first."""
    from hpo import study as studies
    from hpo.tables import ranking_table, trials_frame
    from storage.summaries import efforts

    _, found = everywhere.study(name, "study")
    trials = found.trials
    if csv is None:
        console = stdout()
        console.print(ranking_table(trials, studies.ranking(found), name, console.width))
    else:
        effort_of = efforts(found.storage.engine, found.registration.study_id)
        trials_frame(trials, effort_of).to_csv(csv, index=False)
        click.echo(str(csv))
    return DONE


@click.command("importance")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@everywhere
@click.pass_obj
def study_importance(everywhere: Everywhere, /, name: str, *, as_json: bool) -> int:
    """Show which parameters of study NAME matter, of those trials that finished all their folds."""
    from hpo.importance import importance
    from hpo.tables import importance_table

    _, found = everywhere.study(name, "study")
    what = importance(found)
    if as_json:
        click.echo(what.model_dump_json(indent=2))
        return DONE
    stdout().print(importance_table(what))
    click.echo(f"of {what.trials} trials that finished all their folds")
    click.echo(f"PED-ANOVA: what sets the best {what.best} apart; fANOVA: where the variance comes from")
    return DONE


@click.command("report")
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write it [report.html, in the study's folder]; what is there is replaced.",
)
@everywhere
@click.pass_obj
def study_report(everywhere: Everywhere, /, name: str, out: Path | None) -> int:
    """Write a page about study NAME: one HTML file that a browser reads without a network, and that names no patient."""
    if out is not None and not out.absolute().parent.is_dir():
        raise click.BadParameter(f"{out.absolute().parent} is no folder", param_hint="--out")
    _, found = everywhere.study(name, "study")
    from hpo.report.page import write_page

    path = found.folder.path / "report.html" if out is None else out
    if out is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    write_page(found, path)
    click.echo(str(path))
    return DONE

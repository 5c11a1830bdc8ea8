"""
The program `mammography`: its root, and how every failure becomes an exit code.

Only this module and `hpo/commands/` print and pick exit codes. Commands import what they need when they run, so that
`--help` answers at once and `study status` never loads torch.
"""

from __future__ import annotations

import atexit
import gc
import os
import re
import sys
from typing import NoReturn

import click

from hpo.commands.data import data
from hpo.commands.database import db
from hpo.commands.options import everywhere
from hpo.commands.searching import demo, launch, replay, worker
from hpo.commands.serving import dashboard, metrics
from hpo.commands.speech import DONE, FAILED, INTERRUPTED, WRONG_INPUT, exit_code, on_purpose, plain, say
from hpo.commands.study import study
from hpo.commands.training import TAKE_A_LONE_DASH, embed, train_density

_OTHERS = 0o007
"""The rights of others, as a umask takes them away."""
_PASSWORD = re.compile(r"(://[^:]*):.*@", re.DOTALL)
"""Of a URL, up to the last @: a password that nobody has encoded may hold some."""
_PARAMETERS = re.compile(r"(://[^?]*\?).*", re.DOTALL)
"""Of a URL: the driver takes passwords among them too."""


# Without a command click would squeeze its whole help into what is one line for us.
@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@everywhere
def mammography() -> None:
    """Hyperparameter search for mammography classifiers. Research software, not for clinical use."""


for command in (train_density, embed, data, study, worker, launch, replay, demo, dashboard, metrics, db):
    mammography.add_command(command)


def run(arguments: list[str]) -> int:
    """Return the exit code of a command line; every failure on purpose is one line on standard error."""
    try:
        if TAKE_A_LONE_DASH & set(arguments):
            arguments = [argument for argument in arguments if argument != "--"]
        with mammography.make_context("mammography", arguments) as context:
            return mammography.invoke(context) or DONE
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.ClickException as error:
        return say(error.format_message(), WRONG_INPUT)
    except on_purpose() as error:
        return say(plain(error), exit_code(error))


def without_passwords(argument: str) -> str:
    """Return *argument*; where it is a URL, without what is or may be a password."""
    return _PARAMETERS.sub(r"\1***", _PASSWORD.sub(r"\1:***@", argument))


def hide_passwords(arguments: list[str]) -> None:
    """Change what the list of processes shows of this one, where *arguments* hold a password: anybody may read that list."""
    shown = [without_passwords(argument) for argument in arguments]
    if shown != arguments:
        from setproctitle import setproctitle  # noqa: PLC0415 - a password on the command line is rare, and --help fast

        setproctitle(" ".join(["mammography", *shown]))


def close_to_others() -> None:
    """Let files and folders that are made from now on be no business of other users; the group's rights are the umask's."""
    os.umask(os.umask(_OTHERS) | _OTHERS)


def leave(code: int) -> NoReturn:
    """
    End this process with *code*, after what was registered for its end.

    Python would then take half a million objects of torch apart, for a second or two: too long for who is asked to stop.
    """
    atexit._run_exitfuncs()  # noqa: SLF001 - there is no public name for it
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # a full disk, a pipe that nobody reads: not everything was said
        code = code or FAILED
    os._exit(code)


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    hide_passwords(sys.argv[1:])
    close_to_others()
    # Half a million objects are made at the start and stay: looking through them every 700 costs a second.
    gc.set_threshold(5_000)
    leave(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

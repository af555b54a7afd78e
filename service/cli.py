"""The command line: `recurra serve | train | translate | score | data | models | jobs | bench`.

Each command, a module of `service.commands`, turns its arguments into one call of the packages and prints what comes
back. What goes wrong for a reason that the user can mend is one line on standard error:

    exit status 1    a file, checkpoint or port cannot be used
    exit status 2    an argument or a setting is wrong
    130, 141         Ctrl-C; whoever read our output left
"""

from __future__ import annotations

import signal
import sys

import typer

from model.errors import InvalidValue, RecurraError
from service.commands import bench, data, jobs, models
from service.commands.score import score
from service.commands.serve import serve
from service.commands.train import train
from service.commands.translate import translate
from service.settings import SettingsError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Self-hosted translation on recurrent networks.",
)
for command in (serve, translate, score, train):
    app.command()(command)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.add_typer(jobs.app, name="jobs")
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Entry point of the `recurra` command."""
    if hasattr(signal, "SIGPIPE") and sys.argv[1:2] != ["serve"]:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `recurra translate < file | head` ends quietly, as filters do
    try:
        app()
    except RecurraError as exc:
        print(f"recurra: {exc}", file=sys.stderr)
        raise SystemExit(2 if isinstance(exc, (InvalidValue, SettingsError)) else 1) from None

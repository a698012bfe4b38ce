"""The program around the commands: its name, its consoles, its exit codes, its one-line errors."""

from __future__ import annotations

import errno
import os
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from unetfast.errors import RankError, ToldError, UserError

if TYPE_CHECKING:
    from rich.console import Console


class WholeSentences(TyperGroup):
    """Lists each command with its whole first sentence, which the plain help would cut off at the edge of the screen."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        shown = {name: self.commands[name] for name in self.list_commands(ctx) if not self.commands[name].hidden}
        rows = [(name, command.get_short_help_str(limit=1000)) for name, command in shown.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


# plain help: what draws the boxes of typer's own takes as long to import as all the rest
app = typer.Typer(
    name="unetfast",
    cls=WholeSentences,
    help="From a folder of images and masks to a trained U-Net: shard, inspect, train, eval, predict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


SPEAKER_S = 20.0  # in which the process that speaks has said why the command is refused


def is_one_of_several() -> bool:
    """Say whether torchrun started this process as one of several that train together."""
    return os.environ.get("WORLD_SIZE", "1") != "1"


def notes_console() -> Console:
    """Return a console on stderr, for progress and notes; of several processes the first one alone has a voice."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=is_one_of_several() and os.environ.get("RANK") != "0")


def results_console() -> Console:
    """A console on stdout. Where its reader goes away, rich would exit with 1, which says that something is wrong."""
    from rich.console import Console

    class Results(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Results(highlight=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"unetfast {version('unetfast')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    if is_one_of_several() and context.invoked_subcommand != "train":
        raise UserError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: `unetfast {context.invoked_subcommand}` runs in one process; torchrun is "
            "for `unetfast train` alone"
        )


# what typer raises for an unknown command or option; it has no public name there, as typer brings its own copy of click
_UsageError: Any = typer.BadParameter.__base__


def _refuse_usage(error: Any) -> NoReturn:
    # "Value error, " is how the check of a choice begins; what was wrong comes behind it
    message = " ".join(error.format_message().replace("Value error, ", "").split())
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        command = error.ctx.info_name if error.ctx is not None and error.ctx.parent is not None else ""
        hint = " ".join(("unetfast", *command.split(), "--help"))
        _say_error(f"{message.rstrip('.')}; see `{hint}`")
    sys.exit(2)


def _say_error(text: str) -> None:
    """Print one line; of several processes that have not met yet, the first one on each machine."""
    if not is_one_of_several() or os.environ.get("LOCAL_RANK", "0") == "0":
        sys.stderr.write(f"error: {text}\n")
    else:  # torchrun stops all as soon as one ends, which must not cut off the one that speaks
        time.sleep(SPEAKER_S)


def _leave_at_once(code: int) -> NoReturn:
    """End one of several processes without tidying up.

    A GPU that waits for a process that is gone would never let it end; and where all went well, gloo's threads can outlive the
    process group and abort the interpreter as it shuts down ("terminate called without an active exception").
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; a `UserError` becomes one message on stderr and exit code 2."""
    # read once, when torch is first imported: OpenMP threads that wait must not spin against the loader's threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if is_one_of_several():  # what torch's C++ says of a lost process fills the screen; who is lost is said by us
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # what Pillow warns of is either harmless or an error of ours that names the file
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        # the exit code of a command that raised Exit (or of --help), else what the command returned: nothing
        code = app(arguments, standalone_mode=False)
        if is_one_of_several():
            _leave_at_once(code or 0)
        sys.exit(code)
    except _UsageError as error:
        _refuse_usage(error)
    except ToldError:  # another process of the run says it
        _leave_at_once(2)
    except RankError as error:  # the processes have agreed that this one says it
        sys.stderr.write(f"error: {error}\n")
        _leave_at_once(2)
    except UserError as error:
        _say_error(str(error))
        sys.exit(2)
    except BrokenPipeError:
        # the reader of our output went away (`unetfast inspect shards/ | head`): not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write(f"error: {error.filename or 'the output'}: {error.strerror}; free some space\n")
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        sys.stderr.write("stopped\n")
        sys.exit(130)
    except Exception:
        if not is_one_of_several():
            raise
        traceback.print_exc()
        _leave_at_once(1)

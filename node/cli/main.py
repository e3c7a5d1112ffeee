"""`potluck` itself: the table of verbs, each imported only when it is used, and the one place that prints errors.

Nothing here imports torch: `potluck --help` must answer at once.
"""

from __future__ import annotations

import importlib
import sys
import traceback

import click

from node.core.errors import NodeError
from node.core.text import printable_lines

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("node.cli.demo", "See it work: two nodes on this machine train a small model together."),
    "init": ("node.cli.init", "Write a commented recipe to start from."),
    "plan": ("node.cli.plan", "Say what a recipe needs on this machine, before anything is loaded."),
    "start": ("node.cli.start", "Found a swarm and train; prints the line that lets others join."),
    "join": ("node.cli.join", "Join a swarm by the address of any of its nodes, and train along."),
    "status": ("node.cli.status", "Show the swarm: peers, speed, rounds, loss, what this node gave."),
    "stop": ("node.cli.stop", "Let the running node save, leave and end."),
    "eval": ("node.cli.evaluate", "Held-out loss and perplexity of the base model and of the adapter."),
    "chat": ("node.cli.chat", "Talk to the result in the terminal."),
    "export": ("node.cli.export", "Write the adapter as files that other programs read."),
    "bootstrap": ("node.cli.bootstrap", "Be a public meeting point for swarms: no GPU, no model."),
    "coordinator": ("coordinator.operator_cli", "Serve the optional helper of swarms, and steer their runs."),
    "doctor": ("node.cli.doctor", "Examine this machine: what keeps it from training or from being reached."),
    "config": ("node.cli.config", "Show a recipe as it is understood, or the schema of all keys."),
}

_SECTIONS = (
    ("First steps", ("demo", "init", "plan", "doctor")),
    ("Train", ("start", "join", "status", "stop")),
    ("Use the result", ("eval", "chat", "export")),
    ("More", ("bootstrap", "coordinator", "config")),
)
_EXIT_BUG = 70
_EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, and listed without being imported."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the verbs in the order in which a person meets them."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one verb."""
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(VERBS[cmd_name][0])
        command = module.command
        assert isinstance(command, click.Command), f"{cmd_name} is not a click command"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest the nearest verb for a mistyped one."""
        import difflib

        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else " `potluck --help` lists the commands."
            raise click.UsageError(f"There is no command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the verbs in sections."""
        for title, verbs in _SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(verb, VERBS[verb][1]) for verb in verbs])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 ok, 2 wrong usage or recipe, 3 no node running, 4 no peer reachable, 5 bad data, "
    "6 too little memory or disk, 7 another run than the swarm's, 8 model, 9 checkpoint, 70 a bug, 130 interrupted.",
)
@click.version_option(package_name="potluck", prog_name="potluck")
def root() -> None:
    """Potluck: everyone brings a GPU.

    Several computers train one LoRA adapter on a 4-bit model together, each on its own data, with no server.

    \b
    On one machine:   potluck start recipe.yaml --data mine.jsonl
    On the next one:  potluck join /ip4/192.168.1.20/tcp/4040/p2p/Qm… --data theirs.jsonl
    """


def main() -> None:
    """Run the command line and end the process with the exit code that the errors' table gives."""
    try:
        code = root.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except NodeError as error:
        _say_error(error.message, error.hint)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(_EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception:  # noqa: BLE001  (the last stop of a bug: show it whole and say what it is)
        traceback.print_exc()
        _say_error("This is a bug in Potluck.", "Please report it together with the lines above.")
        sys.exit(_EXIT_BUG)


def _say_error(message: str, hint: str) -> None:
    # a recipe has one complaint a line; what else stands in an error may be a stranger's
    message, hint = printable_lines(message), printable_lines(hint)
    click.echo(f"{click.style('error:', fg='red', bold=True)} {message}", err=True)
    if hint:
        click.echo(f"{click.style('hint:', fg='cyan')} {hint}", err=True)

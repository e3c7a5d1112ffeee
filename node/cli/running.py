"""Run a node in the foreground: its output, its signals, its last words. Shared by `start`, `join` and `demo`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from node.cli.common import home_option, is_terminal, many_imports, model_cache

F = TypeVar("F", bound=Callable[..., Any])
_EXIT_INTERRUPTED = 130
METRICS_LISTEN = "127.0.0.1:4042"

_OPTIONS = (
    click.option(
        "--data",
        "data",
        type=click.Path(path_type=Path),
        multiple=True,
        help="This node's own data: jsonl, json, csv, parquet, text, or a folder of them. May be given several "
        "times. It never leaves this machine.",
    ),
    home_option,
    click.option(
        "--listen",
        multiple=True,
        metavar="MULTIADDR",
        help="Listen here, such as /ip4/0.0.0.0/tcp/4040. Default: all interfaces, port 4040 or a free one.",
    ),
    click.option(
        "--announce", multiple=True, metavar="MULTIADDR", help="Tell others to dial this instead (behind a router)."
    ),
    click.option(
        "--bootstrap",
        multiple=True,
        metavar="MULTIADDR",
        help="A public meeting point (`potluck bootstrap`): peers find each other there, and if it relays, this node "
        "needs no open port.",
    ),
    click.option("--base-model", help="Where the base model is on this machine: a folder, a .gguf file or a hub name."),
    click.option("--device", help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--stages",
        metavar="auto|all|none|A-B",
        help="Parts of the model to hold, where the run cuts it. auto: what the swarm lacks most and fits here; none: "
        "only train, through others; 0-3: these.",
    ),
    click.option(
        "--max-memory",
        "max_memory_gb",
        type=click.FloatRange(0, 1e6, min_open=True),
        metavar="GB",
        help="Use no more of the device's memory than this.",
    ),
    click.option(
        "--lend",
        is_flag=True,
        help="Train on no data here: hold parts of the model for others, which send hidden states, never text.",
    ),
    click.option(
        "--coordinator",
        metavar="ADDRESS|none",
        help="Let the coordinator at this address help: peers find each other through it and it shows the swarm. "
        "Remembered for the run; training goes on without it.",
    ),
    click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads to train with."),
    click.option("--name", help="This node's name on the others' screens."),
    click.option(
        "--lan/--no-lan",
        default=None,
        help="Tell the local network what is trained here (run, model, number of peers), so that `potluck join` there "
        "needs no address. Default: yes, or `lan` in config.toml.",
    ),
    click.option("--fresh", is_flag=True, help="Begin the run anew; what there was is moved aside, not deleted."),
    click.option(
        "--dashboard",
        is_flag=False,
        flag_value="127.0.0.1:4041",
        metavar="[HOST:PORT]",
        help="Serve a web page of the swarm: loss curves, peers, rounds. For this machine alone (port 4041) unless a "
        "host is given; the address that is printed contains the key to it.",
    ),
    click.option(
        "--metrics",
        is_flag=False,
        flag_value=METRICS_LISTEN,
        metavar="[HOST:PORT]",
        help="Let Prometheus read this node's metrics. For this machine alone (port 4042) unless a host is given; "
        "nothing is encrypted there.",
    ),
    click.option(
        "--track",
        type=click.Choice(["tensorboard", "wandb", "trackio"]),
        multiple=True,
        help="Give this node's losses and figures to a tracker, too: never text, nor names of files or peers. wandb "
        "sends them to its servers (WANDB_MODE=offline: not). May be given several times.",
    ),
    click.option(
        "--log",
        "log_format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="json prints every event as one line of JSON.",
    ),
    click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
)


def node_options(function: F) -> F:
    """Add the options that founding and joining share."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def run_node(
    *,
    recipe: Any,
    address: str | None,
    data: Sequence[Path],
    home: Path,
    base_model: str | None,
    fresh: bool,
    lend: bool,
    dashboard: str | None,
    log_format: str,
    quiet: bool,
    resume_command: str,
    **machine: Any,
) -> None:
    """Run a node until it is finished or stopped, then end the process.

    Args:
        recipe: The resolved recipe, or None.
        address: The address to join, or None to found.
        data: The owner's files.
        home: The node's home.
        base_model: Where the base model is on this machine.
        fresh: Begin the run anew.
        lend: Hold stages for others, and train on no data.
        dashboard: Where to serve the web page, or None.
        log_format: `text` or `json`.
        quiet: Print errors only.
        resume_command: What the person types to go on later.
        machine: Fields of the machine's settings from the command line.
    """
    # gRPC would print about every child process that is started beside it
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    with many_imports():
        from node.cli.trackers import load_trackers
        from node.config.local import load_local
        from node.enlist import Request
        from node.host.home import Home

    if lend and data:
        raise click.UsageError("--lend and --data exclude each other: with data, this node lends its stages anyway.")
    settings = load_local(None, **machine)
    trackers = load_trackers(settings.track)
    place = Home(home)
    place.acquire()
    try:
        request = Request(
            recipe=recipe,
            address=address,
            data=tuple(data),
            base_model=base_model,
            fresh=fresh,
            lend=lend,
            model_cache=model_cache(),
        )
        asyncio.run(
            _live_and_end(
                place, settings, request, trackers, log_format, dashboard, quiet=quiet, resume_command=resume_command
            )
        )
    finally:
        place.release()


async def _live_and_end(place: Any, *arguments: Any, **options: Any) -> None:
    """End the process from within the loop, which would wait for the threads of an abandoned load."""
    code = await _live(place, *arguments, **options)
    place.release()
    sys.stdout.flush()
    os._exit(code)


async def _live(
    place: Any,
    settings: Any,
    request: Any,
    trackers: Any,
    log_format: str,
    dashboard: str | None,
    *,
    quiet: bool,
    resume_command: str,
) -> int:
    with many_imports():
        from rich.console import Console

        from node.control.server import ControlServer
        from node.core.events import EventBus
        from node.core.text import printable_lines
        from node.daemon import Daemon
        from node.observe.attached import attached
        from node.observe.log import file_sink, json_sink
        from node.observe.progress import LiveProgress, PlainProgress
        from node.observe.trackers import tracking

    events = EventBus()
    events.subscribe(file_sink(place.log_path))
    is_json = log_format == "json"
    console = Console()

    def say(line: str) -> None:
        if not (is_json or quiet):
            console.print(printable_lines(line), markup=False, highlight=False, soft_wrap=True)

    daemon = Daemon(home=place, settings=settings, request=request, events=events, say=say)
    _leave_on_signals(daemon.request_stop, say)
    has_screen = is_terminal() and not is_json and not quiet
    events.subscribe(_Introduction(daemon.status, say, columns=console.width if has_screen else 0))
    if is_json:
        events.subscribe(json_sink(sys.stdout))
        sys.stdout = sys.stderr  # what a library prints is no event
    control = ControlServer(place.path, daemon)
    await control.start()
    try:
        async with (
            attached(settings, daemon.status, events, say),
            tracking(trackers, daemon.status, events, place.path),
            _page(dashboard, daemon.status, events, place.path, say),
        ):
            if has_screen:
                with LiveProgress(daemon.status, console) as panel:
                    events.subscribe(panel)
                    finished = await daemon.run()
            else:
                if not is_json and not quiet:
                    events.subscribe(PlainProgress(daemon.status, say))
                finished = await daemon.run()
    finally:
        await control.close()
    version = daemon.status().version
    if finished:
        say(f"Finished: step {version} is saved under {place.path}.")
        say(f"Get the adapter:  potluck export peft --home {place.path} --output adapter")
    else:
        say(f"Stopped: step {version} is saved under {place.path}.")
        say(f"Go on later with:  {resume_command}")
    return 0


def _page(listen: str | None, *arguments: Any) -> contextlib.AbstractAsyncContextManager[None]:
    """Return the web page, for as long as it is entered, or nothing if none is asked for."""
    if listen is None:
        return contextlib.nullcontext()
    from node.dashboard import dashboard

    return dashboard(listen, *arguments)


class _Introduction:
    """Says who this node is and how to invite others, once it listens."""

    def __init__(self, status: Callable[[], Any], say: Callable[[str], None], *, columns: int) -> None:
        """Set up; `columns` is the terminal's width, 0 where no person looks."""
        self._status = status
        self._say = say
        self._columns = columns

    def __call__(self, event: Any) -> None:
        from node.core.events import Listening

        if not isinstance(event, Listening):
            return
        status = self._status()
        run = f"{status.run_name}: " if status.run_name else ""
        self._say(f"This node is {status.name} ({event.peer_id}).")
        self._say(f"It trains {run}{status.base_model}, {status.max_steps} steps, run {status.fingerprint[:12]}.")
        self._say("Bring in another machine with:\n")
        line = f"potluck join {event.addresses[0]}"
        self._say(f"{line}\n")
        if self._columns:
            from node.observe.qr import qr_code

            self._say(qr_code(line, columns=self._columns))


def _leave_on_signals(request_stop: Callable[[], None], say: Callable[[str], None]) -> None:
    """The first Ctrl-C or SIGTERM leaves cleanly, the second quits at once; a terminal that is closed leaves cleanly.

    A shell that goes and its terminal both send SIGHUP, so that one counts once. Under `nohup` it stays ignored.
    """
    asked = False

    def on_signal(number: signal.Signals) -> None:
        nonlocal asked
        if number is signal.SIGHUP:
            _let_go_of_terminal()
        if asked and number is not signal.SIGHUP:
            os._exit(_EXIT_INTERRUPTED)
        if not asked:
            asked = True
            request_stop()
            say("Saving and leaving; once more to quit at once.")

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, on_signal, number)


def _let_go_of_terminal() -> None:
    """Print to nowhere what would go to a terminal that is no more: each print would fail."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)

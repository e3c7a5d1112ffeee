"""`potluck coordinator`: serve one, and say what its runs are to do."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from coordinator.server import Settings

DEFAULT_PORT, DASHBOARD_LISTEN, METRICS_LISTEN = 7300, "127.0.0.1:7301", "127.0.0.1:7302"
_file = click.Path(path_type=Path, dir_okay=False)
_state_option = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path.home() / ".local" / "share" / "potluck-coordinator",
    show_default="~/.local/share/potluck-coordinator",
    help="Folder of its memory, its tokens and its certificate.",
)
_operator_options = (
    _state_option,
    click.option(
        "--address",
        envvar="POTLUCK_OPERATOR",
        help="The operator's address, where the coordinator is not on this machine. Better in the variable "
        "POTLUCK_OPERATOR: it is a secret.",
    ),
)


@click.group("coordinator")
def command() -> None:
    """An optional helper for a swarm: peers find each other through it, rounds start sooner, and it can be watched.

    A swarm works without it and outlives it. It needs no GPU and sees no text, no tokens and no adapters: only who is
    there, how fast and how far.

    \b
    potluck coordinator serve
    potluck start recipe.yaml --data mine.jsonl --coordinator ADDRESS
    potluck join ADDRESS --data theirs.jsonl
    """


@command.command("serve")
@click.option("--listen", default=f"0.0.0.0:{DEFAULT_PORT}", show_default=True, metavar="HOST:PORT")
@click.option("--public-address", metavar="HOST:PORT", help="What nodes dial, if it is another (behind a router).")
@_state_option
@click.option("--insecure", is_flag=True, help="Plain text: nothing is encrypted. Without it only with TLS.")
@click.option(
    "--cert", type=click.Path(path_type=Path, dir_okay=False), help="Your own certificate with its chain (PEM)."
)
@click.option("--key", type=click.Path(path_type=Path, dir_okay=False), help="Its key (PEM).")
@click.option(
    "--address-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the address for nodes there, too, for scripts that start some.",
)
@click.option(
    "--dashboard",
    is_flag=False,
    flag_value=DASHBOARD_LISTEN,
    metavar="[HOST:PORT]",
    help="Serve a web page of all runs. For this machine alone (port 7301) unless a host is given; the address that is "
    "printed contains the key to it.",
)
@click.option(
    "--metrics",
    is_flag=False,
    flag_value=METRICS_LISTEN,
    metavar="[HOST:PORT]",
    help="Let Prometheus read this coordinator's metrics. For this machine alone (port 7302) unless a host is given.",
)
def serve(
    listen: str,
    public_address: str | None,
    state: Path,
    insecure: bool,
    cert: Path | None,
    key: Path | None,
    address_file: Path | None,
    dashboard: str | None,
    metrics: str | None,
) -> None:
    """Serve until Ctrl-C; what it knows is kept for the next time.

    Prints the address that nodes take with `--coordinator` or `potluck join`. It contains a token and the fingerprint
    of the certificate: whoever has it can see the swarm's members and enter.
    """
    from coordinator.listen import WrongAddress, parse_listen
    from coordinator.server import Settings

    try:
        host, port = parse_listen(listen)
        public = parse_listen(public_address) if public_address else None
        certificate = _own_certificate(cert, key)
    except (WrongAddress, OSError, ValueError) as error:
        _fail(str(error))
    if insecure and certificate:
        _fail("--insecure and --cert exclude each other")
    names_itself = certificate is None
    settings = Settings(state, host, port, public, insecure, certificate, names_itself, dashboard, metrics)
    _run(_serve(settings, address_file))


def _own_certificate(cert: Path | None, key: Path | None) -> Any:
    from coordinator.tls import Certificate

    if (cert is None) != (key is None):
        raise ValueError("--cert and --key go together")
    return Certificate.read(cert, key) if cert is not None and key is not None else None


async def _serve(settings: Settings, address_file: Path | None) -> None:
    from coordinator.secret_files import keep_secret
    from coordinator.server import CannotServe, serving
    from coordinator.store import StoreError

    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        async with serving(settings, click.echo) as here:
            if address_file is not None:
                keep_secret(address_file, str(here.address).encode())
            click.echo("This coordinator helps swarms whose nodes know its address:\n")
            click.echo(f"{here.address}\n")
            click.echo("potluck start RECIPE --coordinator ADDRESS    founds a run here")
            click.echo("potluck join ADDRESS                          enters it from another machine")
            click.echo(f"potluck coordinator runs --state {settings.state}    shows and changes what there is")
            sys.stdout.flush()
            await ended.wait()
            click.echo("Ending. Nodes train on without this coordinator, and come back when it does.")
    except (CannotServe, StoreError, OSError) as error:
        _fail(str(error))


def operator_verb(name: str, **arguments: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a verb of an async function that is given a stub of the coordinator and its metadata."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def call(state: Path, address: str | None, **options: Any) -> None:
            _run(_as_operator(state, address, functools.partial(function, **options)))

        verb: Any = call
        for option in reversed(_operator_options):
            verb = option(verb)
        return command.command(name, **arguments)(verb)

    return wrap


async def _as_operator(state: Path, address: str | None, work: Callable[..., Any]) -> None:
    import grpc.aio

    from coordinator.address import CoordinatorAddress
    from coordinator.client import CoordinatorError, open_channel

    try:
        text = address or (state / "operator.address").read_text()
        parsed = CoordinatorAddress.parse(text)
    except OSError:
        _fail(
            f"No coordinator has served from {state}. Give its folder with --state, or the operator's address, which "
            "is in the file operator.address of that folder, in POTLUCK_OPERATOR."
        )
    except ValueError as error:
        _fail(str(error))
    try:
        channel = await open_channel(parsed)
        async with channel:
            await work(channel, (("authorization", f"bearer {parsed.token}"),))
    except CoordinatorError as error:
        _fail(f"The coordinator at {parsed.target} cannot be asked: {error}. Is it running?")
    except grpc.aio.AioRpcError as error:
        _fail(f"The coordinator at {parsed.target} says: {error.details() or error.code().name.lower()}.")


def _run(work: Any) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(work)


def _fail(message: str) -> NoReturn:
    raise click.ClickException(message)

"""`potluck chat`: talk to the result in the terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from node.cli.common import home_option, json_option, many_imports, print_json, quiet_option
from node.core.errors import ConfigError

if TYPE_CHECKING:
    from node.data.formats import Message

BASE, ADAPTER = "base", "adapter"
_TITLES = {BASE: "base model", ADAPTER: "with the adapter"}
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SPARE_SHARE = 0.25
"""Of the free memory, what may be spent to answer faster."""

Ask = Callable[[str, "list[Message]"], Iterator[str]]
"""Streams the answer of a voice (base or adapter) to a conversation."""


@click.command("chat")
@home_option
@click.option("--prompt", "-p", help="Answer this and end; without it, talk until Ctrl-D.")
@click.option("--compare", is_flag=True, help="Answer with the base model and with the adapter.")
@click.option("--base", "base_only", is_flag=True, help="Answer with the base model alone.")
@click.option("--max-tokens", type=click.IntRange(1, 32768), help="Longest answer.  [default: 120, talking 1024]")
@click.option(
    "--temperature",
    type=click.FloatRange(0.0, 5.0),
    default=0.0,
    show_default=True,
    help="0 takes the likeliest word each time; about 0.7 varies.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@json_option
@quiet_option
def command(
    home: Path,
    prompt: str | None,
    compare: bool,
    base_only: bool,
    max_tokens: int | None,
    temperature: float,
    device: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Talk to the result in the terminal.

    Uses what the run has learned so far, while the node runs and after it. Nothing leaves this machine.
    """
    if compare and base_only:
        raise click.UsageError("--compare and --base exclude each other.")
    voices = (BASE, ADAPTER) if compare else (BASE,) if base_only else (ADAPTER,)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().strip()
    if prompt is None and as_json:
        raise click.UsageError("--json needs --prompt, or the prompt on the standard input.")
    if prompt is not None and not prompt.strip():
        raise click.UsageError("The prompt is empty.")
    ask = _open(home, device, max_tokens or (1024 if prompt is None else 120), temperature)
    if prompt is None:
        _talk(ask, voices)
    elif as_json:
        print_json({voice: "".join(ask(voice, _conversation(prompt))) for voice in voices})
    else:
        for voice in voices:
            _show(voice, ask(voice, _conversation(prompt)), with_title=compare and not quiet)


def harmless(text: str) -> str:
    """Return `text` without what could move the cursor, recolour the terminal or reorder a line."""
    return "".join(
        char if char in "\n\t" or not (unicodedata.category(char) == "Cc" or char in _BIDI) else "\ufffd"
        for char in text
    )


def _open(home: Path, device: str, max_tokens: int, temperature: float) -> Ask:
    """Load the result under `home` once, for both voices."""
    with many_imports():
        from node.data.formats import RowError
        from node.data.templates import ChatRenderer
        from node.evaluation import open_model
        from node.host.devices import describe, pick_device
        from node.model.chat import ChatModel
        from node.model.source import load_tokenizer
        from node.result import open_result

    result = open_result(home)
    place = pick_device(device)
    tokenizer = load_tokenizer(result.base_folder)
    spare_bytes = int(_SPARE_SHARE * describe(place).free_bytes)
    model = ChatModel(open_model(result, home, place), tokenizer, spare_bytes=spare_bytes)
    renderer = ChatRenderer(tokenizer, result.recipe.chat_template)

    def ask(voice: str, messages: list[Message]) -> Iterator[str]:
        try:
            text = renderer.prompt(messages)
        except RowError as error:
            raise ConfigError(str(error), hint="Set chat_template: chatml in the recipe of the next run.") from error
        pieces = model.reply(text, adapter=voice == ADAPTER, max_new_tokens=max_tokens, temperature=temperature)
        return map(harmless, pieces)

    return ask


def _conversation(prompt: str) -> list[Message]:
    from node.data.formats import Message

    return [Message("user", prompt)]


def _talk(ask: Ask, voices: tuple[str, ...]) -> None:
    """Answer line by line until the end of the input; Ctrl-C stops an answer."""
    from node.data.formats import Message

    click.echo("Ctrl-D ends, Ctrl-C stops an answer.", err=True)
    # Each voice goes on with what it has said itself.
    told: dict[str, list[Message]] = {voice: [] for voice in voices}
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        if not line:
            continue
        for voice in voices:
            messages = [*told[voice], Message("user", line)]
            answer = _show(voice, ask(voice, messages), with_title=len(voices) > 1)
            told[voice] = [*messages, Message("assistant", answer)]


def _show(voice: str, pieces: Iterable[str], *, with_title: bool) -> str:
    """Print an answer as it comes; return what was shown of it."""
    if with_title:
        click.secho(f"{_TITLES[voice]}:", bold=True)
    shown = ""
    try:
        for piece in pieces:
            click.echo(piece, nl=False)
            sys.stdout.flush()
            shown += piece
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    click.echo("\n" if with_title else "")
    return shown

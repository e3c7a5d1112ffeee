"""`potluck chat`, as far as it goes without a model."""

import pytest
from click.testing import CliRunner

from node.cli.chat import command, harmless


def test_answer_cannot_move_the_cursor_or_turn_a_line_around():
    evil = "red \x1b[31m, up \x9b2A, bell \x07, back \r\b, turned \u202eabc"

    assert harmless(evil) == "red \ufffd[31m, up \ufffd2A, bell \ufffd, back \ufffd\ufffd, turned \ufffdabc"
    assert harmless("Grüße, 世界 🎉\n\tdone") == "Grüße, 世界 🎉\n\tdone"


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (["--compare", "--base", "--prompt", "x"], "", "exclude each other"),
        (["--prompt", "  "], "", "prompt is empty"),
        ([], "\n", "prompt is empty"),
        (["--prompt", "x", "--temperature", "9"], "", "temperature"),
    ],
)
def test_wrong_use_is_refused(tmp_path, arguments, stdin, says):
    run = CliRunner().invoke(command, ["--home", str(tmp_path), *arguments], input=stdin)

    assert run.exit_code == 2
    assert says in run.output

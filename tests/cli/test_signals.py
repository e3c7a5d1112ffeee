"""What a node makes of signals."""

import asyncio
import os
import signal

import pytest

from node.cli import running

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture
def sent(monkeypatch):
    """Send signals to this process; return how often the node was asked to leave, and how it ended."""
    # the suite may itself run where some of them are ignored, as under `nohup`
    before = {number: signal.signal(number, signal.SIG_DFL) for number in HANDLED}

    def send(*numbers, ignored=()):
        asked, said, ended = [], [], []
        monkeypatch.setattr(running.os, "_exit", ended.append)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

        async def live():
            running._leave_on_signals(lambda: asked.append(1), said.append)
            for number in numbers:
                os.kill(os.getpid(), number)
                await asyncio.sleep(0.02)

        asyncio.run(live())
        return len(asked), ended

    yield send
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("numbers", "ended"),
    [
        ((signal.SIGINT,), []),
        ((signal.SIGTERM,), []),
        ((signal.SIGHUP,), []),
        ((signal.SIGHUP, signal.SIGHUP), []),
        ((signal.SIGINT, signal.SIGHUP), []),
        ((signal.SIGINT, signal.SIGINT), [130]),
        ((signal.SIGHUP, signal.SIGTERM), [130]),
    ],
)
def test_the_first_signal_leaves_and_only_a_second_of_a_persons_own_quits_at_once(sent, numbers, ended):
    assert sent(*numbers) == (1, ended)


def test_a_node_under_nohup_outlives_its_terminal(sent):
    assert sent(signal.SIGHUP, ignored=[signal.SIGHUP]) == (0, [])

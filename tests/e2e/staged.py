"""What the tests of cut runs look at."""

from node.host.home import Home
from node.training.checkpoint import CheckpointStore


def checkpoint(home):
    """The latest checkpoint in a home."""
    folder = Home(home).current_run()
    store = CheckpointStore(folder.checkpoints, read_only=True)
    return store.load_latest(folder.load_seal().seal.fingerprint)


def bits_of_stages(home):
    """By stage: adapter and moments in the latest checkpoint."""
    return dict(checkpoint(home).adapters)


def tokens_brought(*drivers):
    """Tokens of the microbatches that these drivers had finished when the last round opened that they stepped with.

    A microbatch that was done again after a fault is the same one.
    """
    total = 0
    for driver in drivers:
        events = list(driver.events)
        last_step = max(index for index, event in enumerate(events) if event["event"] == "Stepped")
        opened = max(index for index in range(last_step) if events[index]["event"] == "RoundStarted")
        done = {e["id"]: e["tokens"] for e in events[:opened] if e["event"] == "MicrobatchDone"}
        total += sum(done.values())
    return total

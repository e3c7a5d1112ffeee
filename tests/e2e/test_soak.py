"""Hours of churn among four small nodes: what grows, grows not for ever. The long form alone (`--soak`)."""

import csv
import itertools
import json
import os
import random
import statistics
import time

import psutil
import pytest
from churn.swarm import Swarm

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(4 * 3600)]
MINUTES = float(os.environ.get("POTLUCK_SOAK_MINUTES", "120"))
WARM_UP = 0.2
"""The part of the time that is not looked at."""
STEADY = 2
"""So many nodes are never killed, and measured."""
MEAN_S = 60.0
MAX_MB_PER_HOUR = 1.0


def sample(seats):
    """Yield (process, resident MB, descriptors, threads) of each steady node and of its network daemon."""
    for number, seat in enumerate(seats[:STEADY]):
        node = psutil.Process(seat.processes[-1].child.pid)
        for name, process in (
            ("node", node),
            *(("p2pd", child) for child in node.children() if child.name() == "p2pd"),
        ):
            with process.oneshot():
                yield f"{name} {number}", process.memory_info().rss / 1e6, process.num_fds(), process.num_threads()


def slope(times, values):
    """Return the median of the slopes of all pairs.

    Memory goes up and down by ten times what it may grow, and the samples near either end would pull a line of least
    squares up or down. Theil 1950; Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968.
    """
    pairs = itertools.combinations(zip(times, values, strict=True), 2)
    return statistics.median((v2 - v1) / (t2 - t1) for (t1, v1), (t2, v2) in pairs)


def test_hours_of_churn_leave_memory_descriptors_and_threads_as_they_were(
    random_model, tmp_path, recipe, data, start, is_soak, record_property, capsys
):
    if not is_soak:
        pytest.skip("long form only: two hours")
    names = [f"n{number}" for number in range(4)]
    run = (recipe(random_model(2), target=400, max_steps=1_000_000),)
    swarm = Swarm(start, tmp_path, run, [data(name) for name in names], [150.0] * 4)
    swarm.until_all_train()
    begin_s, samples = time.time(), []

    def look():
        if not samples or time.time() > samples[-1][0] + 15:
            samples.extend((time.time(), *one) for one in sample(swarm.seats))
            for seat in swarm.seats:
                for node in seat.processes:  # what a node says is read, and not kept for hours
                    node.events[:] = [e for e in node.events if e["event"] != "MicrobatchDone"]
        return time.time() > begin_s + 60 * MINUTES

    kills = swarm.disturb(random.Random(3), mean_s=MEAN_S, until=look, steady=STEADY)
    _, end = swarm.newest()
    logs = sorted(path.name for path in (tmp_path / "n0" / "logs").iterdir())
    with (tmp_path / "samples.csv").open("w") as file:
        csv.writer(file).writerows(samples)
    table = {}
    for name in dict.fromkeys(s[1] for s in samples):
        late = [s for s in samples if s[1] == name and s[0] > begin_s + WARM_UP * 60 * MINUTES]
        times = [(s[0] - begin_s) / 3600 for s in late]
        table[name] = {
            what: {
                "first": round(late[0][column], 1),
                "last": round(late[-1][column], 1),
                "an hour": round(slope(times, [s[column] for s in late]), 2),
            }
            for what, column in (("MB", 2), ("descriptors", 3), ("threads", 4))
        }
    figures = {"kills": kills, "steps": end.version, "logs": logs, **table}
    with capsys.disabled():
        print(f"\n{json.dumps(figures, indent=1)}")
    record_property("soak", json.dumps(figures))
    for name, row in table.items():
        assert row["MB"]["an hour"] <= MAX_MB_PER_HOUR, (name, row)
        assert abs(row["descriptors"]["an hour"]) < 2, (name, row)
        assert abs(row["threads"]["an hour"]) < 1, (name, row)
    codes = [seat.processes[-1].stop() for seat in swarm.seats if seat.is_training]
    assert not any(codes)

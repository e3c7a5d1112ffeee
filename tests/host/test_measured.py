"""Machines as a running swarm measured them."""

import pytest
from test_splitting import SHAPE_8B, task

from node.core.errors import ConfigError
from node.host.machines import LAN_MBIT_PER_S
from node.host.measured import Measured, machines_of
from node.host.splitting import best_pipeline

TASK = task(SHAPE_8B, stages=16)


def nodes():
    return [Measured("lender", 6, 4000.0, False), Measured("mine", 4, 2000.0, True), Measured("new", 6, 0.0, False)]


def test_a_plan_for_them_gives_each_what_it_announced_and_its_measured_speed():
    driver, *others = machines_of(TASK, nodes())
    pipeline = best_pipeline(TASK, driver, others)

    assert [machine.name for machine in (driver, *others)] == ["#1 (mine)", "#2 (lender)", "#3 (new)"]
    assert driver.up_mbit_per_s == LAN_MBIT_PER_S
    held = {place.machine.name: place.stop_stage - place.first_stage for place in pipeline.places}
    assert held == {"#1 (mine)": 4, "#2 (lender)": 6, "#3 (new)": 6}, "all the room there is"
    # a stage at 4000 tokens/s is six stages at a sixth of it; a node that was not measured counts as average
    speeds = {place.machine.name: 1 / place.compute_s for place in pipeline.places}
    assert speeds["#2 (lender)"] == pytest.approx(4000 / 6, rel=0.01)
    assert speeds["#3 (new)"] == pytest.approx(3000 / 6, rel=0.01)


def test_a_swarm_of_which_nothing_is_known_yet_says_what_is_missing():
    with pytest.raises(ConfigError, match="No node of the swarm has data"):
        machines_of(TASK, [Measured("lender", 6, 4000.0, False)])
    with pytest.raises(ConfigError, match="measured no speeds yet"):
        machines_of(TASK, [Measured("mine", 6, 0.0, True)])

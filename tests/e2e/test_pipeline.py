"""Nodes that hold different layers train one model: real processes, from the start to the end of a run."""

import pytest
from processes import potluck
from staged import bits_of_stages, tokens_brought

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_three_nodes_train_a_model_that_none_of_them_holds(smollm2, tmp_path, recipe, data, start):
    path = recipe("nobody/has-this", max_steps=7, target=128, extra="  stages: 3\n")
    local = ("--base-model", smollm2)
    anna = start(tmp_path / "a", "start", path, *local, "--data", data("anna"), "--stages", "0", "--name", "anna")
    address = anna.address
    # the lender has neither data nor the model's files
    empty = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    lend = ("join", address, "--lend", "--name", "bert")
    bert = start(tmp_path / "b", *lend, "--stages", "1", env=empty)
    cleo = start(tmp_path / "c", "join", address, *local, "--data", data("cleo"), "--stages", "2", "--name", "cleo")
    anna.wait_for(lambda n: len(n.shared_rounds(members=3)) >= 2, "two rounds of three")

    fetched = list((tmp_path / "cache" / "potluck" / "models" / "fetched").glob("*/*.safetensors"))
    assert fetched, "it took its tensors from its neighbours"
    assert sum(file.stat().st_size for file in fetched) < sum(f.stat().st_size for f in smollm2.glob("*.safetensors"))
    shown = potluck("status", "--home", tmp_path / "c", env={"COLUMNS": "160"})
    assert all(f"layers {layers}" in shown.stdout for layers in ("0-9", "10-19", "20-29")), shown.stdout

    assert bert.stop() == 0
    anna.wait_for(lambda n: any("layers 10-19" in e["message"] for e in n.of("StagesMissing")), "the missing layers")
    again = start(tmp_path / "b", *lend, env=empty)
    nodes = {"a": anna, "b": again, "c": cleo}
    codes = [node.child.wait(240) for node in nodes.values()]

    assert codes == [0, 0, 0], [node.errors[-3:] for node in nodes.values()]
    assert again.of("Holding")[0]["layers"] == "layers 10-19", "it goes on with the stage that it held"
    assert [max(node.hashes()) for node in nodes.values()] == [7, 7, 7]
    for node in (anna, cleo):
        assert [e["version"] for e in node.of("Evaluated")] == [7], "the result is scored over the stages"
    assert not again.of("Evaluated")
    ids = [[e["id"] for e in node.of("MicrobatchDone")] for node in (anna, cleo)]
    assert all(set(done) == set(range(max(done) + 1)) for done in ids), "no row was passed over"
    assert tokens_brought(anna, cleo) == sum(result["tokens"] for result in anna.shared_rounds())


TWICE = {"a": ("0", True), "b": ("0", True), "c": ("1", False), "d": ("1", False)}
OVERLAPPING = {"a": ("0-1", True), "b": ("1-2", True)}


@pytest.mark.parametrize(("layout", "num_stages"), [(TWICE, 2), (OVERLAPPING, 3)], ids=["2 x 2", "overlapping"])
def test_replicas_of_a_stage_end_with_the_same_bits(random_model, tmp_path, recipe, data, start, layout, num_stages):
    path = recipe(random_model(6), max_steps=4, target=1024, extra=f"  stages: {num_stages}\n")
    nodes, address = {}, None
    for name, (stages, drives) in layout.items():
        how = ("start", path) if address is None else ("join", address)
        what = ("--data", data(name)) if drives else ("--lend",)
        # half of the nodes compute on another SIMD path: their gradients differ, their adapters must not
        env = {"ATEN_CPU_CAPABILITY": "default"} if name in "bd" else None
        nodes[name] = start(tmp_path / name, *how, *what, "--stages", stages, "--name", name, env=env)
        address = address or nodes[name].address
    codes = [node.child.wait(200) for node in nodes.values()]

    assert codes == [0] * len(nodes), [node.errors[-3:] for node in nodes.values()]
    held = [bits_of_stages(tmp_path / name) for name in nodes]
    for stage in range(num_stages):
        bits = [stages[stage] for stages in held if stage in stages]
        assert len(bits) >= (1 if num_stages == 3 and stage != 1 else 2)
        assert len(set(bits)) == 1, f"replicas of stage {stage} hold different bits"
    drivers = [nodes[name] for name, (_, drives) in layout.items() if drives]
    rounds = nodes["a"].shared_rounds()
    assert len(rounds) == 4
    assert tokens_brought(*drivers) == sum(result["tokens"] for result in rounds)

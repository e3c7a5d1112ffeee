"""A node joins on a machine that has no base model, no hub and no Internet: its neighbours have it."""

import os

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def model(random_model):
    return random_model(2)


def test_a_node_without_the_model_takes_it_from_its_neighbours(model, tmp_path, recipe, data, start):
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    arguments = (
        "start",
        recipe("nobody/has-this", max_steps=100_000),
        "--base-model",
        model,
        "--data",
        data("anna"),
        "--name",
        "anna",
    )
    founder = start(tmp_path / "a", *arguments, env=nowhere)
    caches = {name: {**nowhere, "XDG_CACHE_HOME": str(tmp_path / f"cache-{name}")} for name in ("bert", "cleo")}

    bert = start(tmp_path / "b", "join", founder.address, "--data", data("bert"), "--name", "bert", env=caches["bert"])
    bert.wait_for(lambda n: len(n.shared_rounds()) >= 1, "a round with the founder")

    (folder,) = (tmp_path / "cache-bert" / "potluck" / "models" / "fetched").glob("*/")
    assert (folder / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert not list(folder.glob("*.part"))

    # the founder goes, and with it the only folder that was not fetched
    address = bert.address
    assert founder.stop() == 0
    os.rename(model, model.with_name("gone"))
    cleo = start(tmp_path / "c", "join", address, "--data", data("cleo"), "--name", "cleo", env=caches["cleo"])
    cleo.wait_for(lambda n: len(n.shared_rounds()) >= 1, "a round with the weights of the one that fetched them")

    assert bert.stop() == 0
    again = start(tmp_path / "b", "join", cleo.address, "--data", data("bert"), "--name", "bert", env=caches["bert"])
    again.wait_for(lambda n: len(n.shared_rounds()) >= 1, "a round after a restart")

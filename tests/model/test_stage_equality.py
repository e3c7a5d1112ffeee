"""A model cut into stages is the undivided one: hidden states, loss and every gradient, bit for bit."""

import pytest
import torch
from reference import loaded

from node.core.errors import NeedsInput, StaleVersion
from node.core.types import PeerId, StagePlan
from node.model.spec import LoraSpec
from node.training.adapter import StageAdapter
from node.training.stage import StageJob, StageRunner, split_adapters

FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gemma3_text")
ME = PeerId("me")
HARD = {"lora": LoraSpec(r=4, alpha=8.0, dropout=0.3), "gradient_checkpointing": True}


def runner_of(folder, plan, stages, *, max_graphs=4, **changes):
    first, last = plan.ranges[stages[0]], plan.ranges[stages[-1]]
    shard = loaded(folder, layers=type(first)(first.start, last.stop), ends=False, **changes)
    adapters = split_adapters(shard, stages, plan)
    return StageRunner(shard, adapters, plan, max_graphs=max_graphs), adapters


def job(batch, first, stop, *, version=0, id=0, seed=11):
    return StageJob(ME, id, first, stop, batch.lengths, seed, version, batch.num_labels)


def undivided(folder, batch, **changes):
    """Return loss, gradients and hidden states of the whole model in one piece."""
    whole = loaded(folder, **changes)
    adapter = StageAdapter(0, whole.lora)
    loss = whole.train_microbatch(batch, dropout_seed=11)
    ids, _ = whole.tensors(batch)
    whole.step.dropout_seed = 11
    with torch.no_grad():
        hidden = whole.forward(whole.embed(ids), batch.lengths)
    return whole, loss, adapter.layout.views(adapter.gradients), hidden


def in_stages(whole, runners, batch):
    """Drive one microbatch through `runners` (a list of (runner, first, stop)); return the loss and the last output."""
    ids, _ = whole.tensors(batch)
    hidden = whole.embed(ids)
    for runner, first, stop in runners:
        hidden = runner.forward(job(batch, first, stop), hidden)
    loss, gradient = whole.loss_and_gradient(hidden, batch)
    for runner, first, stop in reversed(runners):
        gradient, _ = runner.backward(job(batch, first, stop), gradient, hidden=None)
    assert gradient is None  # nothing is computed for the frozen embedding
    return loss, hidden


def assert_same_gradients(adapters, expected):
    got = {name: view for a in adapters for name, view in a.layout.views(a.gradients).items()}
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(got[name], gradient), name
        assert gradient.abs().sum() > 0, name


@pytest.mark.parametrize("changes", [{}, {"quantization": "nf4"}, HARD], ids=["fp32", "nf4", "dropout-checkpointing"])
@pytest.mark.parametrize("num_stages", [2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_give_the_bits_of_the_undivided_model(tiny, batch, family, num_stages, changes):
    whole, expected_loss, expected, expected_hidden = undivided(tiny(family), batch, **changes)
    plan = StagePlan.even(6, num_stages)
    made = [runner_of(tiny(family), plan, [stage], **changes) for stage in range(num_stages)]

    loss, hidden = in_stages(whole, [(runner, s, s + 1) for s, (runner, _) in enumerate(made)], batch)

    assert loss == expected_loss
    assert torch.equal(hidden, expected_hidden)
    assert_same_gradients([a for _, adapters in made for a in adapters.values()], expected)


def test_a_part_of_a_shard_serves_like_a_shard_of_that_part(tiny, batch):
    whole, expected_loss, expected, _ = undivided(tiny("gemma3_text"), batch)
    plan = StagePlan.even(6, 3)
    a, a_adapters = runner_of(tiny("gemma3_text"), plan, [0, 1])
    b, b_adapters = runner_of(tiny("gemma3_text"), plan, [1, 2])

    loss, _ = in_stages(whole, [(a, 0, 1), (b, 1, 2), (b, 2, 3)], batch)

    assert loss == expected_loss
    assert_same_gradients([a_adapters[0], b_adapters[1], b_adapters[2]], expected)
    assert a_adapters[1].tokens == 0


def test_a_dropped_graph_is_computed_again_from_the_kept_input(tiny, batch):
    whole, _, expected, _ = undivided(tiny("llama"), batch)
    plan = StagePlan.even(6, 1)
    runner, adapters = runner_of(tiny("llama"), plan, [0], max_graphs=1)
    ids, _ = whole.tensors(batch)
    hidden = runner.forward(job(batch, 0, 1), whole.embed(ids))
    runner.forward(job(batch, 0, 1, id=1), whole.embed(ids))  # takes the only place

    runner.backward(job(batch, 0, 1), whole.loss_and_gradient(hidden, batch)[1], hidden=None)

    assert_same_gradients(adapters.values(), expected)


def test_another_replica_does_the_backward_from_the_input_alone(tiny, batch):
    whole, _, expected, _ = undivided(tiny("llama"), batch, **HARD)
    plan = StagePlan.even(6, 2)
    first, first_adapters = runner_of(tiny("llama"), plan, [0], **HARD)
    dying, _ = runner_of(tiny("llama"), plan, [1], **HARD)
    other, other_adapters = runner_of(tiny("llama"), plan, [1], **HARD)
    ids, _ = whole.tensors(batch)
    middle = first.forward(job(batch, 0, 1), whole.embed(ids))
    gradient = whole.loss_and_gradient(dying.forward(job(batch, 1, 2), middle), batch)[1]

    with pytest.raises(NeedsInput):
        other.backward(job(batch, 1, 2), gradient, hidden=None)
    gradient, _ = other.backward(job(batch, 1, 2), gradient, hidden=middle)
    first.backward(job(batch, 0, 1), gradient, hidden=None)

    assert_same_gradients([first_adapters[0], other_adapters[1]], expected)


def test_a_repeated_backward_returns_the_gradient_and_counts_once(tiny, batch):
    whole, _, _, _ = undivided(tiny("llama"), batch)
    plan = StagePlan.even(6, 2)
    runner, adapters = runner_of(tiny("llama"), plan, [1])
    ids, _ = whole.tensors(batch)
    output = runner.forward(job(batch, 1, 2), whole.embed(ids))
    gradient = whole.loss_and_gradient(output, batch)[1]

    once, counted = runner.backward(job(batch, 1, 2), gradient, hidden=None)
    sums = adapters[1].gradients.clone()
    again, repeated = runner.backward(job(batch, 1, 2), gradient, hidden=whole.embed(ids))

    assert (counted, repeated) == ((1,), ())
    assert torch.equal(once, again)
    assert torch.equal(adapters[1].gradients, sums)
    assert (adapters[1].tokens, adapters[1].weight) == (batch.num_tokens, batch.num_labels)


def test_only_the_stage_that_has_not_counted_a_microbatch_adds_it(tiny, batch):
    whole, _, expected, _ = undivided(tiny("llama"), batch)
    plan = StagePlan.even(6, 2)
    runner, adapters = runner_of(tiny("llama"), plan, [0, 1])
    ids, _ = whole.tensors(batch)
    middle = runner.forward(job(batch, 0, 1), whole.embed(ids))
    output = runner.forward(job(batch, 1, 2), middle)
    gradient = whole.loss_and_gradient(output, batch)[1]
    runner.backward(job(batch, 1, 2), gradient, hidden=None)

    runner.forward(job(batch, 0, 2), whole.embed(ids))
    _, counted = runner.backward(job(batch, 0, 2), gradient, hidden=None)

    assert counted == (0,)
    assert_same_gradients(adapters.values(), expected)


def test_a_stage_refuses_a_backward_of_an_earlier_version(tiny, batch):
    whole, _, _, _ = undivided(tiny("llama"), batch)
    plan = StagePlan.even(6, 2)
    runner, adapters = runner_of(tiny("llama"), plan, [1])
    ids, _ = whole.tensors(batch)
    gradient = whole.loss_and_gradient(runner.forward(job(batch, 1, 2), whole.embed(ids)), batch)[1]
    adapters[1].version = 1

    with pytest.raises(StaleVersion):
        runner.backward(job(batch, 1, 2), gradient, hidden=None)

    assert adapters[1].tokens == 0
    assert not adapters[1].gradients.any()


def test_a_new_session_forgets_what_was_counted(tiny, batch):
    whole, _, _, _ = undivided(tiny("llama"), batch)
    runner, adapters = runner_of(tiny("llama"), StagePlan.even(6, 2), [1])
    ids, _ = whole.tensors(batch)
    gradient = whole.loss_and_gradient(runner.forward(job(batch, 1, 2), whole.embed(ids)), batch)[1]
    runner.backward(job(batch, 1, 2), gradient, hidden=None)
    before = runner.session

    adapters[1].discard()
    runner.new_session()
    _, counted = runner.backward(job(batch, 1, 2), gradient, hidden=whole.embed(ids))

    assert runner.session != before
    assert counted == (1,)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_continued_over_stages_gives_the_logits_of_the_whole_model(tiny, family):
    whole = loaded(tiny(family))
    plan = StagePlan.even(6, 3)
    parts = [runner_of(tiny(family), plan, [stage])[0]._shard for stage in range(3)]
    tokens = torch.tensor([5, 9, 31, 7, 80, 4, 11, 2, 60, 3, 9, 18])
    whole_cache, caches = whole.new_cache(), [part.new_cache() for part in parts]

    for start, stop in ((0, 9), (9, 10), (10, 11), (11, 12)):
        expected = whole.continue_text(tokens[start:stop], whole_cache)
        hidden = whole.embed(tokens[start:stop])
        for stage, part in enumerate(parts):
            hidden = part.continue_hidden(hidden, start, caches[stage], plan.ranges[stage])
        torch.testing.assert_close(whole.next_logits(hidden), expected, rtol=1e-5, atol=1e-5)

import pytest
from test_splitting import SHAPE_8B, SHAPE_70B, task

from node.host.advice import Rounds, advise
from node.host.machines import parse_machines

ROUNDS = Rounds("bf16", 32768)


def advice_for(of, text):
    return advise(of, parse_machines(text), ROUNDS)


def test_machines_that_each_hold_the_model_are_to_replicate_it():
    advice = advice_for(task(SHAPE_8B, "int8"), "2x24GB@20Mbit")

    assert advice.kind == "replicate"
    assert [len(pipeline.places) for pipeline in advice.pipelines] == [1, 1]
    assert advice.tokens_per_s == pytest.approx(2 * 1040, rel=0.02)
    said = " ".join(advice.sentences)
    assert "Replicate instead of splitting: #1 (24GB@20Mbit) and #2 (24GB@20Mbit)" in said
    assert "split over all machines 296" in said
    assert "`potluck.averaging.target_batch_tokens: " in said


def test_a_round_that_is_short_beside_a_step_is_not_spoken_of():
    advice = advise(task(SHAPE_8B), parse_machines("2x24GB@1Gbit"), ROUNDS)

    assert advice.kind == "replicate"
    assert "round" not in " ".join(advice.sentences)


def test_a_laptop_that_slows_the_others_is_to_be_left_out():
    advice = advice_for(task(SHAPE_70B, "int8", stages=40), "3x24GB,8GB:3TFLOPS@20Mbit")

    assert advice.kind == "split"
    (pipeline,) = advice.pipelines
    assert [place.machine.name for place in pipeline.places] == ["#1 (24GB)", "#2 (24GB)", "#3 (24GB)"]
    (left_out,) = [sentence for sentence in advice.sentences if sentence.startswith("Leave")]
    assert left_out == (
        "Leave #4 (8GB:3TFLOPS@20Mbit) out: split over all 4 machines it would be 148 tokens/s, since the uplink of "
        "#4 (8GB:3TFLOPS@20Mbit) would set the pace."
    )
    assert advice.split_over_all.tokens_per_s == pytest.approx(148, rel=0.01)
    assert pipeline.tokens_per_s > 2 * 148


def test_a_machine_that_can_hold_no_part_is_to_be_left_out():
    advice = advice_for(task(SHAPE_70B, stages=80), "3x24GB,2GB")

    assert "Leave #4 (2GB) out: not every machine can hold a part." in advice.sentences
    assert advice.split_over_all is None


def test_nobody_is_left_out_of_a_split_that_needs_all():
    advice = advice_for(task(SHAPE_70B, "int8"), "3x3090@1Gbit")

    assert advice.kind == "split"
    assert advice.sentences == ("The card of #2 (3090@1Gbit) sets the pace.",)


def test_a_thin_link_is_named_with_what_would_do_and_what_would_help():
    advice = advice_for(task(SHAPE_70B, "bf16"), "3x3090@50Mbit")

    first, *others = advice.sentences
    assert first.startswith("The uplink of #1 (3090@50Mbit) sets the pace: with 174 Mbit/s the cards would, at 332 ")
    assert any(sentence.startswith("`potluck.wire: chain` would make 191 ") for sentence in others)
    assert any(sentence.startswith("`potluck.activations: lowbit` would make 290 ") for sentence in others)
    chained = advice_for(task(SHAPE_70B, "lowbit", "chain"), "3x3090@50Mbit")
    assert chained.sentences == ("The card of #2 (3090@50Mbit) sets the pace.",)


def test_coarse_stages_are_named_where_finer_ones_would_be_faster():
    advice = advice_for(task(SHAPE_8B, stages=4), "3x8GB")

    assert any(sentence.startswith("`potluck.stages: 32` would make ") for sentence in advice.sentences)
    assert not any("stages" in sentence for sentence in advice_for(task(SHAPE_8B), "3x8GB").sentences)


def test_another_owner_of_the_data_is_named_if_that_would_be_faster():
    advice = advice_for(task(SHAPE_70B, "int8", stages=40), "24GB@20Mbit,24GB,24GB")

    assert any(sentence.startswith("With the data on #2 (24GB) it would be ") for sentence in advice.sentences)


def test_data_stay_where_they_are_and_replicas_elsewhere_are_named_as_a_choice():
    advice = advice_for(task(SHAPE_8B, "int8"), "6GB@20Mbit,2x24GB")

    assert advice.kind == "split"
    assert advice.pipelines[0].places[0].machine.name == "#1 (6GB@20Mbit)"
    assert any(sentence.startswith("Replicate instead if #2 (24GB) and #3 (24GB)") for sentence in advice.sentences)


def test_one_machine_alone_that_holds_the_model_needs_no_others():
    advice = advice_for(task(SHAPE_8B, "bf16"), "24GB:160TFLOPS,8GB@20Mbit")

    assert advice.kind == "replicate"
    assert advice.sentences[0].startswith("#1 (24GB:160TFLOPS) holds the whole model and makes ")
    assert advice.sentences[1].startswith("Leave #2 (8GB@20Mbit) out: split over all 2 machines it would be ")


@pytest.mark.parametrize(
    ("text", "stages", "said"),
    [
        ("12GB,12GB,24GB", 80, "these machines lack about "),
        ("4GB,3x24GB", 80, "#1 (4GB) has the data, and embedding and head"),
        ("3x24GB", 2, "a stage is indivisible"),
    ],
)
def test_what_cannot_be_held_is_said_with_what_is_lacking(text, stages, said):
    advice = advice_for(task(SHAPE_70B, stages=stages), text)

    assert (advice.kind, advice.pipelines, advice.tokens_per_s) == ("impossible", (), 0)
    (sentence,) = advice.sentences
    assert said in sentence

"""Split models by arithmetic, against the figures that the published shapes of Llama 3.1 8B and 3.3 70B give."""

import math
from dataclasses import replace

import pytest
from test_shapes import LLAMA_8B

from node.core.types import StagePlan
from node.host.machines import parse_machines
from node.host.memory import AdapterShape, Workload, fits, plan_memory
from node.host.shapes import ModelShape
from node.host.splitting import Task, best_pipeline, full_pipeline, missing_bytes, replicas

SHAPE_8B = ModelShape.of(LLAMA_8B)
SHAPE_70B = ModelShape.of(
    LLAMA_8B
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8}
)
FAST = "80GB:100000TFLOPS"
"""Cards that leave the pace to the link."""


def task(shape, codec="bf16", wire="star", stages=None):
    work = Workload(4096, gradient_checkpointing=True, on_gpu=True)
    return Task(
        shape, AdapterShape(16), work, StagePlan.even(shape.num_layers, stages or shape.num_layers), codec, wire
    )


def split(of, text, find=best_pipeline):
    driver, *others = parse_machines(text)
    return find(of, driver, others)


def test_the_models_have_their_published_sizes():
    assert SHAPE_8B.numel == 8_030_261_248
    assert SHAPE_70B.numel == 70_553_706_496
    assert AdapterShape(16).layer_numel(SHAPE_70B) * 80 == 207_093_760


@pytest.mark.parametrize(
    ("shape", "codec", "mean_bytes"),
    [
        (SHAPE_8B, "bf16", 8192),
        (SHAPE_8B, "int8", 4224),
        (SHAPE_8B, "lowbit", 2688),
        (SHAPE_70B, "bf16", 16384),
        (SHAPE_70B, "int8", 8448),
    ],
)
def test_a_token_has_its_bytes_on_the_wire(shape, codec, mean_bytes):
    assert sum(task(shape, codec).tensor_bytes) / 2 == pytest.approx(mean_bytes, rel=1e-3)


@pytest.mark.parametrize(("card", "tokens_per_s"), [("4090", 2413), ("3090", 1040), ("3060", 370)])
def test_one_card_makes_of_the_8b_model_what_is_reported(card, tokens_per_s):
    (alone,) = replicas(task(SHAPE_8B), parse_machines(card))

    assert alone.tokens_per_s == pytest.approx(tokens_per_s, rel=0.02)


@pytest.mark.parametrize(
    ("shape", "cards", "wire", "tokens_per_s", "mbit"),
    [
        (SHAPE_8B, "2x4090", "star", 4826, {"bf16": 633, "int8": 326, "lowbit": 208}),
        (SHAPE_8B, "2x3090", "star", 2076, {"bf16": 272, "int8": 140, "lowbit": 89}),
        (SHAPE_8B, "2x3060", "star", 748, {"bf16": 98, "int8": 51, "lowbit": 32}),
        (SHAPE_70B, "3x4090", "star", 782, {"bf16": 410, "int8": 211, "lowbit": 134}),
        (SHAPE_70B, "3x4090", "chain", 782, {"bf16": 205, "int8": 106, "lowbit": 67}),
        (SHAPE_70B, "3x3090", "chain", 336, {"bf16": 88, "int8": 45, "lowbit": 29}),
    ],
)
def test_cards_set_the_pace_from_a_link_of_so_many_mbit_on(shape, cards, wire, tokens_per_s, mbit):
    for codec, needed in mbit.items():
        pipeline = split(task(shape, codec, wire), cards, full_pipeline)

        assert pipeline.tokens_per_s == pytest.approx(tokens_per_s, rel=0.025)
        _, up = pipeline.needed_mbit_per_s(pipeline.places[0])
        assert up == pytest.approx(needed, rel=0.03)
        slower, faster = (f"{cards}@{needed * part:.0f}Mbit" for part in (0.9, 1.1))
        assert split(task(shape, codec, wire), slower, full_pipeline).slowest.pace[1] in ("uplink", "downlink")
        assert split(task(shape, codec, wire), faster, full_pipeline).slowest.pace[1] == "card"


@pytest.mark.parametrize(
    ("shape", "mbit", "codec", "tokens_per_s"),
    [
        (SHAPE_8B, 20, "bf16", 153),
        (SHAPE_8B, 20, "int8", 296),
        (SHAPE_8B, 100, "bf16", 763),
        (SHAPE_8B, 100, "int8", 1480),
        (SHAPE_8B, 1000, "bf16", 7600),
        (SHAPE_70B, 20, "bf16", 76),
        (SHAPE_70B, 20, "int8", 148),
        (SHAPE_70B, 100, "bf16", 381),
        (SHAPE_70B, 100, "int8", 740),
    ],
)
def test_a_link_that_sets_the_pace_passes_so_many_tokens(shape, mbit, codec, tokens_per_s):
    one_hop = split(task(shape, codec), f"2x{FAST}@{mbit}Mbit", full_pipeline)
    two_hops = split(task(shape, codec), f"3x{FAST}@{mbit}Mbit", full_pipeline)
    chained = split(task(shape, codec, "chain"), f"3x{FAST}@{mbit}Mbit", full_pipeline)

    assert one_hop.tokens_per_s == pytest.approx(tokens_per_s, rel=0.01)
    assert one_hop.slowest.pace[1] in ("uplink", "downlink")
    assert two_hops.tokens_per_s == pytest.approx(tokens_per_s / 2, rel=0.01)
    assert chained.tokens_per_s == pytest.approx(tokens_per_s, rel=0.01)


def test_every_layer_is_held_once_and_what_each_holds_fits():
    of = task(SHAPE_70B, stages=40)
    for text in ("3x24GB", "24GB,48GB,8GB", "12GB,12GB,12GB,12GB,24GB", "48GB,12GB@20Mbit"):
        for find in (best_pipeline, full_pipeline):
            pipeline = split(of, text, find)

            layers = [layer for p in pipeline.places for layer in range(p.first_layer, p.first_layer + p.num_layers)]
            assert layers == list(range(80)), text
            stages = [stage for p in pipeline.places for stage in range(p.first_stage, p.stop_stage)]
            assert stages == list(range(40)), text
            assert all(fits(p.needed_bytes, p.machine.memory_bytes) for p in pipeline.places), text
            assert [p.drives for p in pipeline.places] == [True] + [False] * (len(pipeline.places) - 1)


def test_a_machine_needs_what_the_memory_plan_says_and_the_hidden_states_under_way():
    of = task(SHAPE_8B)
    driver, hop = split(of, "2x3090").places

    alone = plan_memory(SHAPE_8B, of.adapter, replace(of.work, num_layers=driver.num_layers)).device_bytes
    held = plan_memory(SHAPE_8B, of.adapter, replace(of.work, num_layers=hop.num_layers, ends=False)).device_bytes
    two_edges = 2 * 4096 * 4096 * 2
    assert driver.needed_bytes == alone + two_edges
    assert hop.needed_bytes == held + two_edges


def test_the_split_follows_speed_and_memory():
    by_speed = split(task(SHAPE_8B), "24GB:50TFLOPS,24GB:100TFLOPS").places
    by_memory = split(task(SHAPE_70B, stages=80), "24GB:10TFLOPS,12GB:300TFLOPS,24GB:10TFLOPS,24GB:10TFLOPS").places

    assert by_speed[1].num_layers > 1.8 * by_speed[0].num_layers
    assert by_memory[1].num_layers == max(
        n for n in range(40) if fits(task(SHAPE_70B).needed_bytes(n, ends=False, in_flight=5), 12 << 30)
    )


def test_no_split_of_a_few_machines_is_faster_than_the_one_found():
    of = task(SHAPE_8B, "int8", stages=8)
    for text in ("24GB@50Mbit,8GB,12GB@300Mbit", "8GB:40TFLOPS@200Mbit,24GB,6GB:80TFLOPS"):
        driver, *others = parse_machines(text)
        found = full_pipeline(of, driver, others)

        best = 0.0
        for first in range(9):
            for second in range(1, 8 - first):
                counts = (first, second, 8 - first - second)
                speed = math.inf
                for index, (machine, count) in enumerate(zip((driver, *others), counts, strict=True)):
                    if not fits(of.needed_bytes(4 * count, ends=index == 0, in_flight=4), machine.memory_bytes):
                        speed = 0.0
                    flop = of.layer_flop * 4 * count + (of.ends_flop if index == 0 else 0)
                    speed = min(speed, 0.65 * machine.flop_per_s / flop)
                    tensors = 2 * sum(of.tensor_bytes) if index == 0 else sum(of.tensor_bytes)
                    speed = min(speed, machine.up_mbit_per_s * 1e6 / 8 / tensors)
                best = max(best, speed)
        assert found.tokens_per_s == pytest.approx(best, rel=1e-6), text


def test_fewer_hops_are_preferred_where_they_are_nearly_as_fast():
    of = task(SHAPE_8B, "int8")

    pipeline = split(of, "24GB:100TFLOPS,24GB:100TFLOPS,24GB:2TFLOPS")

    assert len(pipeline.places) == 2


def test_a_driver_without_a_layer_gets_no_gradient_back():
    pipeline = split(task(SHAPE_70B, "lowbit", stages=2), "12GB,48GB,48GB")

    driver, first, second = pipeline.places
    forward, backward = task(SHAPE_70B, "lowbit").tensor_bytes
    assert driver.num_layers == 0
    assert driver.up_bytes == 2 * (forward + backward)
    assert driver.down_bytes == 2 * forward + backward
    assert (first.up_bytes, second.up_bytes) == (forward, forward + backward)


def test_what_does_not_fit_is_lacking_in_bytes():
    driver, *others = parse_machines("12GB,12GB,24GB")

    lacking = missing_bytes(task(SHAPE_70B), driver, others)

    assert best_pipeline(task(SHAPE_70B), driver, others) is None
    assert full_pipeline(task(SHAPE_70B), driver, others) is None
    empty = task(SHAPE_70B).needed_bytes(0, ends=False, in_flight=5)
    for part, is_enough in ((0.9, False), (1.05, True)):
        another = f"{(empty + part * lacking) * 1.1 / 2**30:.3f}GB"
        assert (split(task(SHAPE_70B), f"12GB,12GB,24GB,{another}") is not None) is is_enough
    assert missing_bytes(task(SHAPE_8B), driver, others) == 0

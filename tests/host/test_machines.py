import pytest

from node.core.errors import ConfigError
from node.host.machines import CARDS, GIB, LAN_MBIT_PER_S, MAX_MACHINES, parse_machines


def test_a_size_and_a_link_are_read_and_the_rest_is_what_is_usual():
    first, second, third = parse_machines("8GB@100Mbit, 12GB,24 GB : 155 TFLOPS @ 200/20Mbit")

    assert (first.name, first.memory_bytes) == ("#1 (8GB@100Mbit)", 8 * GIB)
    assert first.down_mbit_per_s == first.up_mbit_per_s == 100
    assert second.flop_per_s == CARDS["3060"][1] * 1e12
    assert second.down_mbit_per_s == second.up_mbit_per_s == LAN_MBIT_PER_S
    assert (third.flop_per_s, third.down_mbit_per_s, third.up_mbit_per_s) == (155e12, 200, 20)


def test_a_card_is_known_by_its_name_and_several_may_be_equal():
    machines = parse_machines("2xRTX3090@1Gbit,h100")

    assert [machine.name for machine in machines] == ["#1 (RTX3090@1Gbit)", "#2 (RTX3090@1Gbit)", "#3 (h100)"]
    assert machines[0].memory_bytes == 24 * GIB
    assert machines[0].flop_per_s == 71e12
    assert machines[1].up_mbit_per_s == 1000
    assert machines[2].flop_per_s == 989e12


@pytest.mark.parametrize("gib", [4, 8, 12, 16, 24, 48, 80])
def test_an_unknown_card_is_never_taken_for_a_faster_one_of_its_size(gib):
    (machine,) = parse_machines(f"{gib}GB")

    of_that_size = [tflops for size, tflops in CARDS.values() if size >= gib and tflops >= 20]
    assert machine.flop_per_s <= max(of_that_size) * 1e12
    assert machine.flop_per_s >= 20e12


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no machine"),
        ("8GB,,12GB", "no machine"),
        ("8GB@fast", "'fast'"),
        ("8GB@100", "'100'"),
        ("8GB@", "no machine"),
        ("grill", "'grill' is not known"),
        ("8TB", "'8TB' is not known"),
        ("-8GB", "no machine"),
        ("0GB", "zero"),
        ("8GB@0Mbit", "zero"),
        ("0x8GB", "zero"),
        ("8GB:0TFLOPS", "zero"),
        ("9999999GB", "no machine"),
        ("nanGB", "no machine|not known"),
        (f"{MAX_MACHINES + 1}x8GB", "more than"),
        (",".join(["8GB"] * (MAX_MACHINES + 1)), "more than"),
    ],
)
def test_what_is_no_machine_is_refused_with_the_part_that_is_wrong(text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        parse_machines(text)

    assert caught.value.hint

"""Hidden states on the wire: how many bytes, how far off, and what of a hostile peer's bytes comes through."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.network.activations import GROUP, decode, encode, encoded_size
from node.network.round_words import Malformed

CODECS = ("none", "bf16", "int8", "lowbit")
DIRECTIONS = ("forward", "backward")
DTYPES = (torch.float32, torch.bfloat16)
LEVELS = {("int8", "forward"): 127, ("int8", "backward"): 127, ("lowbit", "forward"): 32, ("lowbit", "backward"): 8}

lengths_of_documents = st.lists(st.integers(1, 9), min_size=1, max_size=5)
hidden_sizes = st.sampled_from([1, 30, 64, 100, 192])
kinds = st.tuples(st.sampled_from(CODECS), st.sampled_from(DIRECTIONS), st.sampled_from(DTYPES))
magnitudes = st.sampled_from([0.0, 1e-42, 1e-30, 1e-9, 1.0, 24_000.0, 1e20])


def random_tensor(lengths, hidden_size, dtype, seed, magnitude=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(sum(lengths), hidden_size, generator=generator) * magnitude).to(dtype)


def roundtrip(codec, direction, tensor, lengths):
    data = encode(codec, direction, tensor, lengths)
    return decode(codec, direction, bytes(data), lengths, tensor.shape[1], tensor.dtype)


def first_tokens(lengths):
    return [0, *itertools.accumulate(lengths[:-1])]


def in_groups(tensor):
    """Return [T, G, GROUP] with zeros where the last group is short."""
    padding = -tensor.shape[1] % GROUP
    return torch.nn.functional.pad(tensor.double(), (0, padding)).view(len(tensor), -1, GROUP)


@given(
    kind=kinds, lengths=lengths_of_documents, hidden_size=hidden_sizes, seed=st.integers(0, 99), magnitude=magnitudes
)
@settings(deadline=None)
def test_bytes_are_as_many_as_both_ends_have_computed(kind, lengths, hidden_size, seed, magnitude):
    codec, direction, dtype = kind
    tensor = random_tensor(lengths, hidden_size, dtype, seed, magnitude)

    data = encode(codec, direction, tensor, lengths)

    assert len(data) == memoryview(data).nbytes == encoded_size(codec, direction, lengths, hidden_size, dtype)


def test_bytes_a_token_are_those_of_the_codecs_table():
    per_value = {
        (codec, direction): 8 * encoded_size(codec, direction, [4097], 576, torch.float32) / (4097 * 576)
        for codec, direction in itertools.product(CODECS, DIRECTIONS)
    }

    assert per_value == pytest.approx(
        {
            ("none", "forward"): 32,
            ("none", "backward"): 32,
            ("bf16", "forward"): 16,
            ("bf16", "backward"): 16,
            ("int8", "forward"): 8.25,
            ("int8", "backward"): 8.25,
            ("lowbit", "forward"): 6.25,
            ("lowbit", "backward"): 4.25,
        },
        abs=0.003,
    )


@pytest.mark.parametrize("lengths", [[], [0], [3, 0], [5, -1]])
def test_size_of_empty_documents_is_refused(lengths):
    with pytest.raises(Malformed):
        encoded_size("int8", "forward", lengths, 64, torch.float32)


@given(
    direction=st.sampled_from(DIRECTIONS),
    dtype=st.sampled_from(DTYPES),
    lengths=lengths_of_documents,
    hidden_size=hidden_sizes,
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_exact_codec_returns_the_very_bits(direction, dtype, lengths, hidden_size, seed):
    tensor = random_tensor(lengths, hidden_size, dtype, seed)

    result = roundtrip("none", direction, tensor, lengths)

    assert result.dtype == dtype
    assert torch.equal(result, tensor)


@given(
    kind=kinds, lengths=lengths_of_documents, hidden_size=hidden_sizes, seed=st.integers(0, 99), magnitude=magnitudes
)
@settings(deadline=None)
def test_first_token_of_each_document_is_as_good_as_bf16(kind, lengths, hidden_size, seed, magnitude):
    codec, direction, dtype = kind
    tensor = random_tensor(lengths, hidden_size, dtype, seed, magnitude)

    result = roundtrip(codec, direction, tensor, lengths)

    first = first_tokens(lengths)
    expected = tensor if codec == "none" else tensor.bfloat16().to(dtype)
    assert torch.equal(result[first], expected[first])


@given(
    kind=st.sampled_from(sorted(LEVELS)),
    lengths=lengths_of_documents,
    hidden_size=hidden_sizes,
    seed=st.integers(0, 99),
    magnitude=st.sampled_from([0.0, 1e-30, 1e-9, 1.0, 24_000.0, 1e20]),
)
@settings(deadline=None)
def test_error_of_a_group_is_at_most_half_a_level_of_it(kind, lengths, hidden_size, seed, magnitude):
    tensor = random_tensor(lengths, hidden_size, torch.float32, seed, magnitude)

    result = roundtrip(*kind, tensor, lengths)

    # Half a level, and 2^-8 for the scale in bf16. Rotated values are bounded by the group's norm, and so are errors.
    error, groups = in_groups(result) - in_groups(tensor), in_groups(tensor)
    first = first_tokens(lengths)
    error[first] = 0
    if kind[0] == "int8":
        largest, apart = groups.abs().amax(-1), error.abs().amax(-1)
        assert (apart <= largest * (0.5 / LEVELS[kind] + 2**-8)).all()
    else:
        largest, apart = groups.norm(dim=-1), error.norm(dim=-1)
        assert (apart <= largest * (0.5 / LEVELS[kind] + 2**-8) * GROUP**0.5).all()


@pytest.mark.parametrize(("kind", "limit"), [*zip(sorted(LEVELS), (0.007, 0.007, 0.11, 0.027), strict=True)])
@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1.0, 1e20])
def test_relative_error_on_normal_values_does_not_depend_on_their_size(kind, limit, magnitude):
    lengths = [200, 56]
    tensor = random_tensor(lengths, 576, torch.float32, 0, magnitude).double()

    result = roundtrip(*kind, tensor.float(), lengths).double()

    assert (result - tensor).norm() / tensor.norm() < limit


@pytest.mark.parametrize("codec", ["int8", "lowbit"])
def test_sinks_do_not_spoil_the_other_tokens(codec):
    lengths = [40, 24]
    tensor = random_tensor(lengths, 128, torch.float32, 1)
    with_sinks = tensor.clone()
    with_sinks[first_tokens(lengths), 7] = 24_000.0

    plain, spoiled = (roundtrip(codec, "forward", each, lengths) for each in (tensor, with_sinks))

    others = [index for index in range(64) if index not in first_tokens(lengths)]
    assert torch.equal(plain[others], spoiled[others])
    assert torch.all(spoiled[first_tokens(lengths), 7] == 24_064.0)  # the next bf16


def test_rotation_halves_the_error_beside_an_outlying_channel():
    lengths = [257]
    tensor = random_tensor(lengths, 64, torch.float32, 2)
    tensor[:, 3] *= 500

    result = roundtrip("lowbit", "backward", tensor, lengths)

    # Without the rotation, all channels but the outlying one would fall on one level of 4 bits.
    others = [channel for channel in range(64) if channel != 3]
    coarse = tensor.abs().amax(dim=1, keepdim=True) / 8 / 2
    assert (result - tensor)[1:, others].norm() < 0.5 * (coarse.expand(-1, 63)[1:]).norm()


@given(kind=kinds, lengths=lengths_of_documents, hidden_size=hidden_sizes)
@settings(deadline=None)
def test_zeros_stay_zeros(kind, lengths, hidden_size):
    codec, direction, dtype = kind
    tensor = torch.zeros(sum(lengths), hidden_size, dtype=dtype)

    assert torch.equal(roundtrip(codec, direction, tensor, lengths), tensor)


@pytest.mark.parametrize("codec", ["int8", "lowbit"])
@pytest.mark.parametrize("magnitude", [1e-39, 3e-38])
def test_values_below_the_least_scale_become_zeros(codec, magnitude):
    tensor = torch.full((3, 64), magnitude)
    tensor[:, 1::2] = 0

    assert torch.equal(roundtrip(codec, "forward", tensor, [3])[1:], torch.zeros(2, 64))


def test_a_view_that_is_not_contiguous_and_needs_a_gradient_is_encoded_by_its_values():
    tensor = random_tensor([6, 4], 128, torch.float32, 3)
    view = tensor.t().contiguous().t().requires_grad_()

    for codec, direction in itertools.product(CODECS, DIRECTIONS):
        assert bytes(encode(codec, direction, view, [6, 4])) == bytes(encode(codec, direction, tensor, [6, 4]))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("row", [0, 2])
def test_tensor_that_is_not_finite_is_refused_by_the_receiver(codec, bad, row):
    tensor = random_tensor([4], 64, torch.float32, 4)
    tensor[row, 5] = bad

    with pytest.raises(Malformed):
        roundtrip(codec, "forward", tensor, [4])


@given(
    kind=kinds, lengths=lengths_of_documents, hidden_size=hidden_sizes, change=st.integers(-40, 40).filter(lambda n: n)
)
@settings(deadline=None)
def test_bytes_of_another_length_are_refused(kind, lengths, hidden_size, change):
    codec, direction, dtype = kind
    size = encoded_size(codec, direction, lengths, hidden_size, dtype)

    with pytest.raises(Malformed):
        decode(codec, direction, bytes(max(0, size + change)), lengths, hidden_size, dtype)


@given(data=st.data(), kind=kinds, lengths=lengths_of_documents, hidden_size=hidden_sizes)
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_refused_or_finite(data, kind, lengths, hidden_size):
    codec, direction, dtype = kind
    tensor = random_tensor(lengths, hidden_size, dtype, 5)
    sent = bytearray(encode(codec, direction, tensor, lengths))
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, len(sent) - 1), st.integers(0, 255)))):
        sent[position] = value

    try:
        result = decode(codec, direction, sent, lengths, hidden_size, dtype)
    except Malformed:
        return

    assert result.shape == tensor.shape
    assert result.dtype == dtype
    assert torch.isfinite(result).all()


@given(byte=st.integers(0, 255), kind=kinds, lengths=lengths_of_documents, hidden_size=hidden_sizes)
@settings(deadline=None, max_examples=300)
def test_any_byte_all_over_is_refused_or_finite(byte, kind, lengths, hidden_size):
    codec, direction, dtype = kind
    size = encoded_size(codec, direction, lengths, hidden_size, dtype)

    try:
        result = decode(codec, direction, bytes([byte]) * size, lengths, hidden_size, dtype)
    except Malformed:
        return

    assert torch.isfinite(result).all()

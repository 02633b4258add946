"""Entropies and correlations of binary codes equal their definitions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluate.metrics import bit_correlation, bit_entropy, block_entropy, trailing_entropy

GOLDEN = Path(__file__).parent / "golden" / "eval" / "entropy.npz"


@pytest.mark.parametrize("suffix", ["", "2"])
@pytest.mark.filterwarnings("ignore:1400 codes")
def test_entropies_equal_golden_values(suffix):
    golden = np.load(GOLDEN)
    bits = np.unpackbits(golden[f"codes{suffix}_packed"], axis=1)
    np.testing.assert_allclose(bit_entropy(bits), golden["bit_entropy" + suffix], atol=1e-9)
    np.testing.assert_allclose(block_entropy(bits), golden["block_entropy" + suffix], atol=1e-9)
    assert bit_entropy(bits).mean() == pytest.approx(float(golden["mean_bit_entropy" + suffix]), abs=1e-9)
    assert block_entropy(bits).mean() == pytest.approx(float(golden["mean_block_entropy" + suffix]), abs=1e-9)


def counting(bits):
    return (np.arange(2**bits)[:, None] >> np.arange(bits)) & 1


def test_uniform_codes_fill_their_blocks_and_the_rest_is_apart():
    codes = np.tile(counting(7), (100, 1))
    np.testing.assert_allclose(block_entropy(codes, 3), [3, 3])
    assert trailing_entropy(codes, 3) == pytest.approx(1)
    assert np.isnan(trailing_entropy(codes, 7))


def test_long_and_short_blocks_count_alike():
    codes = np.tile(counting(4), (3, 5))
    with pytest.warns(UserWarning, match="48 codes for blocks of 20 bits"):
        assert block_entropy(codes, 20) == pytest.approx([4])


def test_few_codes_warn_and_enough_do_not(recwarn):
    g = np.random.default_rng(0)
    block_entropy(g.integers(0, 2, (2560, 8)))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="2559 codes.*0.072 low"):
        block_entropy(g.integers(0, 2, (2559, 8)))


def test_correlation_equals_numpy_and_is_zero_for_constant_bits():
    bits = np.random.default_rng(0).integers(0, 2, (200, 6))
    bits[:, 1] = bits[:, 0]
    bits[:, 2] = 1 - bits[:, 0]
    np.testing.assert_allclose(bit_correlation(torch.from_numpy(bits)), np.corrcoef(bits.T), atol=1e-12)
    bits[:, 3] = 1
    found = bit_correlation(bits)
    assert not found[3].any() and not found[:, 3].any() and found[0, 2] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (bit_entropy, ([[0, 3]],), "got 3 in row 0, column 1"),
        (bit_entropy, ([[0.0, np.nan]],), "only 0 and 1"),
        (bit_entropy, (np.ones((0, 4)),), "empty"),
        (block_entropy, (np.ones((9, 4)), 0), "outside 1..4"),
        (block_entropy, (np.ones((9, 4)), 5), "outside 1..4"),
        (trailing_entropy, (np.ones((9, 4)), 0), "outside 1..62"),
        (bit_correlation, ([[2, 0]],), "got 2"),
    ],
)
def test_bad_codes_are_a_clear_error(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)

"""Relative positions against their formula and an independent implementation."""

import torch

from common.layers.positions import RelativeBias, relative_bucket


def test_buckets_are_exact_below_80_saturate_at_800_and_mirror_by_160():
    distance = torch.arange(-1500, 1501)
    bucket = relative_bucket(distance, 320, 800)
    left, right = bucket[distance < 0].flip(0), bucket[distance > 0]
    assert torch.equal(right - left, torch.full_like(left, 160))
    assert torch.equal(left[:79], torch.arange(1, 80))
    assert left[799] == 159  # distance 800
    assert left[798] < 160
    assert int(left.max()) == 159
    assert torch.all(left[1:] >= left[:-1])
    assert relative_bucket(torch.tensor(0), 320, 800) == 0
    from transformers.models.wavlm.modeling_wavlm import WavLMAttention

    assert torch.equal(bucket, WavLMAttention(16, 2)._relative_positions_bucket(distance))


def test_the_bias_of_a_pair_is_that_of_key_minus_query_whatever_tokens_are_there():
    bias = RelativeBias(2, 8, 16)
    positions = torch.tensor([[0, 2, 5], [1, 4, 9]])
    found = bias(positions, 10)
    assert found.shape == (2, 2, 3, 3)
    for row, query, key in ((0, 0, 2), (1, 2, 0), (1, 1, 1)):
        bucket = relative_bucket(positions[row, key] - positions[row, query], 8, 16)
        assert torch.equal(found[row, :, query, key], bias.table.weight[bucket])

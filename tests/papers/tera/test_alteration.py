"""TERA's alteration policy: a literal slow reference, exact statistics by enumeration, and what enters the loss."""

import math
import random
from itertools import combinations

import pytest
import torch

from common.errors import EncoreError
from papers.tera import alteration
from papers.tera.alteration import NAMES, Policy, alter, alter_band, alter_time, named_policy, num_blocks

WIDTH = 7


def seed(value):
    random.seed(value)
    torch.manual_seed(value)


def utterances(lengths=(200, 151, 90, 24, 12), channels=20):
    generator = torch.Generator().manual_seed(3)
    x = torch.zeros(len(lengths), max(lengths), channels)
    for row, length in enumerate(lengths):
        x[row, :length] = torch.randn(length, channels, generator=generator)
    return x, torch.tensor(lengths)


def slow_alter(features, lengths, policy):
    """The policy entry by entry, in nested lists; the draws are the same calls in the same order."""
    kept = []
    clean = features.tolist()
    x, m = features.tolist(), torch.zeros_like(features).tolist()
    channels, frames = features.shape[2], features.shape[1]
    for row, length in enumerate(lengths.tolist()):
        if policy.time > 0:
            width = random.randint(policy.block[0], policy.block[1])
            candidates = list(range(max(1, length - width)))  # 0 .. length - width - 1
            count = round(length * policy.time / width)
            starts = torch.randperm(len(candidates)).tolist()[:count]
            dice = random.random()
            if 0.8 <= dice < 0.9:
                others = torch.randperm(len(candidates)).tolist()[:count]
            before = [list(frame) for frame in x[row]]
            for number, start in enumerate(starts):
                for offset in range(width):
                    for channel in range(channels):
                        m[row][start + offset][channel] = 1.0
                        if dice < 0.8:
                            x[row][start + offset][channel] = 0.0
                        elif dice < 0.9:
                            x[row][start + offset][channel] = before[others[number] + offset][channel]
        if policy.frequency > 0:
            band = random.randint(0, math.floor(channels * policy.frequency))
            low = torch.randperm(channels - band).tolist()[0]
            for channel in range(low, low + band):
                for t in range(frames):
                    x[row][t][channel] = 0.0
                    if t < length:
                        m[row][t][channel] = 1.0
    if policy.time == 0 and policy.frequency == 0:
        m = torch.ones_like(features).tolist()
    x = torch.tensor(x)
    if policy.noise > 0 and random.random() < policy.noise:
        x = x + torch.randn(features.shape) * policy.noise_std
    for row in range(len(lengths)):
        if any(any(frame) for frame in m[row]):
            kept.append(row)
    return x[kept], torch.tensor(clean)[kept], torch.tensor(m)[kept].bool(), lengths[kept]


@pytest.mark.parametrize("name", NAMES)
def test_alteration_equals_a_literal_reference_draw_for_draw(name):
    x, lengths = utterances()
    before = x.clone()
    dropped = 0
    for value in range(12):
        seed(value)
        expected = slow_alter(x, lengths, named_policy(name))
        seed(value)
        found = alter(x, lengths, named_policy(name))
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)
        dropped += len(lengths) - len(found.lengths)
    assert torch.equal(x, before)  # the target's own tensor is not altered
    assert (dropped > 0) == (name != "M")  # 12 frames hold no block, and a band may have no channel


def test_names_switch_axes_at_the_papers_strength():
    assert named_policy("T-F-M") == Policy() == Policy(0.15, (7, 7), 0.2, 0.15, 0.2)
    assert named_policy("T") == Policy(frequency=0.0, noise=0.0)
    assert named_policy("F") == Policy(time=0.0, noise=0.0)
    assert named_policy("M") == Policy(time=0.0, frequency=0.0)
    assert named_policy("F-M", noise_std=0.2**0.5) == Policy(time=0.0, noise_std=0.2**0.5)
    assert len(NAMES) == 7
    with pytest.raises(EncoreError, match="no alteration is called 'F-T'; choose one of T, F, M, T-F"):
        named_policy("F-T")


def test_the_number_of_blocks_rounds_ties_to_even():
    assert [num_blocks(n, WIDTH, 0.15) for n in (700, 70, 210, 24, 23)] == [15, 2, 4, 1, 0]


def hypergeometric_share(length, count):
    """Expected share of covered frames: one covered by c of S starts stays clean with C(S - c, n) / C(S, n)."""
    starts = length - WIDTH
    total = 0.0
    for frame in range(length):
        c = sum(1 for start in range(starts) if start <= frame < start + WIDTH)
        total += 1 - math.comb(starts - c, count) / math.comb(starts, count)
    return total / length


def test_the_covered_share_is_exactly_that_of_draws_without_replacement(monkeypatch):
    covered = []
    for chosen in combinations(range(13), 3):  # every outcome at 20 frames with three blocks
        seed(0)
        monkeypatch.setattr(alteration, "num_blocks", lambda *_: 3)
        order = torch.tensor([*chosen, *(i for i in range(13) if i not in chosen)])
        monkeypatch.setattr(torch, "randperm", lambda n, order=order: order)
        covered.append(alter_time(torch.ones(20, 2), Policy()).float().mean().item())
    monkeypatch.undo()
    assert sum(covered) / len(covered) == pytest.approx(hypergeometric_share(20, 3), abs=1e-6)
    seed(1)
    drawn = [alter_time(torch.ones(700, 1), Policy()) for _ in range(400)]
    share = torch.stack(drawn).float().mean(dim=0)
    expected = hypergeometric_share(700, 15)
    assert expected == pytest.approx(0.14121, abs=1e-5)  # less than 15 %, because blocks overlap
    assert share.mean().item() == pytest.approx(expected, abs=2e-3)
    assert share[0] > 0
    assert share[-1] == 0  # the last frame is never chosen
    assert share[-2] > 0


def test_one_dice_an_utterance_zeroes_replaces_or_leaves_all_its_blocks():
    outcomes = {"zero": 0, "replaced": 0, "left": 0}
    seed(2)
    for _ in range(1500):
        x = torch.arange(1.0, 101.0)[:, None].expand(100, 2).clone()
        clean = x.clone()
        mask = alter_time(x, Policy())
        assert torch.equal(x[~mask], clean[~mask])
        assert 7 < mask.sum() <= 14
        inside = x[mask, 0]
        if (inside == 0).all():
            outcomes["zero"] += 1
        elif torch.equal(x, clean):
            outcomes["left"] += 1
        else:
            outcomes["replaced"] += 1
            assert (inside > 0).all()  # other frames of the same utterance, in runs
            assert (inside.diff() == 1).float().mean() > 0.8
    assert outcomes["zero"] / 1500 == pytest.approx(0.8, abs=0.03)
    assert outcomes["replaced"] / 1500 == pytest.approx(0.1, abs=0.025)
    assert outcomes["left"] / 1500 == pytest.approx(0.1, abs=0.025)


def test_the_band_is_uniform_up_to_a_fifth_of_the_channels_and_spares_the_top_one():
    seed(3)
    widths, touched = [], torch.zeros(80)
    for _ in range(3000):
        x = torch.ones(2, 80)
        band = alter_band(x, Policy())
        widths.append(band.stop - band.start)
        assert torch.equal(x[0] == 0, x[1] == 0)
        assert (x[0] == 0).nonzero().flatten().tolist() == list(range(band.start, band.stop))
        touched += (x[0] == 0).float()
    share = torch.bincount(torch.tensor(widths), minlength=17) / 3000
    assert len(share) == 17
    assert (share - 1 / 17).abs().max() < 0.02
    assert touched[79] == 0
    assert touched[78] > 0
    assert touched[0] > 0
    assert max(alter_band(torch.ones(1, 40), Policy()).stop for _ in range(300)) == 39


def test_noise_falls_on_whole_batches_and_leaves_the_mask_alone():
    x, lengths = torch.zeros(4, 30, 10), torch.full((4,), 30)
    seed(4)
    noisy, values = 0, []
    for _ in range(1500):
        altered = alter(x, lengths, named_policy("M"))
        assert altered.mask.all()
        each = altered.inputs.abs().flatten(1).sum(dim=1) > 0
        assert each.all() or not each.any()  # one dice for the batch
        if each.all():
            noisy += 1
            values.append(altered.inputs)
    assert noisy / 1500 == pytest.approx(0.15, abs=0.03)
    drawn = torch.stack(values)
    assert drawn.std().item() == pytest.approx(0.2, abs=0.002)
    assert drawn.mean().abs() < 0.002


def test_padding_is_in_the_loss_of_pure_denoising_only():
    x, lengths = utterances((60, 40))
    for name in NAMES:
        for value in range(20):
            seed(value)
            altered = alter(x, lengths, named_policy(name))
            for mask, length in zip(altered.mask, altered.lengths):
                assert mask[length:].all() if name == "M" else not mask[length:].any()


def test_unchanged_blocks_are_in_the_loss_and_replacing_precedes_the_band(monkeypatch):
    x, lengths = utterances((80,), channels=10)
    monkeypatch.setattr(random, "random", lambda: 0.95)
    altered = alter(x, lengths, named_policy("T"))
    assert torch.equal(altered.inputs, x)
    assert altered.mask.any()
    monkeypatch.setattr(random, "random", lambda: 0.85)
    monkeypatch.setattr(random, "randint", lambda low, high: high)
    altered = alter(x, lengths, named_policy("T-F"))
    band = (altered.inputs[0] == 0).all(dim=0)
    assert band.sum() == 2
    assert altered.mask[0][:, band].all()
    chosen = altered.mask[0].all(dim=1)
    rows = [tuple(frame) for frame in x[0][:, ~band].tolist()]
    assert all(tuple(frame) in rows for frame in altered.inputs[0][:, ~band][chosen].tolist())


def test_a_batch_that_would_be_empty_stays_whole():
    x, lengths = utterances((12, 9))
    altered = alter(x, lengths, named_policy("T"))
    assert torch.equal(altered.inputs, x)
    assert not altered.mask.any()

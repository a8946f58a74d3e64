"""VideoMAE V2: masks, architecture and counted figures."""

import pytest
import torch
import torch.nn.functional as F

from common.errors import EncoreError
from papers.videomae_v2 import facts, model
from papers.videomae_v2.masking import (
    DualMasking,
    frame_decode_mask,
    random_decode_mask,
    running_cell,
    running_cell_mask,
    token_counts,
    tube_mask,
)
from papers.videomae_v2.model import VideoClassifier, VideoMAE, interpolate_positions, true_indices
from tests.papers.videomae_v2.conftest import DECODER, GRID, SIZES

# Masks


def test_tube_mask_hides_the_same_cells_in_every_slot():
    torch.manual_seed(0)
    hidden = tube_mask((8, 14, 14), 0.9, 5).view(5, 8, 196)
    assert (hidden == hidden[:, :1]).all()
    assert (hidden.sum(-1) == 176).all()
    assert not torch.equal(hidden[0], hidden[1])


def test_running_cell_starts_one_step_after_its_phase_and_reads_the_cell_row_by_row():
    decoded = running_cell((2, 2, 2), 0.5, start=0).view(2, 2, 2)
    assert decoded[0].tolist() == [[False, True], [True, False]]
    assert decoded[1].tolist() == [[True, True], [False, False]]
    quarter = running_cell((1, 2, 4), 0.25, start=2).view(2, 4)
    assert quarter.tolist() == [[True, False, True, False], [True, True, True, True]]


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_consecutive_slots_differ_by_one_cyclic_shift_and_each_position_gets_its_share(ratio):
    for start in range(4):
        decoded = running_cell((8, 4, 6), ratio, start).view(8, 4, 6)
        cells = decoded[:, :2, :2].flatten(1)
        assert (cells[1:] == cells[:-1].roll(-1, dims=1)).all()
        assert (decoded == decoded[:, :2, :2].repeat(1, 2, 3)).all()
        assert (decoded.sum(0) == 8 * (1 - ratio)).all()


def test_clips_draw_their_phase_independently():
    torch.manual_seed(0)
    phases = {tuple(running_cell(GRID, 0.5, start).tolist()) for start in range(4)}
    assert {tuple(row) for row in running_cell_mask(GRID, 0.5, 64).tolist()} == phases
    assert len(phases) == 4


@pytest.mark.parametrize(
    ("grid", "ratio", "expected"),
    [
        ((8, 14, 14), 0.25, (1568, 160, 1176, 1056)),
        ((8, 14, 14), 0.5, (1568, 160, 784, 704)),
        ((8, 14, 14), 0.75, (1568, 160, 392, 352)),
        ((8, 14, 14), 0.0, (1568, 160, 1408, 1408)),
        ((8, 16, 16), 0.5, (2048, 208, 1024, 920)),
        ((4, 8, 8), 0.5, (256, 28, 128, 114)),
    ],
)
def test_token_counts_are_the_published_ones_for_every_draw(grid, ratio, expected):
    assert tuple(token_counts(grid, 0.9, ratio).values()) == expected
    hidden, decoded = DualMasking(grid, decoder="running_cell" if ratio else "none", decoder_ratio=ratio or 0.5)(6)
    assert (decoded.sum(1) == expected[2]).all()
    assert ((hidden & decoded).sum(1) == expected[3]).all()


def test_random_and_frame_maps_decode_the_same_number_of_cubes():
    torch.manual_seed(0)
    random = random_decode_mask(GRID, 0.5, 20).view(20, 4, 16)
    assert (random.sum(-1) == 8).all()
    assert not (random[:, 0] == random[:, 1]).all(1).any()
    frame = frame_decode_mask(GRID, 0.5, 20).view(20, 4, 16)
    assert (frame.all(-1) | ~frame.any(-1)).all()
    assert (frame[:, :, 0].sum(1) == 2).all()
    assert 0 < frame[:, 0, 0].sum() < 20


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: running_cell(GRID, 0.1, 0), "0.25, 0.5 or 0.75"),
        (lambda: running_cell((4, 3, 4), 0.5, 0), "3 x 4"),
        (lambda: DualMasking(GRID, decoder="checker"), "no decoder mask 'checker'"),
        (lambda: DualMasking(GRID, encoder_ratio=1.5), "between 0 and 1"),
        (lambda: frame_decode_mask((3, 2, 2), 0.5), "3 time slots"),
        (lambda: true_indices(torch.tensor([[True, False], [True, True]])), "same number"),
        (lambda: VideoClassifier(**(SIZES | {"image_size": 18}), num_classes=2), "18 px"),
    ],
)
def test_impossible_masks_and_sizes_are_named(build, message):
    with pytest.raises(EncoreError, match=message):
        build()


# Architecture


def reference(mae: VideoMAE, video, hidden, decoded):
    """The paper's forward pass written out: embed all cubes, then drop; bool indexing throughout."""
    net, b = mae.encoder, len(video)
    x = F.conv3d(video, net.embed.proj.weight, net.embed.proj.bias, stride=net.embed.tubelet_size)
    x = x.flatten(2).transpose(1, 2) + net.positions
    z = net.norm(net.blocks(x[~hidden].reshape(b, -1, x.shape[-1])))
    pos = mae.positions.expand(b, -1, -1)
    z = mae.encoder_to_decoder(z) + pos[~hidden].reshape(b, -1, pos.shape[-1])
    q = mae.mask_token + pos[decoded].reshape(b, -1, pos.shape[-1])
    y = mae.decoder.blocks(torch.cat([z, q], 1))
    return mae.decoder.head(mae.decoder.norm(y[:, z.shape[1] :]))


def test_forward_equals_the_paper_written_out(mae, batch):
    with torch.no_grad():
        ours = mae(batch["video"], batch["hidden"], batch["decoded"])
        torch.testing.assert_close(ours, reference(mae, **batch), atol=1e-5, rtol=1e-5)
    assert ours.shape == (3, 32, 2 * 4 * 4 * 3)


def test_positions_are_the_sine_cosine_table_of_the_flattened_index(mae):
    for table in (mae.encoder.positions, mae.positions):
        length, dim = table.shape
        for pos, j in ((0, 1), (37, 0), (63, 7), (20, dim - 2)):
            angle = torch.tensor(pos / 10000 ** (2 * (j // 2) / dim), dtype=torch.float64)
            assert float(table[pos, j]) == pytest.approx(float(angle.cos() if j % 2 else angle.sin()), abs=1e-6)
        assert length == 64
    assert not any("positions" in name for name in mae.state_dict())


def test_the_encoder_sees_visible_cubes_only(mae, batch):
    other = batch["video"].clone()
    pixels = batch["hidden"].view(3, 1, *GRID).repeat_interleave(2, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)
    other[pixels.expand_as(other)] += 10
    visible = true_indices(~batch["hidden"])
    with torch.no_grad():
        assert torch.equal(mae.encoder(batch["video"], visible), mae.encoder(other, visible))
    assert visible.shape == (3, 16)


def test_no_decoder_mask_equals_decoding_everything_hidden(mae, batch):
    grads = []
    for decoded in (None, batch["hidden"].clone()):
        mae.zero_grad()
        output = mae(batch["video"], batch["hidden"], decoded)
        output.square().mean().backward()
        grads.append([output.detach(), *(p.grad.clone() for p in mae.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


def test_classifier_pools_before_it_normalises_and_has_no_encoder_norm(classifier, batch):
    with torch.no_grad():
        net = classifier.encoder
        x = net.blocks(net.embed(batch["video"]) + net.positions).mean(1)
        expected = classifier.head(F.layer_norm(x, (24,), classifier.fc_norm.weight, classifier.fc_norm.bias, 1e-6))
        torch.testing.assert_close(classifier(batch["video"]), expected, atol=1e-5, rtol=1e-5)
    assert not any(name.startswith("encoder.norm") for name in classifier.state_dict())


def test_initial_values_follow_the_released_code():
    torch.manual_seed(0)
    net = VideoMAE(**SIZES, **DECODER)
    block = net.encoder.blocks.layers[0]
    bound = (6 / (24 + 72)) ** 0.5
    assert 0.95 * bound < float(block.attn.qkv.weight.detach().abs().max()) <= bound
    assert 0 < float(net.mask_token.detach().abs().max()) <= 0.02
    assert all(
        float(p.detach().abs().max()) == 0 for n, p in net.named_parameters() if n.endswith(("_bias", "fc1.bias"))
    )
    head = VideoClassifier(**SIZES, num_classes=400).head
    assert float(head.weight.detach().std()) == pytest.approx(2e-5, rel=0.1)
    assert float(head.bias.detach().abs().max()) == 0


def test_larger_inputs_interpolate_space_bicubically_and_time_linearly():
    t, y, x = (axis.flatten().float() for axis in torch.meshgrid(*(torch.arange(n) for n in (4, 6, 6)), indexing="ij"))
    table = torch.stack([t, y, x], 1)
    assert torch.equal(interpolate_positions(table, (4, 6, 6), (4, 6, 6)), table)
    new = interpolate_positions(table, (4, 6, 6), (8, 9, 9)).view(8, 9, 9, 3)
    assert torch.allclose(new[:, 0, 0, 0], torch.tensor([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.0]), atol=1e-5)
    assert torch.allclose(new[3, 4, :, 1], torch.tensor(2.5), atol=1e-5)
    for steps in (new[3, 2:-2, 4, 1].diff(), new[3, 4, 2:-2, 2].diff()):
        assert torch.allclose(steps, torch.tensor(2 / 3), atol=0.11)
        assert steps.std() > 0.05, "bilinear interpolation would give equal steps"


def test_a_video_of_another_size_and_a_map_of_another_length_are_errors(mae, batch):
    with pytest.raises(EncoreError, match=r"\(3, 4, 16, 16\).*\(3, 8, 16, 16\)"):
        mae(batch["video"][:, :, :4], batch["hidden"])
    with pytest.raises(EncoreError, match=r"hidden map.*\(3, 60\)"):
        mae(batch["video"], batch["hidden"][:, :60])


# Facts


def test_multiply_adds_equal_a_count_by_hand_and_the_paper():
    def stack(depth, width, hidden, n):
        return depth * (n * (4 * width**2 + 2 * width * hidden) + 2 * n * n * width)

    with torch.device("meta"):
        net = model.pretrain_videomae_base_patch16_224()
        own = facts.reconstruction_multiply_adds(net, 160, 784)
        paper = facts.pretraining_gflops("pretrain_videomae_base_patch16_224", 0.5)
    hand = 160 * 1536 * 768 + stack(12, 768, 3072, 160) + 160 * 768 * 384 + stack(3, 384, 1536, 944) + 784 * 384 * 1536
    last = 944 * 2 * 384**2 + 784 * (2 * 384**2 + 2 * 384 * 1536) + 2 * 784 * 944 * 384
    assert own == hand + last
    assert facts.unread_multiply_adds(net, 160, 784) == stack(1, 384, 1536, 944) - last
    assert paper == pytest.approx(25.87, abs=0.005)
    assert facts.tokens([8, 14, 14], "redundant") == 80

"""VideoMAE V2: masks, architecture, objective, facts and published weights."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange

from common.errors import EncoreError
from papers.videomae_v2 import facts, interop, model
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
from papers.videomae_v2.module import IMAGENET_MEAN, IMAGENET_STD, Pretraining, cube_targets, dual_masked_loss

SIZES = {"dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 40, "patch_size": 4, "num_frames": 8, "image_size": 16}
DECODER = {"decoder_dim": 16, "decoder_heads": 2, "decoder_mlp_dim": 28, "decoder_depth": 2}
GRID = (4, 4, 4)


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    """Every parameter, biases and norms too, gets a random value: a dropped or swapped one shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() == 1:
                parameter.add_(0.5)
    return net.eval()


@pytest.fixture(scope="module")
def mae() -> VideoMAE:
    return randomised(VideoMAE(**SIZES, **DECODER))


@pytest.fixture(scope="module")
def classifier() -> VideoClassifier:
    return randomised(VideoClassifier(**SIZES, num_classes=5))


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    hidden, decoded = DualMasking(GRID, encoder_ratio=0.75)(3)
    return {"video": torch.randn(3, 3, 8, 16, 16), "hidden": hidden, "decoded": decoded}


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


# Objective


def test_targets_are_normalised_per_cube_and_channel_with_the_unbiased_deviation(mae, batch):
    index = true_indices(batch["decoded"])
    target = cube_targets(batch["video"], index, mae.encoder.embed, IMAGENET_STD)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    cubes = rearrange(batch["video"] * std + mean, "b c (t u) (h p) (w q) -> b (t h w) (u p q) c", u=2, p=4, q=4)
    cubes = (cubes - cubes.mean(2, keepdim=True)) / (cubes.var(2, unbiased=True, keepdim=True).sqrt() + 1e-6)
    expected = cubes.flatten(2)[batch["decoded"]].view(3, -1, 96)
    torch.testing.assert_close(target, expected, atol=1e-5, rtol=1e-5)
    still = cube_targets(torch.full((3, 3, 8, 16, 16), 0.3), index, mae.encoder.embed, IMAGENET_STD)
    assert float(still.abs().max()) == 0, "a rounding error of the mean would be as large as the 1e-6"


def test_loss_averages_over_decoded_and_hidden_cubes_only():
    prediction = torch.tensor([[[1.0, 3.0], [5.0, 5.0], [2.0, 0.0]]])
    loss = dual_masked_loss(prediction, torch.zeros_like(prediction), torch.tensor([[True, False, True]]))
    assert float(loss) == pytest.approx((5 + 2) / 2)


def test_rows_the_encoder_saw_get_no_gradient(mae, batch):
    module = Pretraining(mae, lr=1e-3)
    kept = []
    handle = mae.decoder.register_forward_hook(lambda *a: (a[-1].retain_grad(), kept.append(a[-1]))[0])
    module.loss(batch).backward()
    handle.remove()
    rows = kept[0].grad.abs().sum(-1)
    seen = ~batch["hidden"].gather(1, true_indices(batch["decoded"]))
    assert seen.sum() == 3 * 8
    assert (rows[seen] == 0).all()
    assert (rows[~seen] > 0).all()


# Facts


def test_parameter_counts_of_the_published_sizes():
    with torch.device("meta"):
        built = {
            94_210_944: model.pretrain_videomae_base_patch16_224(),
            317_782_016: model.pretrain_videomae_large_patch16_224(),
            645_659_392: model.pretrain_videomae_huge_patch16_224(),
            1_026_306_560: model.pretrain_videomae_giant_patch14_224(),
            1_012_611_142: model.vit_giant_patch14_224(710),
        }
    for count, net in built.items():
        assert sum(p.numel() for p in net.parameters()) == count
    assert model.pretrain_videomae_giant_patch14_224.__name__ == "pretrain_videomae_giant_patch14_224"


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


# Published weights


@pytest.fixture(scope="module")
def hub():
    """transformers' two classes with random weights, every eps as in the released code."""
    from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    sizes |= {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
    sizes |= {"decoder_intermediate_size": 28, "patch_size": 4, "image_size": 16, "num_frames": 8}
    config = VideoMAEConfig(**sizes, layer_norm_eps=1e-6, use_mean_pooling=False, norm_pix_loss=True)
    pretraining = randomised(VideoMAEForPreTraining(config))
    config = VideoMAEConfig(**sizes, layer_norm_eps=1e-6, use_mean_pooling=True, num_labels=5)
    fine_tuned = randomised(VideoMAEForVideoClassification(config))
    return pretraining, fine_tuned


def test_pretraining_equals_the_hub_class_both_ways(hub, mae, batch, tmp_path):
    theirs, _ = hub
    theirs.decoder.norm.eps = 1e-6
    theirs.save_pretrained(tmp_path / "theirs")
    interop.to_hub(mae, tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    back.decoder.norm.eps = 1e-6
    for net, other in ((interop.from_hub(tmp_path / "theirs").eval(), theirs), (mae, back)):
        with torch.no_grad():
            expected = other(batch["video"].transpose(1, 2), batch["hidden"])
            output = net(batch["video"], batch["hidden"])
            loss = Pretraining(net, lr=1e-3).loss(batch | {"decoded": batch["hidden"]})
        torch.testing.assert_close(output, expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
        assert output.std() > 0.1


def test_classifier_equals_the_hub_class_both_ways(hub, classifier, batch, tmp_path):
    _, theirs = hub
    theirs.fc_norm.eps = 1e-6
    theirs.save_pretrained(tmp_path / "theirs")
    interop.to_hub(classifier, tmp_path / "ours")
    back = type(theirs).from_pretrained(tmp_path / "ours").eval()
    back.fc_norm.eps = 1e-6
    for net, other in ((interop.classifier_from_hub(tmp_path / "theirs").eval(), theirs), (classifier, back)):
        with torch.no_grad():
            torch.testing.assert_close(
                net(batch["video"]), other(batch["video"].transpose(1, 2)).logits, atol=1e-5, rtol=1e-5
            )


def test_hub_names_of_older_checkpoints_are_read(mae):
    state = {
        name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value
        for name, value in interop.state_to_hub(mae.state_dict()).items()
    }
    read = interop.state_from_hub(state)
    assert read.keys() == mae.state_dict().keys()
    assert all(torch.equal(read[name], value) for name, value in mae.state_dict().items())


def test_names_of_the_released_files_are_read(mae, classifier):
    def released(state, prefix):
        renames = {"encoder.embed.": f"{prefix}patch_embed.", "encoder.norm.": f"{prefix}norm."}
        renames |= {
            "encoder.blocks.layers.": f"{prefix}blocks.",
            "blocks.layers.": "blocks.",
            "attn.out.": "attn.proj.",
        }
        out = {}
        for name, value in state.items():
            for ours, theirs in renames.items():
                name = name.replace(ours, theirs)
            out[name] = value
        return out

    for net, prefix in ((mae, "encoder."), (classifier, "")):
        theirs = released(net.state_dict(), prefix)
        assert f"{prefix}blocks.0.attn.q_bias" in theirs
        read = interop.state_from_released(theirs)
        assert read.keys() == net.state_dict().keys()
        assert all(torch.equal(read[name], value) for name, value in net.state_dict().items())


def test_weights_of_another_size_or_kind_and_damaged_files_are_errors(mae, classifier, tmp_path):
    interop.to_hub(mae, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 48}))
    with pytest.raises(EncoreError, match=f"{tmp_path}.*other size"):
        interop.from_hub(tmp_path)
    with pytest.raises(EncoreError, match="no classifier head"):
        interop.classifier_from_hub(tmp_path)
    whole = Path(tmp_path, "model.safetensors").read_bytes()
    Path(tmp_path, "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EncoreError, match=r"model\.safetensors"):
        interop.from_hub(tmp_path)

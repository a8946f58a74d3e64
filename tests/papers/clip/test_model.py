"""CLIP's architecture and weights against transformers, torch and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPModel

from common.errors import EncoreError
from papers.clip import interop
from papers.clip.model import (
    CLIP,
    AttentionPool2d,
    Bottleneck,
    ModifiedResNet,
    TextTransformer,
    VisionTransformer,
    clip_small,
)
from tests import tiny


def initial_vit() -> CLIP:
    torch.manual_seed(0)
    image = VisionTransformer(image_size=24, patch_size=8, dim=32, depth=2, num_heads=4, embed_dim=20)
    text = TextTransformer(dim=48, depth=2, num_heads=4, vocab_size=60, context_length=11, embed_dim=20)
    return CLIP(image, text)


def tiny_vit() -> CLIP:
    return tiny.randomise(initial_vit())


def tiny_resnet() -> CLIP:
    torch.manual_seed(0)
    image = ModifiedResNet(image_size=64, layers=(1, 2, 1, 1), width=8, embed_dim=20)
    return CLIP(image, TextTransformer(dim=64, depth=1, vocab_size=60, context_length=11, embed_dim=20))


def tokens(*lengths: int, context: int = 11, vocab: int = 60) -> torch.Tensor:
    """sot, pieces, eot, padding 0 with that many pieces a row."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.zeros(len(lengths), context, dtype=torch.long)
    for row, length in zip(rows, lengths):
        row[0], row[length + 1] = vocab - 2, vocab - 1
        row[1 : length + 1] = torch.randint(1, vocab - 2, (length,), generator=generator)
    return rows


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Our model, the directory it was saved to, and transformers' model loaded from there."""
    directory = tmp_path_factory.mktemp("hub")
    model = tiny_vit()
    interop.to_hub(model, directory)
    theirs, report = CLIPModel.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model, directory, theirs.eval()


@torch.no_grad()
def test_embeddings_and_logits_equal_those_of_transformers(hub, images):
    model, _, theirs = hub
    texts = tokens(3, 0, 9)
    expected = theirs(input_ids=texts, pixel_values=images)
    torch.testing.assert_close(model.encode_image(images), expected.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_text(texts), expected.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(model(images, texts), expected.logits_per_image, atol=1e-4, rtol=1e-5)
    assert model.encode_text(texts).std(dim=0).mean() > 0.01  # the rows differ, so the comparison says something


@torch.no_grad()
def test_features_before_the_projection_are_those_of_transformers_pooler(hub, images):
    model, _, theirs = hub
    expected = theirs.vision_model(pixel_values=images).pooler_output
    torch.testing.assert_close(model.image(images, project=False), expected, atol=1e-5, rtol=1e-5)


def test_a_hub_model_with_another_activation_or_eos_is_refused(hub, tmp_path):
    import json
    import shutil

    _, directory, _ = hub
    config = json.loads((directory / "config.json").read_text())
    for part, field, value, message in [
        ("vision_config", "hidden_act", "gelu", "hidden_act 'gelu'"),
        ("text_config", "eos_token_id", 7, "eos_token_id is 7"),
    ]:
        shutil.copytree(directory, tmp_path / field)
        changed = config | {part: config[part] | {field: value}}
        (tmp_path / field / "config.json").write_text(json.dumps(changed))
        with pytest.raises(EncoreError, match=message):
            interop.from_hub(tmp_path / field)


def test_weights_of_another_size_are_an_error_that_names_what_differs(hub):
    _, directory, _ = hub
    torch.manual_seed(0)
    image = VisionTransformer(image_size=32, patch_size=8, dim=32, depth=2, num_heads=4, embed_dim=20)
    text = TextTransformer(dim=48, depth=2, num_heads=4, vocab_size=60, context_length=11, embed_dim=20)
    with pytest.raises(EncoreError, match=r"image\.vit\.positions is \(10, 32\), the model wants \(17, 32\)"):
        interop.load_pretrained(CLIP(image, text), directory)
    interop.load_pretrained(CLIP(image, text), directory, resize_positions=True)
    with pytest.raises(EncoreError, match="do not fit CLIP"):
        interop.load_pretrained(clip_small(60), directory, resize_positions=True)


def test_resized_positions_keep_the_class_token_and_a_smooth_grid():
    vit = VisionTransformer(image_size=64, patch_size=8, dim=4, depth=1, num_heads=1, embed_dim=4).vit
    ramp = torch.arange(4.0)
    grid = (ramp[:, None, None] * torch.tensor([1.0, 0, 0, 0]) + ramp[None, :, None] * torch.tensor([0, 1.0, 0, 0])) + 5
    positions = torch.cat([torch.full((1, 4), 9.0), grid.flatten(0, 1)])
    resized = interop.resize_grid(positions, vit)
    assert resized.shape == (65, 4)
    assert torch.equal(resized[0], positions[0])
    square = resized[1:].unflatten(0, (8, 8))
    assert (square[1:, :, 0] > square[:-1, :, 0]).all()  # grows down the rows, as the grid did
    torch.testing.assert_close(square[:, :, 0], square[:, :1, 0].expand(8, 8))
    torch.testing.assert_close(square[:, :, 1], square[:, :, 0].T)
    assert torch.allclose(square[..., 2], torch.tensor(5.0))
    assert torch.equal(interop.resize_grid(resized, vit), resized)


def test_released_layout_has_the_authors_names_and_shapes(tmp_path):
    model = tiny_vit()
    released = interop.RELEASED_VIT.to_theirs(model.state_dict())
    block = {
        "ln_1.weight": (48,), "ln_1.bias": (48,), "ln_2.weight": (48,), "ln_2.bias": (48,),
        "attn.in_proj_weight": (144, 48), "attn.in_proj_bias": (144,),
        "attn.out_proj.weight": (48, 48), "attn.out_proj.bias": (48,),
        "mlp.c_fc.weight": (192, 48), "mlp.c_fc.bias": (192,), "mlp.c_proj.weight": (48, 192), "mlp.c_proj.bias": (48,),
    }  # fmt: skip
    expected = {f"transformer.resblocks.{i}.{k}": v for i in range(2) for k, v in block.items()}
    expected |= {
        f"visual.transformer.resblocks.{i}.{k}": tuple(n * 32 // 48 for n in v)
        for i in range(2)
        for k, v in block.items()
    }
    expected |= {
        "visual.class_embedding": (32,), "visual.positional_embedding": (10, 32), "visual.conv1.weight": (32, 3, 8, 8),
        "visual.ln_pre.weight": (32,), "visual.ln_pre.bias": (32,), "visual.ln_post.weight": (32,),
        "visual.ln_post.bias": (32,), "visual.proj": (32, 20), "positional_embedding": (11, 48),
        "token_embedding.weight": (60, 48), "ln_final.weight": (48,), "ln_final.bias": (48,),
        "text_projection": (48, 20), "logit_scale": (),
    }  # fmt: skip
    assert {k: tuple(v.shape) for k, v in released.items()} == expected
    back = interop.state_from_released(released)
    assert all(torch.equal(back[k], v) for k, v in model.state_dict().items())


@torch.no_grad()
def test_fused_attention_weights_mean_what_torch_means_by_in_proj():
    model = tiny_vit()
    state = interop.RELEASED_VIT.to_theirs(model.state_dict())
    stem = "transformer.resblocks.0.attn."
    reference = nn.MultiheadAttention(48, 4, batch_first=True)
    reference.load_state_dict({k.removeprefix(stem): v for k, v in state.items() if k.startswith(stem)})
    x = torch.randn(2, 7, 48)
    hidden = torch.full((7, 7), float("-inf")).triu(1)
    expected = reference(x, x, x, attn_mask=hidden, need_weights=False)[0]
    ours = model.text.blocks.layers[0].attn(x, is_causal=True)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_released_file_in_half_precision_loads_without_being_told_its_size(tmp_path, images):
    image = VisionTransformer(image_size=24, patch_size=8, dim=64, depth=1, embed_dim=20)
    text = TextTransformer(dim=64, depth=2, vocab_size=60, context_length=11, embed_dim=20)
    vit, resnet = tiny.randomise(CLIP(image, text)), tiny.randomise(tiny_resnet())
    pairs = ((vit, interop.RELEASED_VIT, images), (resnet, interop.RELEASED_RESNET, torch.randn(2, 3, 64, 64)))
    for model, layout, pixels in pairs:
        state = {k: v.half() for k, v in layout.to_theirs(model.state_dict()).items()}
        state |= {"input_resolution": torch.tensor(24), "context_length": torch.tensor(11)}
        torch.save(state, tmp_path / "model.pt")
        loaded = interop.from_released(tmp_path / "model.pt").eval()
        assert loaded.state_dict().keys() == model.state_dict().keys()
        assert loaded.logit_scale.dtype == torch.float32
        torch.testing.assert_close(loaded.encode_image(pixels), model.encode_image(pixels), atol=0.02, rtol=0)
        torch.testing.assert_close(loaded.encode_text(tokens(4)), model.encode_text(tokens(4)), atol=0.02, rtol=0)


@torch.no_grad()
def test_a_training_checkpoint_with_wrapped_names_is_the_same_model(tmp_path, images):
    image = VisionTransformer(image_size=24, patch_size=8, dim=64, depth=1, embed_dim=20, mlp_dim=96)
    text = TextTransformer(dim=64, depth=2, vocab_size=60, context_length=11, embed_dim=20)
    model = tiny.randomise(CLIP(image, text))
        CLIP(image, TextTransformer(dim=64, depth=2, vocab_size=60, context_length=11, embed_dim=20))
    )
    state = interop.RELEASED_VIT.to_theirs(model.state_dict())
    for prefix in ("module.", "module._orig_mod.", "_orig_mod.", "model."):
        wrapped = {"epoch": 3, "name": "run", "state_dict": {prefix + name: value for name, value in state.items()}}
        torch.save(wrapped | {"optimizer": {"state": {}}}, tmp_path / "epoch_3.pt")
        loaded = interop.from_released(tmp_path / "epoch_3.pt").eval()
        assert torch.equal(loaded.encode_image(images), model.encode_image(images))
        interop.load_pretrained(loaded, tmp_path / "epoch_3.pt")
        assert torch.equal(loaded.encode_text(tokens(4)), model.encode_text(tokens(4)))


@torch.no_grad()
def test_the_width_of_the_mlps_is_free(tmp_path, images):
    image = VisionTransformer(image_size=24, patch_size=8, dim=64, depth=1, embed_dim=20, mlp_dim=96)
    text = TextTransformer(dim=64, depth=2, vocab_size=60, context_length=11, embed_dim=20, mlp_dim=40)
    model = tiny.randomise(CLIP(image, text))
    interop.to_hub(model, tmp_path)
    theirs = CLIPModel.from_pretrained(tmp_path).eval()
    assert (theirs.config.vision_config.intermediate_size, theirs.config.text_config.intermediate_size) == (96, 40)
    ours = interop.from_hub(tmp_path).eval()
    expected = theirs(pixel_values=images, input_ids=tokens(4))
    torch.testing.assert_close(ours.encode_image(images), expected.image_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.encode_text(tokens(4)), expected.text_embeds, atol=1e-5, rtol=1e-5)


def test_a_file_that_is_no_clip_is_an_error_that_says_so(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    with pytest.raises(EncoreError, match=r"other\.pt: unknown weight; it holds another model"):
        interop.from_released(tmp_path / "other.pt")
    with pytest.raises(EncoreError, match=r"no ResNet"):
        interop.to_hub(tiny_resnet(), tmp_path)


# ResNet


@torch.no_grad()
def test_attention_pool_is_multi_head_attention_with_the_mean_as_only_query():
    torch.manual_seed(0)
    pool = tiny.randomise(AttentionPool2d(grid=3, dim=32, num_heads=4, out_dim=10))
    x = torch.randn(2, 32, 3, 3)
    sequence = x.flatten(2).permute(2, 0, 1)
    sequence = torch.cat([sequence.mean(dim=0, keepdim=True), sequence]) + pool.positions[:, None]
    expected, _ = F.multi_head_attention_forward(
        sequence[:1],
        sequence,
        sequence,
        embed_dim_to_check=32,
        num_heads=4,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        need_weights=False,
    )
    torch.testing.assert_close(pool(x), expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pool.c_proj(pool(x, project=False)), expected[0], atol=1e-5, rtol=1e-5)


def test_every_bottleneck_starts_as_relu_of_its_shortcut():
    model = tiny_resnet().image.train()
    blocks = [m for m in model.modules() if isinstance(m, Bottleneck)]
    assert len(blocks) == 5
    for block in blocks:
        x = torch.randn(2, block.conv1.in_channels, 4, 4)
        assert torch.equal(block(x), F.relu(block.shortcut(x)))
        assert block.bn3.weight.requires_grad


def test_only_the_first_convolution_strides_and_pools_do_the_rest():
    model = tiny_resnet().image
    strided = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)]
    assert strided == ["conv1"]
    block = model.get_submodule("layer2.0")
    x = torch.randn(2, 32, 8, 8)
    expected = block.shortcut.bn(block.shortcut.conv(F.avg_pool2d(x, 2)))
    torch.testing.assert_close(block.shortcut(x), expected)
    assert block(x).shape == (2, 64, 4, 4)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 20)
    assert model(torch.randn(2, 3, 64, 64), project=False).shape == (2, 256)


def test_an_image_of_another_resolution_is_an_error():
    for model in (tiny_vit(), tiny_resnet()):
        with pytest.raises(EncoreError, match="px images, got"):
            model.encode_image(torch.zeros(1, 3, 96, 96))


# Text


@torch.no_grad()
def test_text_features_ignore_tokens_after_eos_and_see_all_before():
    model = tiny_vit()
    texts = tokens(4)
    base = model.encode_text(texts)
    padded = texts.clone()
    padded[:, 6:] = 17
    assert torch.equal(model.encode_text(padded), base)
    torch.testing.assert_close(model.encode_text(texts[:, :6]), base, atol=1e-6, rtol=0)
    for place in range(1, 5):
        changed = texts.clone()
        changed[:, place] = 1 + changed[:, place] % 50
        assert not torch.allclose(model.encode_text(changed), base, atol=1e-3), place


@torch.no_grad()
def test_a_text_longer_than_the_context_is_an_error():
    with pytest.raises(EncoreError, match="takes 11 tokens, got 12"):
        tiny_vit().encode_text(torch.zeros(1, 12, dtype=torch.long))


# Temperature and initialisation


def test_temperature_starts_at_7_hundredths_scales_the_logits_and_stops_at_100(images):
    model = initial_vit().eval()
    assert model.scale.item() == pytest.approx(14.2857, abs=1e-3)
    cosines = F.normalize(model.image(images), dim=-1) @ F.normalize(model.text(tokens(3, 5)), dim=-1).T
    torch.testing.assert_close(model(images, tokens(3, 5)), cosines / 0.07)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(90))
        model.clip_scale()
        assert model.scale.item() == pytest.approx(90, abs=1e-3)
        model.logit_scale.fill_(6.0)
        model.clip_scale()
        assert model.scale.item() == pytest.approx(100, abs=1e-3)


def test_weights_start_as_in_the_released_code():
    torch.manual_seed(0)
    text = TextTransformer(dim=256, depth=3, vocab_size=500, context_length=64, embed_dim=128)
    image = VisionTransformer(image_size=64, patch_size=8, dim=256, depth=1, embed_dim=128)
    pool = AttentionPool2d(grid=7, dim=256, num_heads=4, out_dim=128)
    layer = text.blocks.layers[1]
    expected = [
        (text.token_embedding.weight, 0.02),
        (text.positions, 0.01),
        (text.proj.weight, 1 / 16),
        (layer.attn.qkv.weight, 1 / 16),
        (layer.attn.out.weight, 1 / 16 / math.sqrt(6)),
        (layer.mlp.fc1.weight, 1 / math.sqrt(512)),
        (layer.mlp.fc2.weight, 1 / 16 / math.sqrt(6)),
        (image.vit.positions, 1 / 16),
        (image.vit.cls_token, 1 / 16),
        (image.proj.weight, 1 / 16),
        (image.vit.blocks.layers[0].attn.qkv.weight, math.sqrt(2 / (4 * 256))),
        (pool.positions, 1 / 16),
        (pool.c_proj.weight, 1 / 16),
        (pool.q_proj.weight, 1 / 16),
    ]
    for weight, std in expected:
        assert weight.std().item() == pytest.approx(std, rel=0.12 if weight.numel() < 300 else 0.03), weight.shape
    for bias in (layer.attn.qkv.bias, layer.attn.out.bias, image.vit.blocks.layers[0].attn.qkv.bias):
        assert not bias.any()

"""The learned prompt, its encoders and their place in a frozen CLIP."""

import copy

import pytest
import torch
from torch import nn

from common.errors import EncoreError
from common.formats.tokenizers import ClipTokenizer
from papers.clip.model import CLIP, ModifiedResNet, TextTransformer, VisionTransformer
from papers.clip.zero_shot import zero_shot_classifier
from papers.pre import model as sizes
from papers.pre.facts import encoder_multiply_adds
from papers.pre.model import BiLSTM, BottleneckMLP, ContextTransformer, Prompt, PromptedCLIP, PromptEncoder
from papers.pre.prompts import context_ids, harmonic_mean, prompt_tokens
from tests import tiny

TOKENIZER = ClipTokenizer.train(["a photo of a cat."] * 9 + ["a photo of a blue dog."] * 9, 560, context_length=24)
WORDS, NAMES = "a photo of a", ["cat", "blue_dog", "zebra"]
VARIANTS = ("lstm1", "lstm2", "mlp1", "mlp2", "transformer")


def small_clip(resnet: bool = False) -> CLIP:
    """Random weights everywhere, so that gains and biases count."""
    torch.manual_seed(0)
    image = (
        ModifiedResNet(image_size=32, layers=(1, 1, 1, 1), width=2, embed_dim=16)
        if resnet
        else VisionTransformer(image_size=16, patch_size=8, dim=32, depth=1, num_heads=2, embed_dim=16)
    )
    text = TextTransformer(dim=32, depth=2, num_heads=2, vocab_size=len(TOKENIZER), context_length=24, embed_dim=16)
    return tiny.randomise(CLIP(image, text))


def prompted(variant="lstm1", **arguments) -> PromptedCLIP:
    """Started from WORDS."""
    clip = small_clip()
    torch.manual_seed(1)
    model = PromptedCLIP(clip, 4, variant, **arguments)
    model.start_from(context_ids(TOKENIZER, WORDS))
    return model


def silence(encoder: nn.Module) -> None:
    """All weights and biases zero."""
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def tokens():
    return prompt_tokens(TOKENIZER, NAMES, 4, WORDS)


# The prompt in its place


@pytest.mark.parametrize("variant", [None, "lstm1", "lstm2", "mlp1", "mlp2"])
def test_at_its_first_words_with_a_silent_encoder_it_is_zero_shot_clip(variant, images, tokens):
    model = prompted(variant)
    if variant is not None:
        silence(model.prompt.encoder)
    names = [name.replace("_", " ") for name in NAMES]
    expected = zero_shot_classifier(model.clip, TOKENIZER, names, [f"{WORDS} {{}}."])
    torch.testing.assert_close(model.classifier(tokens), expected, atol=1e-5, rtol=0)
    logits = model.clip.scale * model.clip.encode_image(images) @ expected.T
    torch.testing.assert_close(model(images, tokens), logits, atol=1e-5, rtol=1e-5)
    assert logits.std(dim=1).min() > 0.1  # the classes differ, so the comparison says something


def test_a_learned_context_is_read_as_if_its_vectors_were_words_of_the_vocabulary(tokens):
    model = prompted()
    spare = torch.tensor([0, 1, 2, 3])  # bytes that no prompt here uses
    assert not torch.isin(tokens[:, 1:-1], spare[1:]).any()
    other = copy.deepcopy(model.clip)
    with torch.no_grad():
        other.text.token_embedding.weight[spare] = model.prompt()
    rewritten = tokens.clone()
    rewritten[:, 1:5] = spare
    torch.testing.assert_close(model.classifier(tokens), other.encode_text(rewritten), atol=1e-6, rtol=1e-5)
    start = prompted(None).classifier(tokens)
    assert (model.classifier(tokens) - start).abs().max() > 1e-3  # the encoder of the first step already matters


def test_the_ids_under_the_context_and_the_padding_do_not_matter_but_the_place_of_the_end_does(tokens):
    model = prompted()
    expected = model.classifier(tokens)
    other = tokens.clone()
    other[:, 1:5] = 7
    torch.testing.assert_close(model.classifier(other), expected)
    torch.testing.assert_close(model.classifier(torch.cat([tokens, tokens])[:3, :-4]), expected)
    ends = tokens.argmax(dim=1)
    assert len(set(ends.tolist())) > 1
    padded = tokens.clone()
    padded[0, ends[0] + 1 :] = 9
    torch.testing.assert_close(model.classifier(padded), expected)


def test_logits_are_scaled_cosines_with_the_clips_own_temperature(images, tokens):
    model = prompted()
    with torch.no_grad():
        model.clip.logit_scale.fill_(2.0)
    weights, features = model.classifier(tokens), model.encode_image(images)
    for rows in (weights, features):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    torch.testing.assert_close(model(images, tokens), 7.3890561 * features @ weights.T)


# What is trained


@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_only_the_prompt_takes_gradients(variant, images, tokens):
    model = prompted(variant).train()
    model(images, tokens).logsumexp(dim=1).sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("prompt."):
            assert parameter.grad is not None, name
        else:
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name
    assert model.prompt.context.grad.abs().min() > 0


def test_the_gradient_of_the_context_is_that_of_the_prompt_through_encoder_and_residual(images, tokens):
    model = prompted()
    loss = model(images, tokens).logsumexp(dim=1).sum()
    loss.backward()
    context = model.prompt.context.detach()
    jacobian = torch.autograd.functional.jacobian(model.prompt.encoder.networks[0], context)  # (M, D, M, D)
    free = prompted(None)
    free.prompt.start_from(model.prompt().detach())
    free(images, tokens).logsumexp(dim=1).sum().backward()
    g = free.prompt.context.grad
    expected = g + torch.einsum("md,mdne->ne", g, jacobian)
    torch.testing.assert_close(model.prompt.context.grad, expected, atol=1e-6, rtol=1e-4)
    assert (expected - g).abs().max() > 1e-3 * g.abs().max()


def test_clip_stays_in_eval_mode_and_its_batch_statistics_stay_as_they_are(tokens):
    model = PromptedCLIP(small_clip(resnet=True))
    before = {name: value.clone() for name, value in model.clip.state_dict().items()}
    model.train()
    assert model.prompt.encoder.training
    assert not any(module.training for module in model.clip.modules())
    model(torch.randn(4, 3, 32, 32), tokens).sum().backward()
    for name, value in model.clip.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("separate", [False, True])
def test_folding_keeps_the_logits_and_leaves_a_coop_prompt(variant, separate, images, tokens):
    model = prompted(variant, separate=separate)
    optimizer = torch.optim.SGD(model.prompt.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model.train()(images, tokens), torch.tensor([0, 1, 2, 0, 1])).backward()
        optimizer.step()
    with torch.no_grad():
        before = model.eval()(images, tokens)
    model.train().prompt.fold()
    assert [name for name, _ in model.prompt.named_parameters()] == ["context"]
    torch.testing.assert_close(model(images, tokens), before, atol=0, rtol=0)


# The encoders


def test_the_bilstm_runs_over_the_context_tokens_forwards_and_backwards():
    torch.manual_seed(0)
    network = BiLSTM(6, 1)
    context = torch.randn(4, 6)

    def pass_over(rows, suffix):
        weights = dict(network.lstm.named_parameters())
        h, c, out = torch.zeros(3), torch.zeros(3), []
        for x in rows:
            gates = weights[f"weight_ih_l0{suffix}"] @ x + weights[f"bias_ih_l0{suffix}"]
            gates = gates + weights[f"weight_hh_l0{suffix}"] @ h + weights[f"bias_hh_l0{suffix}"]
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
        return torch.stack(out)

    forwards, backwards = pass_over(context, ""), pass_over(context.flip(0), "_reverse").flip(0)
    torch.testing.assert_close(network(context), torch.cat([forwards, backwards], dim=1))
    assert all(parameter.abs().max() <= 3**-0.5 for parameter in network.parameters())  # torch's default


@pytest.mark.parametrize("variant", ["lstm1", "lstm2"])
def test_a_silent_lstm_gives_back_the_context_exactly(variant):
    encoder = PromptEncoder(variant, 8, 4)
    silence(encoder)
    context = torch.randn(4, 8)
    assert torch.equal(encoder(context), context)
    encoder.residual = False
    assert torch.equal(encoder(context), torch.zeros(4, 8))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_residual_adds_the_input_embeddings(variant):
    torch.manual_seed(0)
    encoder = PromptEncoder(variant, 8, 4).eval()
    context = torch.randn(4, 8)
    torch.testing.assert_close(encoder(context), encoder.networks[0](context) + context)
    encoder.residual = False
    torch.testing.assert_close(encoder(context), encoder.networks[0](context))


def test_the_mlp_is_two_layers_and_its_second_pass_uses_the_same_ones():
    torch.manual_seed(0)
    network, context = BottleneckMLP(8, 1), torch.randn(4, 8)
    first, second = network.mlp.fc1, network.mlp.fc2

    def once(x):
        return (x @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias

    torch.testing.assert_close(network(context), once(context))
    network.times = 2
    torch.testing.assert_close(network(context), once(once(context)))  # nothing between the passes


def test_the_transformer_is_torchs_with_sinusoidal_positions():
    torch.manual_seed(0)
    network, context = ContextTransformer(16).eval(), torch.randn(4, 16)
    theirs = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, batch_first=True), 2).eval()
    with torch.no_grad():
        for layer, other in zip(network.blocks.layers, theirs.layers):
            for parameter in (*layer.norm1.parameters(), *layer.norm2.parameters(), layer.attn.qkv.bias):
                parameter.add_(0.3 * torch.randn_like(parameter))
            for name, source in {
                "self_attn.in_proj_": layer.attn.qkv, "self_attn.out_proj.": layer.attn.out, "norm1.": layer.norm1,
                "norm2.": layer.norm2, "linear1.": layer.mlp.fc1, "linear2.": layer.mlp.fc2,
            }.items():  # fmt: skip
                for kind in ("weight", "bias"):
                    other.get_parameter(name + kind).copy_(getattr(source, kind))
    position = torch.arange(4.0)[:, None]
    angles = position / 10000 ** (torch.arange(0, 16, 2) / 16)
    table = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
    torch.testing.assert_close(network(context), theirs((context + table)[None])[0], atol=1e-5, rtol=1e-5)
    assert network.blocks.layers[0].mlp.fc1.out_features == 2048
    assert (network.train()(context) - network(context)).abs().max() > 1e-3  # dropout


@pytest.mark.parametrize("variant, mixes", [("lstm1", True), ("mlp1", False), ("transformer", True)])
def test_one_shared_network_mixes_tokens_and_separate_networks_do_not(variant, mixes):
    torch.manual_seed(0)
    context = torch.randn(4, 8)
    changed = context.clone()
    changed[2] += 1
    for separate in (False, True):
        encoder = PromptEncoder(variant, 8, 4, separate=separate).eval()
        moved = (encoder(changed) - encoder(context)).abs().amax(dim=1) > 1e-6
        assert moved.tolist() == ([True] * 4 if mixes and not separate else [False, False, True, False])
    same = context[:1].expand(4, -1)
    outputs = PromptEncoder("mlp1", 8, 4, separate=True)(same)
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3  # each token has weights of its own


def test_published_sizes():
    with torch.device("meta"):
        for build, image_size in [(sizes.pre_vit_b32, 224), (sizes.pre_rn50, 224), (sizes.pre_rn101, 224)]:
            model = build()
            assert model.clip.image.image_size == image_size
            assert model.prompt.context.shape == (4, 512)
        assert len(sizes.pre_rn50(num_context=16).prompt) == 16
    assert encoder_multiply_adds("lstm1") == 4 * 2 * 4 * 256 * (512 + 256)


# Words, names, metric


def test_prompts_are_words_name_full_stop_and_underscores_are_spaces(tokens):
    assert [TOKENIZER.decode(row.tolist()) for row in tokens] == [
        f"a photo of a {name} ." for name in ("cat", "blue dog", "zebra")
    ]
    without = prompt_tokens(TOKENIZER, NAMES, 6)
    assert TOKENIZER.decode(without[0].tolist()) == "x x x x x x cat ."
    assert (without.argmax(dim=1) == tokens.argmax(dim=1) + 2).all()


def test_a_context_without_words_is_small_noise_and_words_must_be_as_many_as_its_tokens():
    torch.manual_seed(0)
    assert Prompt(512, 16).context.std().item() == pytest.approx(0.02, rel=0.05)
    model = prompted(None)
    embeddings = model.clip.text.token_embedding.weight[context_ids(TOKENIZER, WORDS)]
    assert torch.equal(model.prompt.context, embeddings)
    assert len(set(map(tuple, embeddings.tolist()))) == 3  # the two "a" are alike
    with pytest.raises(EncoreError, match="set num_context"):
        model.start_from(context_ids(TOKENIZER, "a photo of"))
    with pytest.raises(EncoreError, match="has 3 tokens, the model learns 4"):
        prompt_tokens(TOKENIZER, NAMES, 4, "a photo of")


@pytest.mark.parametrize(
    "names, message",
    [([], "is empty"), (["cat", " _"], "is empty"), (["q" * 30], "'qqqq.*shorten the name")],
)
def test_class_names_that_make_no_prompt_are_refused(names, message):
    with pytest.raises(EncoreError, match=message):
        prompt_tokens(TOKENIZER, names, 4, WORDS)


def test_empty_words_are_refused():
    with pytest.raises(EncoreError, match="words of a context are empty"):
        context_ids(TOKENIZER, " ")


def test_harmonic_mean_is_dominated_by_the_lower_value():
    assert harmonic_mean(50, 50) == 50
    assert harmonic_mean(82.14, 71.88) == pytest.approx(76.67, abs=0.005)  # not the mean of the data sets' own H
    assert harmonic_mean(90, 10) == 18
    assert harmonic_mean(0, 90) == harmonic_mean(90, 0) == 0

"""BERT and its masked-word head against transformers, conversion both ways, and the masked-word corruption."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertModel

from common.errors import EncoreError
from common.fast.packed import Packing
from common.interop.bert import bert_from_hub, bert_to_hub, load_bert
from common.layers.bert import Bert, BertMLM, bert_base, packed_loss, packed_states
from common.masking import mlm_mask

SIZES = {"vocab_size": 50, "dim": 24, "depth": 2, "num_heads": 3, "mlp_dim": 48, "max_positions": 16}
TOKENS = torch.randint(3, 50, (3, 10), generator=torch.Generator().manual_seed(0))
VALID = torch.arange(10) < torch.tensor([10, 7, 2])[:, None]


@pytest.fixture
def peer():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
        max_position_embeddings=16,
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "LayerNorm" in name:  # zero biases would hide a wrong mapping
            torch.nn.init.normal_(parameter, std=0.5)
    return model


def test_masked_words_equal_transformers_and_go_back(peer, tmp_path):
    peer.save_pretrained(tmp_path / "theirs")
    ours = bert_from_hub(tmp_path / "theirs")
    expected = peer(input_ids=TOKENS, attention_mask=VALID.long()).logits
    torch.testing.assert_close(ours(TOKENS, VALID)[VALID], expected[VALID], atol=1e-5, rtol=0)
    labels = TOKENS.masked_fill(torch.rand(3, 10) < 0.5, -100)
    loss = peer(input_ids=TOKENS, attention_mask=VALID.long(), labels=labels).loss
    torch.testing.assert_close(ours.loss(TOKENS, labels, VALID), loss, atol=1e-5, rtol=0)
    bert_to_hub(ours, tmp_path / "ours")
    again, info = BertForMaskedLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    torch.testing.assert_close(again.eval()(input_ids=TOKENS, attention_mask=VALID.long()).logits, expected)


def test_without_work_on_padding_the_numbers_stay(peer, tmp_path):
    peer.save_pretrained(tmp_path)
    ours, packed = bert_from_hub(tmp_path), bert_from_hub(tmp_path)
    segments = (torch.arange(10) > 4).long().expand(3, 10)
    states = packed_states(packed.bert, TOKENS, Packing(VALID), segments)
    torch.testing.assert_close(states, ours.bert(TOKENS, VALID, segments)[VALID], atol=1e-5, rtol=0)
    torch.testing.assert_close(packed.bert(TOKENS, VALID), ours.bert(TOKENS, VALID))
    labels = TOKENS.masked_fill((torch.arange(30).view(3, 10) % 3 > 0) | ~VALID, -100)
    losses = [ours.loss(TOKENS, labels, VALID), packed_loss(packed, TOKENS, labels, VALID)]
    torch.testing.assert_close(losses[1], losses[0])
    for loss in losses:
        loss.backward()
    for (name, p), q in zip(ours.named_parameters(), packed.parameters()):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-6, rtol=1e-4, msg=name)


def test_segments_and_the_encoder_alone_equal_transformers(peer, tmp_path):
    segments = (torch.arange(10) > 4).long().expand(3, 10)
    peer.bert.save_pretrained(tmp_path)  # names without the `bert.` prefix, no head
    ours = bert_from_hub(tmp_path).bert
    assert isinstance(BertModel.from_pretrained(tmp_path), BertModel)
    expected = peer.bert(input_ids=TOKENS, token_type_ids=segments).last_hidden_state
    torch.testing.assert_close(ours(TOKENS, segments=segments), expected, atol=1e-5, rtol=0)
    first = torch.zeros(3, 1, dtype=torch.long)
    torch.testing.assert_close(ours(TOKENS, segments=segments, read=first)[:, 0], expected[:, 0], atol=1e-5, rtol=0)


def test_padding_changes_nothing():
    model = Bert(**SIZES).eval()
    short = model(TOKENS[1:2, :7])
    padded = TOKENS[1:2].masked_fill(~VALID[1:2], 0)
    torch.testing.assert_close(model(padded, VALID[1:2])[:, :7], short, atol=1e-6, rtol=0)


def test_base_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = BertMLM(bert_base())
    assert sum(p.numel() for p in model.parameters()) == 109_514_298


def test_wrong_sizes_and_foreign_configs_are_named(peer, tmp_path):
    peer.save_pretrained(tmp_path)
    with pytest.raises(EncoreError, match="other size"):
        load_bert(BertMLM(Bert(**{**SIZES, "mlp_dim": 32})), tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"gelu"', '"relu"'))
    with pytest.raises(EncoreError, match="hidden_act is 'relu'"):
        bert_from_hub(tmp_path)
    with pytest.raises(EncoreError, match="17 tokens, but the model has 16 positions"):
        Bert(**SIZES)(torch.ones(1, 17, dtype=torch.long))


def test_masking_follows_80_10_10_and_spares_what_is_not_eligible():
    torch.manual_seed(0)
    tokens = torch.randint(10, 1000, (200, 500))
    eligible = torch.ones_like(tokens, dtype=torch.bool)
    eligible[:, 0] = eligible[:, -1] = False
    inputs, labels = mlm_mask(tokens, eligible, ratio=0.3, mask_id=4, vocab_size=1000)
    chosen = labels != -100
    assert not chosen[~eligible].any()
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    assert chosen[eligible].float().mean().item() == pytest.approx(0.3, abs=0.005)
    masked = inputs[chosen] == 4
    kept = inputs[chosen] == tokens[chosen]
    assert masked.float().mean().item() == pytest.approx(0.8 + 0.1 / 1000, abs=0.005)
    assert kept.float().mean().item() == pytest.approx(0.1 + 0.1 / 1000, abs=0.005)


def test_tokens_of_a_word_are_chosen_together():
    torch.manual_seed(0)
    tokens = torch.randint(10, 1000, (50, 60))
    words = torch.arange(60).div(3, rounding_mode="floor").expand(50, 60)
    eligible = torch.ones_like(tokens, dtype=torch.bool)
    _, labels = mlm_mask(tokens, eligible, ratio=0.5, mask_id=4, vocab_size=1000, words=words)
    chosen = (labels != -100).unflatten(1, (20, 3))
    assert torch.equal(chosen.any(2), chosen.all(2))
    assert chosen.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_a_narrow_model_starts_with_the_gain_of_a_wide_one():
    from common.layers.init import same_gain_std

    assert same_gain_std(768) == pytest.approx(0.02)
    gains = []
    for dim, std in ((768, 0.02), (48, same_gain_std(48))):
        torch.manual_seed(0)
        model = BertMLM(Bert(vocab_size=50, dim=dim, depth=1, num_heads=4, mlp_dim=dim, init_std=std))
        x = torch.randn(2000, dim)
        layers = (model.bert.blocks.layers[0].attn.qkv, model.bert.blocks.layers[0].mlp.fc1, model.head.dense)
        gains.append([layer(x).std().item() for layer in layers])
    assert gains[1] == pytest.approx(gains[0], rel=0.1)

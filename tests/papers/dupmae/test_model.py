"""DupMAE against transformers at equal weights, and what its losses, masks and representation promise."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from sklearn.metrics import ndcg_score
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import EncoreError
from common.layers.bert import Bert
from papers.dupmae import interop, retriever
from papers.dupmae.bm25 import BM25, terms
from papers.dupmae.masking import decoder_mask, encoder_mask, whole_word_masks, word_index
from papers.dupmae.model import (
    Batch,
    DupMAE,
    EnhancedDecoder,
    bag_of_words,
    bag_of_words_loss,
    dupmae_base,
    lexical,
    retromae_base,
)
from papers.dupmae.module import Pretraining, word_recall
from papers.dupmae.pooling import max_pooled_logits
from papers.dupmae.retriever import (
    Representation,
    Retriever,
    contrastive_loss,
    distillation_loss,
    dupmae_retriever,
    retromae_retriever,
    sparsify,
)
from papers.dupmae.search import Index, ranking_metrics

V, D, HEADS = 50, 32, 4
CLS, SEP, MASK, UNK = 2, 3, 4, 1
SIZE = {"vocab_size": V, "dim": D, "depth": 2, "num_heads": HEADS, "mlp_dim": 48, "max_positions": 40}
CONTINUES = torch.arange(V) >= 40


def shaken(model):
    """Random values also where initialisation puts zeros and ones, so that no weight can be left out unseen."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        else:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def small(**kwargs) -> DupMAE:
    torch.manual_seed(0)
    return shaken(
        DupMAE(Bert(**SIZE, dropout=0.0, attention_dropout=0.0), dropout=0.0, attention_dropout=0.0, **kwargs)
    )


def small_retriever(dim: int | None = 8, top_k: int = 5) -> Retriever:
    torch.manual_seed(0)
    return shaken(Retriever(Bert(**SIZE, dropout=0.0, attention_dropout=0.0), dim, top_k))


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Three texts of 10, 7 and 4 tokens with repeated words, masked."""
    torch.manual_seed(2)
    tokens = torch.randint(5, V, (3, 12))
    tokens[0, 3] = tokens[0, 5] = tokens[0, 1]
    for row, length in zip(tokens, (12, 9, 6)):
        row[0], row[length - 1], row[length:] = CLS, SEP, 0
    valid = tokens.ne(0)
    text = valid & tokens.ne(CLS) & tokens.ne(SEP)
    words = word_index(tokens, text, CONTINUES)
    inputs, labels = encoder_mask(tokens, words, valid.sum(1), ratio=0.3, mask_id=MASK, unknown=UNK, vocab_size=V)
    return Batch(tokens, text, inputs, labels, decoder_mask(words, valid, 0.5))


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A small random BertForMaskedLM and the directory it was saved to."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=48,
        max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = shaken(transformers.BertForMaskedLM(config))
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    return model, folder


def pretraining(method: str, start=None, **kwargs) -> Pretraining:
    """The training module around a small model."""
    module = Pretraining("tiny", method, V, dropout=0.0, **kwargs)
    module.model = small(embed_query=method == "dupmae")
    if start is not None:
        interop.load_start(module.model.mlm, start)
    return module.eval()


# ------------------------------------------------------------------------------------------- the three losses, whole


def bert_layer(decoder: EnhancedDecoder, query: Tensor, memory: Tensor, allowed: Tensor) -> Tensor:
    """Attention with queries of its own written out, head by head and row by row."""
    (wq, bq), (wkv, bkv) = ((m.weight, m.bias) for m in (decoder.attn.q, decoder.attn.kv))
    size = D // HEADS
    q, k, v = query @ wq.T + bq, memory @ wkv[:D].T + bkv[:D], memory @ wkv[D:].T + bkv[D:]
    read = torch.zeros_like(query)
    for b in range(len(query)):
        for i in range(query.shape[1]):
            for h in range(HEADS):
                part = slice(h * size, (h + 1) * size)
                keys = allowed[b, i].nonzero()[:, 0]
                weights = (k[b, keys, part] @ q[b, i, part] / math.sqrt(size)).softmax(0)
                read[b, i, part] = weights @ v[b, keys, part]
    x = decoder.norm1(decoder.attn.out(read) + query)
    return decoder.norm2(decoder.mlp.fc2(F.gelu(decoder.mlp.fc1(x))) + x)


@torch.no_grad()
@pytest.mark.parametrize("method", ["dupmae", "retromae"])
def test_the_three_losses_equal_those_written_out_around_a_transformers_model(hub, batch, method):
    theirs, folder = hub
    module = pretraining(method, folder, bag_weight=0.1)
    found = module.losses(batch)
    tokens, text, valid = batch.tokens, batch.text, batch.tokens.ne(0)
    out = theirs(batch.inputs, valid.long(), labels=batch.labels, output_hidden_states=True)
    torch.testing.assert_close(found["mlm"], out.loss)

    bert, head = theirs.bert, theirs.cls
    cls = out.hidden_states[-1][:, :1]
    memory = torch.cat([cls, bert.embeddings(input_ids=tokens)[:, 1:]], dim=1)
    if method == "dupmae":
        query = bert.embeddings(inputs_embeds=cls.expand(-1, tokens.shape[1], -1))
    else:
        query = cls + bert.embeddings.position_embeddings.weight[: tokens.shape[1]]
    logits = head(bert_layer(module.model.decoder, query, memory, batch.allowed))
    reconstruction = F.cross_entropy(logits[text], tokens[text])
    torch.testing.assert_close(found["reconstruction"], reconstruction)
    total = out.loss + reconstruction
    if method == "dupmae":
        mu = (out.logits[:, 1:] - 1000 * (~valid[:, 1:, None])).amax(1)
        bag = 0.0
        for row, ids, real in zip(mu.log_softmax(-1), tokens, text):
            bag -= sum(row[i] for i in set(ids[real].tolist())) / int(real.sum()) / len(tokens)
        torch.testing.assert_close(found["bag"], bag)
        total = total + 0.1 * bag
    torch.testing.assert_close(found["loss"], total)


def test_the_released_weight_of_the_bag_is_the_default_and_mlm_is_the_first_loss_alone(hub, batch):
    assert Pretraining("tiny", "dupmae", V).bag_weight == 0.1
    module = pretraining("mlm", hub[1])
    assert module.losses(batch).keys() == {"mlm", "loss"}
    frozen = Pretraining("tiny", "mlm", V)
    assert not any(p.requires_grad for p in frozen.model.decoder.parameters())


@torch.no_grad()
def test_a_random_replacement_that_happens_to_be_padding_is_read_as_a_token(batch):
    module = pretraining("dupmae")
    where = batch.text.nonzero()[0]
    inputs = batch.inputs.clone()
    inputs[tuple(where)] = 0
    hidden = module.model.mlm.bert(inputs, batch.tokens.ne(0))
    expected = module.model.masked_word_loss(hidden, batch.labels)
    torch.testing.assert_close(module.losses(batch._replace(inputs=inputs))["mlm"], expected)


@torch.no_grad()
def test_decoder_layer_with_one_stream_equals_berts_layer(hub):
    from transformers.models.bert.modeling_bert import BertLayer

    theirs = shaken(BertLayer(hub[0].config))
    ours = EnhancedDecoder(D, HEADS, 48, dropout=0.0, attention_dropout=0.0).eval()
    state = theirs.state_dict()
    kv = ("attention.self.key", "attention.self.value")
    for kind in ("weight", "bias"):
        getattr(ours.attn.kv, kind).data = torch.cat([state[f"{name}.{kind}"] for name in kv])
    names = {
        "attention.self.query": ours.attn.q, "attention.output.dense": ours.attn.out,
        "attention.output.LayerNorm": ours.norm1, "intermediate.dense": ours.mlp.fc1,
        "output.dense": ours.mlp.fc2, "output.LayerNorm": ours.norm2,
    }  # fmt: skip
    for name, part in names.items():
        part.load_state_dict({kind: state[f"{name}.{kind}"] for kind in ("weight", "bias")})
    torch.manual_seed(3)
    x, allowed = torch.randn(2, 7, D), torch.rand(2, 7, 7) < 0.6
    allowed[:, :, 0] = True
    additive = torch.zeros(2, 1, 7, 7).masked_fill(~allowed[:, None], torch.finfo(torch.float32).min)
    theirs_out = theirs(x, attention_mask=additive)
    theirs_out = theirs_out[0] if isinstance(theirs_out, tuple) else theirs_out
    torch.testing.assert_close(ours(x, x, allowed), theirs_out, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------- enhanced decoding


def test_a_row_of_the_decoder_depends_on_what_its_mask_shows_and_never_on_its_own_token(batch):
    model = small()
    tokens = torch.arange(5, 15)[None].clone()  # all different
    tokens[0, 0], tokens[0, -1] = CLS, SEP
    words = word_index(tokens, tokens.gt(SEP), CONTINUES)
    allowed = decoder_mask(words, tokens.ne(0), 0.5)
    cls = torch.randn(1, D, requires_grad=True)
    for row in range(1, 9):
        words_grad, cls_grad = torch.autograd.grad(
            model.decode(cls, tokens, allowed)[0, row].sin().sum(), [model.mlm.bert.embeddings.words.weight, cls]
        )
        seen = words_grad[tokens[0]].abs().sum(1) > 0
        assert seen[1:].tolist() == allowed[0, row, 1:].tolist()
        assert not seen[row]
        assert not seen[0]  # key 0 is the sentence embedding, not the word [CLS]
        assert cls_grad.abs().sum() > 0


def test_the_sentence_embedding_is_query_and_key_and_its_gradient_reaches_the_encoder(batch):
    model, tokens = small(), batch.tokens
    hidden = model.mlm.bert(batch.inputs, tokens.ne(0))
    hidden.retain_grad()
    model.reconstruction_loss(hidden[:, 0], tokens, batch.text, batch.allowed).backward()
    assert (hidden.grad[:, 0].abs().sum(1) > 0).all()
    assert not hidden.grad[:, 1:].any()
    only = torch.zeros_like(batch.allowed)
    only[..., 0] = True
    a, b = (model.decode(hidden.detach()[:, 0], t, only) for t in (tokens, tokens.flip(0)))
    assert torch.equal(a, b)  # nothing but [CLS] seen: the tokens do not matter


def test_every_text_token_is_predicted_and_nothing_else(batch):
    model, tokens = small(), batch.tokens
    cls = torch.randn(3, D)
    out = model.decode(cls, tokens, batch.allowed)
    logp = model.mlm.logits(out).log_softmax(-1)
    rows = [-logp[b, n, tokens[b, n]] for b, length in enumerate((12, 9, 6)) for n in range(1, length - 1)]
    loss = model.reconstruction_loss(cls, tokens, batch.text, batch.allowed)
    assert len(rows) == 10 + 7 + 4
    torch.testing.assert_close(loss, torch.stack(rows).mean())


def test_row_masks_hide_half_of_the_text_and_the_row_itself_and_show_cls_and_sep():
    torch.manual_seed(0)
    length = 22
    tokens = torch.randint(5, 40, (40, length + 3))  # all words are single tokens
    tokens[:, 0], tokens[:, length - 1], tokens[:, length:] = CLS, SEP, 0
    tokens[0, length - 4] = SEP
    tokens[0, length - 3 :] = 0
    valid, text = tokens.ne(0), tokens.gt(SEP)
    allowed = decoder_mask(word_index(tokens, text, CONTINUES), valid, 0.5)
    assert not allowed.diagonal(dim1=1, dim2=2)[valid].any()
    assert allowed[:, 1:length, 0].all()
    assert allowed[1:, : length - 1, length - 1].all()
    assert allowed[0, : length - 4, length - 4].all()
    assert not allowed[..., length:].any()
    assert allowed[:, length:].sum(-1).eq(1).all()  # rows of padding see [CLS] alone, so that softmax is defined
    assert allowed[:, length:, 0].all()
    hidden = (~allowed[1:, 1 : length - 1, 1 : length - 1]).sum(-1)
    assert set(hidden.unique().tolist()) == {11, 12}  # 0.5 * 22 tokens, and itself where it was not among them
    share = (~allowed[1:, 1:length, 1 : length - 1]).float().mean(dim=(0, 1))
    assert (
        share - 0.57
    ).abs().max() < 0.06  # 11 of 20 text tokens, a little more with the row itself; no position more


def test_rows_pick_among_at_most_256_masks_of_their_own_text(monkeypatch):
    drawn = []

    def masks(words: Tensor, lengths: Tensor, ratio: float, draws: int) -> Tensor:
        drawn.append(torch.rand(len(words), draws, words.shape[1]) < ratio)
        return drawn[-1]

    monkeypatch.setattr("papers.dupmae.masking.whole_word_masks", masks)
    torch.manual_seed(0)
    valid = torch.arange(300)[None] < torch.tensor([300, 5])[:, None]
    allowed = decoder_mask(torch.zeros(2, 300, dtype=torch.int64), valid, 0.5)
    assert drawn[0].shape == (2, 256, 300)
    itself = torch.eye(300, dtype=torch.bool)
    for row, length, draws in ((0, 300, 256), (1, 5, 5)):
        picked = [
            (~(drawn[0][row] | itself[i])[:, :length] == allowed[row, i, :length]).all(1).nonzero()[:, 0].tolist()
            for i in range(1, length)
        ]
        assert all(found and min(found) < draws for found in picked)
        assert len({min(found) for found in picked}) > min(length, draws) / 3


# ------------------------------------------------------------------------------------------------ whole-word masks


def test_words_are_counted_in_every_row_and_special_tokens_belong_to_none():
    tokens = torch.tensor([[CLS, 10, 41, 42, 11, 43, SEP, 0], [CLS, 44, 45, 12, SEP, 0, 0, 0]])
    text = tokens.gt(SEP)
    assert word_index(tokens, text, CONTINUES).tolist() == [
        [-1, 0, 0, 0, 1, 1, -1, -1],
        [-1, 0, 0, 1, -1, -1, -1, -1],  # a text cut inside a word begins with its rest
    ]


def literal_mask(words: list[int], length: int, ratio: float, order: list[int]) -> list[bool]:
    """The greedy walk, one word after the other."""
    wanted, chosen, taken = min(512, max(1, round(ratio * length))), set(), 0
    for word in order:
        size = words.count(word)
        if size and taken + size <= wanted:
            chosen.add(word)
            taken += size
    return [w >= 0 and w in chosen for w in words]


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.01])
def test_whole_word_masks_equal_the_walk_word_by_word(ratio):
    rng = random.Random(0)
    rows, lengths = [], []
    for length in (20, 13, 5):
        words = sorted(rng.randrange(length // 2) for _ in range(length - 2))
        names = {w: i for i, w in enumerate(dict.fromkeys(words))}
        rows.append([-1, *(names[w] for w in words), -1] + [-1] * (20 - length))
        lengths.append(length)
    words = torch.tensor(rows)
    torch.manual_seed(5)
    masks = whole_word_masks(words, torch.tensor(lengths), ratio, draws=4)
    torch.manual_seed(5)
    orders = torch.rand(3, 4, int(words.max()) + 1).argsort(dim=2)
    for b, (row, length) in enumerate(zip(rows, lengths)):
        for draw in range(4):
            assert masks[b, draw].tolist() == literal_mask(row, length, ratio, orders[b, draw].tolist())


def test_the_encoder_hides_whole_words_for_thirty_percent_of_the_tokens():
    torch.manual_seed(0)
    tokens = torch.randint(5, V, (400, 40))
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    tokens[:, 20] = UNK
    text = tokens.ne(CLS) & tokens.ne(SEP)
    words, lengths = word_index(tokens, text, CONTINUES), torch.full((400,), 40)
    inputs, labels = encoder_mask(tokens, words, lengths, ratio=0.3, mask_id=MASK, unknown=UNK, vocab_size=V)
    asked = labels.ne(-100)
    assert torch.equal(labels[asked], tokens[asked])
    assert not asked[~text].any()
    assert torch.equal(inputs[~asked], tokens[~asked])
    assert 11.0 < asked.sum(1).float().mean() <= 12  # 0.3 * 40, less the [UNK]s among them
    assert not asked[:, 20].any()
    for row, chosen in zip(words[:50].tolist(), asked[:50].tolist()):
        whole = {w for w, c, at in zip(row, chosen, range(40)) if c and at != 20}
        assert all(c for w, c, at in zip(row, chosen, range(40)) if w in whole and at != 20)
    kinds = inputs[asked]
    assert kinds.eq(MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert kinds.eq(tokens[asked]).float().mean().item() == pytest.approx(0.1 + 0.1 / V, abs=0.02)


# -------------------------------------------------------------------------------------------- bag of words, pooling


def test_bag_weights_count_every_distinct_word_once_at_one_over_all_tokens():
    tokens = torch.tensor([[CLS, 7, 8, 7, 7, SEP, 0], [CLS, 9, SEP, 0, 0, 0, 0]])
    weights = bag_of_words(tokens, tokens.gt(SEP), V)
    expected = torch.zeros(2, V)
    expected[0, [7, 8]], expected[1, 9] = 0.25, 1.0
    assert torch.equal(weights, expected)


def test_bag_loss_has_its_closed_forms_at_uniform_at_the_minimum_and_in_its_gradient():
    tokens = torch.tensor([[CLS, 7, 8, 7, 7, 10, SEP]])
    weights = bag_of_words(tokens, tokens.gt(SEP), V)
    total, distinct = 3 / 5, 3
    assert bag_of_words_loss(torch.full((1, V), 2.5), weights).item() == pytest.approx(total * math.log(V))
    best = torch.full((1, V), -50.0)
    best[0, [7, 8, 10]] = 3.0
    assert bag_of_words_loss(best, weights).item() == pytest.approx(total * math.log(distinct))
    mu = torch.randn(1, V, requires_grad=True)
    assert bag_of_words_loss(mu, weights) > total * math.log(distinct)
    (grad,) = torch.autograd.grad(bag_of_words_loss(mu, weights), mu)
    torch.testing.assert_close(grad, total * mu.softmax(1) - weights)
    both = bag_of_words_loss(torch.cat([mu, best]), weights.expand(2, -1))
    mean = (bag_of_words_loss(mu, weights) + bag_of_words_loss(best, weights)) / 2
    torch.testing.assert_close(both, mean)


def test_pooled_logits_and_their_gradients_equal_pooling_all_logits_whatever_the_chunk():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(3, 11, 6), torch.randn(20, 6), torch.randn(20)
    valid = torch.arange(11)[None] < torch.tensor([11, 4, 1])[:, None]
    leaves = [x.double().requires_grad_() for x in (hidden, weight, bias)]

    def dense(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return (F.linear(h, w, b) - 1000.0 * (~valid)[..., None]).amax(1)

    expected = dense(*leaves)
    target = torch.randn(3, 20, dtype=torch.float64)
    wanted = torch.autograd.grad((expected * target).sum(), leaves)
    for chunk in (1, 4, 11, 50):
        found = max_pooled_logits(leaves[0], leaves[1], leaves[2], valid, chunk)
        torch.testing.assert_close(found, expected)
        for got, want in zip(torch.autograd.grad((found * target).sum(), leaves), wanted):
            torch.testing.assert_close(got, want)


class _Largest(TorchDispatchMode):
    """The largest tensor that anything makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                self.numel = max(self.numel, made.numel())
        return out


def test_pooling_never_holds_the_logits_of_all_positions():
    batch, length, words, chunk = 2, 64, 500, 4
    hidden = torch.randn(batch, length, 8, requires_grad=True)
    weight, bias = torch.randn(words, 8, requires_grad=True), torch.zeros(words, requires_grad=True)
    with _Largest() as seen:
        max_pooled_logits(hidden, weight, bias, torch.ones(batch, length, dtype=torch.bool), chunk).sum().backward()
    assert seen.numel == batch * chunk * words  # and (V, D) in the backward pass


@torch.no_grad()
def test_mu_ignores_padding_and_cls_and_reads_raw_logits_up_to_the_separator(batch):
    model = small()
    tokens = batch.tokens[1:2, :9]
    hidden = model.mlm.bert(tokens)
    mu = lexical(model.mlm, hidden, tokens.ne(0))
    torch.testing.assert_close(mu, model.mlm.logits(hidden)[:, 1:].amax(1))
    wider = F.pad(tokens, (0, 6))
    states = torch.cat([hidden, 100 * torch.randn(1, 6, D)], dim=1)
    torch.testing.assert_close(lexical(model.mlm, states, wider.ne(0)), mu)
    changed = hidden.clone()
    changed[:, 0] = torch.randn(D)
    torch.testing.assert_close(lexical(model.mlm, changed, tokens.ne(0)), mu)
    changed[:, -1] = 10 * torch.randn(D)  # [SEP]
    assert not torch.allclose(lexical(model.mlm, changed, tokens.ne(0)), mu)
    assert mu.min() < 0
    one, other = hidden[:, :5], hidden[:, [0, 5, 6, 7, 8]]  # a token-wise map: two halves, each behind a [CLS]
    ones = torch.ones(1, 5, dtype=torch.bool)
    torch.testing.assert_close(torch.maximum(lexical(model.mlm, one, ones), lexical(model.mlm, other, ones)), mu)


def test_the_bag_loss_teaches_the_ordinary_tokens_and_not_the_sentence_embedding(batch):
    model = small()
    hidden = torch.randn(3, 12, D, requires_grad=True)
    model.bag_loss(hidden, batch.tokens, batch.text).backward()
    assert not hidden.grad[:, 0].any()
    assert not hidden.grad[~batch.tokens.ne(0)].any()
    assert hidden.grad[:, 1:6].abs().sum() > 0


def test_word_recall_is_one_when_the_words_of_the_text_come_first(batch, monkeypatch):
    model = small()
    present = bag_of_words(batch.tokens, batch.text, V) > 0
    monkeypatch.setattr("papers.dupmae.module.lexical", lambda *_: present.float())
    assert word_recall(model, batch) == 1
    monkeypatch.setattr("papers.dupmae.module.lexical", lambda *_: -present.float())
    assert word_recall(model, batch) == 0


# -------------------------------------------------------------------------------------- representation and its losses


@torch.no_grad()
def test_the_score_joins_both_parts_and_reads_the_top_words_of_the_document(batch):
    model = small_retriever()
    query, document = model(batch.tokens[:2]), model(batch.tokens)
    assert query.dense.shape == (2, 8)
    torch.testing.assert_close(
        query.dense, model.reduce(model.mlm.bert(batch.tokens[:2], batch.tokens[:2].ne(0))[:, 0])
    )
    found = model.score(query, document)
    for q in range(2):
        for d in range(3):
            top = document.lexical[d].topk(5).indices
            expected = query.dense[q] @ document.dense[d] + (query.lexical[q, top] * document.lexical[d, top]).sum()
            torch.testing.assert_close(found[q, d], expected)
    model.top_k = V
    whole = query.dense @ document.dense.T + query.lexical @ document.lexical.T
    torch.testing.assert_close(model.score(query, document), whole)
    plain = small_retriever(dim=None, top_k=0)
    only = plain(batch.tokens)
    assert only.lexical.shape == (3, 0)
    torch.testing.assert_close(plain.score(only, only), only.dense @ only.dense.T)
    torch.testing.assert_close(only.dense, plain.mlm.bert(batch.tokens, batch.tokens.ne(0))[:, 0])


def test_sparsified_words_keep_their_gradient_and_the_others_have_none():
    mu = torch.tensor([[0.1, 3.0, -1.0, 2.0]], requires_grad=True)
    kept = sparsify(mu, 2)
    assert kept.tolist() == [[0.0, 3.0, 0.0, 2.0]]
    kept.sum().backward()
    assert mu.grad.tolist() == [[0.0, 1.0, 0.0, 1.0]]


def representations(count: int) -> Representation:
    torch.manual_seed(count)
    return Representation(torch.randn(count, 8, requires_grad=True), torch.randn(count, V, requires_grad=True))


def test_every_query_is_scored_against_all_passages_and_its_positive_opens_its_group():
    model, queries, passages = small_retriever(), representations(3), representations(6)
    scores = model.score(queries, passages)
    expected = -torch.stack([scores[i].log_softmax(0)[2 * i] for i in range(3)]).mean()
    torch.testing.assert_close(contrastive_loss(model, queries, passages), expected)
    with pytest.raises(EncoreError, match="5 passages cannot be shared out over 3 queries"):
        contrastive_loss(model, queries, representations(5))


def test_the_ranks_together_have_loss_and_gradient_of_one_process(monkeypatch):
    """The gathering itself is tested in tests/common; here two ranks are played one after the other."""
    model, queries, passages = small_retriever(), representations(4), representations(8)
    leaves = [*queries, *passages]
    whole = contrastive_loss(model, queries, passages)
    wanted = torch.autograd.grad(whole, leaves)
    halves = []
    for rank in range(2):
        mine = Representation(*(x[4 * rank : 4 * rank + 4] for x in passages))
        everything = iter(passages)
        monkeypatch.setattr(retriever, "gather_with_grad", lambda x, parts=everything: next(parts))
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        halves.append(contrastive_loss(model, Representation(*(x[2 * rank : 2 * rank + 2] for x in queries)), mine))
    torch.testing.assert_close(sum(halves) / 2, whole)
    for got, want in zip(torch.autograd.grad(sum(halves) / 2, leaves), wanted):
        torch.testing.assert_close(got, want)


def test_distillation_is_the_divergence_from_teacher_to_student_over_all_elements():
    model, queries, passages = small_retriever(), representations(2), representations(6)
    teacher = torch.tensor([[4.0, 1.0, -2.0], [0.5, 3.0, 0.0]])
    scores = model.score(queries, passages)
    own = torch.stack([scores[0, :3], scores[1, 3:]])
    p, q = teacher.softmax(1), own.softmax(1)
    expected = (p * (p / q).log()).sum() / (2 * 3)
    torch.testing.assert_close(distillation_loss(model, queries, passages, teacher), expected)
    perfect = distillation_loss(model, queries, passages, own.detach() + 7.0)  # softmax does not see the shift
    assert perfect.item() == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------------------------------- search, measures, baseline


@pytest.mark.parametrize("chunk", [2, 100])
def test_search_finds_what_scoring_everything_finds(chunk):
    queries, documents = representations(3), representations(7)
    index = Index(V, 6)
    ids = [f"d{i}" for i in range(7)]
    for part in (slice(0, 3), slice(3, 7)):
        index.add(ids[part], Representation(documents.dense[part].detach(), documents.lexical[part].detach()))
    scores, rows = index.search(Representation(*(x.detach() for x in queries)), depth=4, chunk=chunk)
    model = small_retriever(top_k=6)
    best = model.score(queries, documents).topk(4, dim=1)
    torch.testing.assert_close(scores, best.values)
    assert torch.equal(rows, best.indices)
    with pytest.raises(EncoreError, match="index is empty"):
        Index(V, 6).search(queries, depth=4)


def test_ranking_measures_equal_sklearns_and_what_one_counts_by_hand():
    rng = random.Random(0)
    documents = [str(i) for i in range(40)]
    judged = {q: {d: rng.randrange(3) for d in rng.sample(documents, 12)} for q in "abc"}
    ranking = {q: [(d, 1.0 / (i + 1)) for i, d in enumerate(rng.sample(documents, 40))] for q in "abc"}
    found = ranking_metrics(ranking, judged, recall_at=(5, 20))
    gains = [[judged[q].get(d, 0) for d in documents] for q in "abc"]
    scores = [[dict(ranking[q])[d] for d in documents] for q in "abc"]
    assert found["ndcg@10"] == pytest.approx(ndcg_score(gains, scores, k=10), abs=1e-6)
    good = [[judged[q].get(d, 0) > 0 for d, _ in ranking[q]] for q in "abc"]
    first = [row.index(True) + 1 for row in good]
    assert found["mrr@10"] == pytest.approx(sum(1 / f if f <= 10 else 0 for f in first) / 3)
    for k in (5, 20):
        assert found[f"recall@{k}"] == pytest.approx(sum(sum(row[:k]) / sum(row) for row in good) / 3)


def test_a_relevant_document_that_was_not_found_counts_as_missed_however_short_the_ranking():
    judged = {"a": {"x": 1, "y": 1}, "b": {"z": 1}, "c": {"x": 0}}
    found = ranking_metrics({"a": [("x", 2.0)], "b": [("x", 1.0)]}, judged, recall_at=(50,))
    ideal = 1 + 1 / math.log2(3)
    assert found == pytest.approx({"mrr@10": 0.5, "mrr@100": 0.5, "ndcg@10": 1 / ideal / 2, "recall@50": 0.25})
    late = {"b": [(str(i), -float(i)) for i in range(10)] + [("z", -11.0)]}
    assert ranking_metrics(late, {"b": {"z": 1}})["mrr@10"] == 0
    assert ranking_metrics(late, {"b": {"z": 1}})["mrr@100"] == pytest.approx(1 / 11)
    with pytest.raises(EncoreError, match="no query has a relevant document"):
        ranking_metrics({}, {"c": {"x": 0}})


def test_bm25_equals_its_formula():
    documents = ["the wings of a wing", "heat transfer in slipstreams and heat", "a wing in a slipstream", ""]
    queries = ["wing wing slipstream", "unknown"]
    found = BM25(documents, k1=0.9, b=0.4).scores(queries)
    counted = [terms(d) for d in documents]
    assert counted[0] == ["wing", "wing"]
    mean = sum(map(len, counted)) / 4
    for q, query in enumerate(queries):
        for d, words in enumerate(counted):
            score = 0.0
            for term in terms(query):
                n = sum(term in other for other in counted)
                tf = words.count(term)
                idf = math.log(1 + (4 - n + 0.5) / (n + 0.5))
                score += idf * tf / (tf + 0.9 * (1 - 0.4 + 0.4 * len(words) / mean))
            assert found[q, d] == pytest.approx(score)


# ------------------------------------------------------------------------------------------------- sizes and weights


def test_published_sizes():
    with torch.device("meta"):
        counts = {
            116_602_170: [dupmae_base(), retromae_base()],
            7_087_872: [dupmae_base().decoder],
            109_514_298: [dupmae_base().mlm, retromae_retriever()],
            109_514_298 + 295_296: [dupmae_retriever()],
        }
    for count, models in counts.items():
        assert [sum(p.numel() for p in model.parameters()) for model in models] == [count] * len(models)


def test_decoder_and_word_head_share_the_embeddings_and_everything_learns(batch):
    module = pretraining("dupmae")
    module.losses(batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in module.model.parameters())


@torch.no_grad()
def test_a_pretrained_encoder_opens_in_transformers_and_starts_a_retriever(batch, tmp_path):
    import transformers

    from common.interop.bert import bert_to_hub

    model = small()
    bert_to_hub(model.mlm, tmp_path / "encoder")
    theirs = transformers.BertForMaskedLM.from_pretrained(tmp_path / "encoder").eval()
    valid = batch.tokens.ne(0)
    torch.testing.assert_close(
        theirs(batch.tokens, valid.long()).logits[valid], model.mlm(batch.tokens, valid)[valid], rtol=1e-4, atol=1e-5
    )
    start = small_retriever()
    interop.load_start(start, tmp_path / "encoder")
    torch.testing.assert_close(
        start(batch.tokens).lexical, lexical(model.mlm, model.mlm.bert(batch.tokens, valid), valid)
    )
    torch.save({"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "last.ckpt")
    again = small_retriever()
    interop.load_start(again, tmp_path / "last.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(again.mlm.state_dict().values(), start.mlm.state_dict().values()))
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(EncoreError, match=r"other\.ckpt: holds no encoder of DupMAE"):
        interop.load_start(again, tmp_path / "other.ckpt")


@torch.no_grad()
def test_retrievers_are_saved_as_the_released_code_saves_them_and_read_back(batch, tmp_path):
    model = small_retriever()
    interop.save_retriever(model, tmp_path)
    pooler = torch.load(tmp_path / "pooler.pt", weights_only=True)
    assert {name: tuple(t.shape) for name, t in pooler.items()} == {
        "linear_q.weight": (8, D), "linear_q.bias": (8,), "linear_p.weight": (8, D), "linear_p.bias": (8,)
    }  # fmt: skip
    again = interop.load_retriever(tmp_path, top_k=5)
    torch.testing.assert_close(
        again.score(again(batch.tokens), again(batch.tokens)), model.score(model(batch.tokens), model(batch.tokens))
    )
    stage = small_retriever()
    stage.reduce.weight.zero_()
    interop.load_start(stage, tmp_path)
    assert torch.equal(stage.reduce.weight, model.reduce.weight)
    torch.save(pooler | {"linear_p.bias": torch.ones(8)}, tmp_path / "pooler.pt")
    with pytest.raises(EncoreError, match="queries and passages have different linear maps"):
        interop.load_retriever(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("bert.encoder.layer.1.output.dense.bias")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(EncoreError, match="missing bert"):
        interop.load_start(stage, tmp_path)

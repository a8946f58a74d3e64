"""DupMAE against transformers at equal weights, and what its losses, masks and representation promise."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from common.errors import EncoreError
from common.layers.bert import Bert
from common.masking import mlm_mask
from common.masking.words import whole_word_masks, word_index
from common.training.recipe import Optim
from papers.dupmae import interop, retriever
from papers.dupmae.masking import decoder_mask
from papers.dupmae.model import (
    Batch,
    DupMAE,
    EnhancedDecoder,
    bag_of_words,
    bag_of_words_loss,
    lexical,
)
from papers.dupmae.module import Pretraining, word_recall
from papers.dupmae.pooling import max_pooled_logits
from papers.dupmae.retriever import (
    Index,
    Representation,
    Retriever,
    contrastive_loss,
    distillation_loss,
    sparsify,
)
from tests import tiny

V, D, HEADS = 50, 32, 4
CLS, SEP, MASK = 2, 3, 4
SIZE = {"vocab_size": V, "dim": D, "depth": 2, "num_heads": HEADS, "mlp_dim": 48, "max_positions": 40}
CONTINUES = torch.arange(V) >= 40


def small(**kwargs) -> DupMAE:
    torch.manual_seed(0)
    return tiny.randomise(
        DupMAE(Bert(**SIZE, dropout=0.0, attention_dropout=0.0), dropout=0.0, attention_dropout=0.0, **kwargs)
    )


def small_retriever(dim: int | None = 8, top_k: int = 5) -> Retriever:
    torch.manual_seed(0)
    return tiny.randomise(Retriever(Bert(**SIZE, dropout=0.0, attention_dropout=0.0), dim, top_k))


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
    chosen = whole_word_masks(words, valid.sum(1), 0.3, draws=1)[:, 0]
    inputs, labels = mlm_mask(tokens, chosen, ratio=1.0, mask_id=MASK, vocab_size=V)
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
    model = tiny.randomise(transformers.BertForMaskedLM(config))
    folder = tmp_path_factory.mktemp("hub")
    model.save_pretrained(folder)
    return model, folder


def pretraining(method: str, start=None, **kwargs) -> Pretraining:
    """The training module around a small model."""
    module = Pretraining(Optim(1e-3), "tiny", method, V, dropout=0.0, **kwargs)
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
    found = module.loss(batch)
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
    assert Pretraining(Optim(1e-3), "tiny", "dupmae", V).bag_weight == 0.1
    module = pretraining("mlm", hub[1])
    assert module.loss(batch).keys() == {"mlm", "loss"}
    frozen = Pretraining(Optim(1e-3), "tiny", "mlm", V)
    assert not any(p.requires_grad for p in frozen.model.decoder.parameters())


@torch.no_grad()
def test_a_random_replacement_that_happens_to_be_padding_is_read_as_a_token(batch):
    module = pretraining("dupmae")
    where = batch.text.nonzero()[0]
    inputs = batch.inputs.clone()
    inputs[tuple(where)] = 0
    hidden = module.model.mlm.bert(inputs, batch.tokens.ne(0))
    expected = module.model.masked_word_loss(hidden, batch.labels)
    torch.testing.assert_close(module.loss(batch._replace(inputs=inputs))["mlm"], expected)


@torch.no_grad()
def test_decoder_layer_with_one_stream_equals_berts_layer(hub):
    from transformers.models.bert.modeling_bert import BertLayer

    theirs = tiny.randomise(BertLayer(hub[0].config))
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


def test_decoder_and_word_head_share_the_embeddings_and_everything_learns(batch):
    module = pretraining("dupmae")
    module.loss(batch)["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in module.model.parameters())

"""CLIP's objective, baselines, training and evaluation."""

import math

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.training.run import Run
from common.training.trainer import build_trainer
from papers.clip.baselines import BagOfWordsModule, CaptionModule
from papers.clip.claims import objectives_on_shapes
from papers.clip.data import EmojiData, ShapesData, WebData
from papers.clip.interop import to_hub
from papers.clip.model import CLIP, TextTransformer, VisionTransformer
from papers.clip.module import CLIPModule, clip_optim
from papers.clip.zero_shot import image_features, linear_probe, read_lines, zero_shot_classifier
from tests import tiny
from tests.helpers import requires_mirror
from tests.papers.clip.test_data import TOKENIZER, folders  # noqa: F401
from tests.papers.clip.test_model import tokens

OPTIM = clip_optim(5e-4, 10)


def tiny_image(image_size: int = 16) -> VisionTransformer:
    return VisionTransformer(image_size=image_size, patch_size=8, dim=32, depth=1, num_heads=2, embed_dim=16)


def small(vocab_size: int = 60, context_length: int = 11, image_size: int = 16) -> CLIP:
    text = TextTransformer(
        dim=32, depth=2, num_heads=2, vocab_size=vocab_size, context_length=context_length, embed_dim=16
    )
    return CLIP(tiny_image(image_size), text)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.randn(4, 3, 16, 16, generator=generator), "tokens": tokens(1, 3, 5, 8)}


# Objective


def test_training_loss_is_the_symmetric_cross_entropy_of_scaled_cosines(batch):
    torch.manual_seed(0)
    module = tiny.silent(CLIPModule(small(), optim=OPTIM))
    with torch.no_grad():
        module.model.logit_scale.fill_(math.log(30))
    u = F.normalize(module.model.image(batch["image"]), dim=-1)
    v = F.normalize(module.model.text(batch["tokens"]), dim=-1)
    logits = 30 * u @ v.T
    rows = -logits.log_softmax(dim=1).diag().mean()
    columns = -logits.log_softmax(dim=0).diag().mean()
    loss = module.training_step(batch, 0)
    torch.testing.assert_close(loss, (rows + columns) / 2)
    assert abs(rows - columns) > 1e-3  # so that one direction alone would be noticed
    order = torch.tensor([2, 0, 3, 1])
    shuffled = {key: value[order] for key, value in batch.items()}
    torch.testing.assert_close(module.training_step(shuffled, 0), loss)


def test_equal_pairs_cost_log_n_and_leave_the_temperature_alone(batch):
    torch.manual_seed(0)
    module = tiny.silent(CLIPModule(small(), optim=OPTIM))
    same = {key: value[:1].expand_as(value) for key, value in batch.items()}
    loss = module.training_step(same, 0)
    assert loss.item() == pytest.approx(math.log(4), abs=1e-5)
    loss.backward()
    assert abs(module.model.logit_scale.grad.item()) < 1e-5
    module.training_step(batch, 0).backward()
    assert abs(module.model.logit_scale.grad.item()) > 1e-4


def test_recomputing_layers_in_the_backward_pass_changes_no_gradient(batch):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        module = tiny.silent(CLIPModule(small(), optim=OPTIM, gradient_checkpointing=recompute))
        module.training_step(batch, 0).backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
        wrapped = sum("CheckpointWrapper" in type(m).__name__ for m in module.modules())
        assert wrapped == (3 if recompute else 0)
    assert len(gradients[0]) == len(gradients[1])
    for a, b in zip(gradients[0].values(), gradients[1].values()):
        torch.testing.assert_close(a, b)


def test_decay_spares_gains_biases_and_the_temperature_and_the_rate_follows_a_cosine():
    module = CLIPModule(small(), optim=clip_optim(1.0, 10))
    module.trainer = type("Trainer", (), {"estimated_stepping_batches": 110})()
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    names = {id(p): n for n, p in module.named_parameters()}
    decay = {names[id(p)]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(names)
    assert decay["model.logit_scale"] == 0
    assert decay["model.text.norm.weight"] == decay["model.image.vit.norm_pre.bias"] == 0
    assert decay["model.text.blocks.layers.0.attn.qkv.bias"] == 0
    assert decay["model.image.vit.embed.proj.weight"] == decay["model.text.token_embedding.weight"] == 0.2
    assert (optimizer.defaults["betas"], optimizer.defaults["eps"]) == ((0.9, 0.98), 1e-6)
    rates = [scheduler.lr_lambdas[0](step) for step in (0, 9, 10, 60, 110)]
    assert rates == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0], abs=1e-6)
    assert configured["lr_scheduler"]["interval"] == "step"


def shapes() -> ShapesData:
    return ShapesData(size=40, test_size=38, batch_size=8)


def contrastive() -> CLIPModule:
    # All steps lie in the warm-up: the cosine depends on max_steps, which the first half of the test has otherwise.
    return CLIPModule(small(1024, 20, image_size=32), optim=clip_optim(1e-2, 6))


def test_the_factor_is_cut_back_to_100_after_a_step(tmp_path):
    module = contrastive()
    with torch.no_grad():
        module.model.logit_scale.fill_(5.0)
    loop = build_trainer(tmp_path, max_steps=1, enable_progress_bar=False, enable_model_summary=False)
    loop.fit(module, datamodule=shapes())
    assert module.model.scale.item() == pytest.approx(100, rel=1e-5)


# Baselines


def test_bag_of_words_loss_is_the_cross_entropy_to_the_words_of_the_caption(batch):
    torch.manual_seed(0)
    module = tiny.silent(BagOfWordsModule(tiny_image(), 7, optim=OPTIM))
    words = torch.tensor([[1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0], [1] * 7, [0, 0, 0, 0, 0, 1, 1]]).float()
    log_p = module.head(module.image(batch["image"])).log_softmax(dim=-1)
    rows = [log_p[0, [0, 3]].mean(), log_p[1, 1], log_p[2].mean(), log_p[3, [5, 6]].mean()]
    torch.testing.assert_close(module.training_step(batch | {"words": words}, 0), -torch.stack(rows).mean())
    prompts = torch.tensor([[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0]]).bool()
    scores = module.scores(batch["image"], prompts)
    torch.testing.assert_close(scores[:, 0], log_p[:, 1] + log_p[:, 2])
    torch.testing.assert_close(scores[:, 1], log_p[:, 4])
    torch.testing.assert_close(module.scores(batch["image"], prompts, "mean")[:, 0], scores[:, 0] / 2)
    nothing_known = torch.cat([prompts, torch.zeros(1, 7, dtype=torch.bool)])
    for rule in ("sum", "mean"):  # an empty sum of negative terms must not win
        assert (module.scores(batch["image"], nothing_known, rule).argmax(dim=1) < 2).all()
    prior = torch.arange(1.0, 8.0) / 28
    lift = module.scores(batch["image"], prompts, "lift", prior)
    torch.testing.assert_close(lift[:, 0], scores[:, 0] - math.log(2 / 28) - math.log(3 / 28))
    unknown = torch.cat([torch.zeros(1, 7, dtype=torch.bool), prompts])
    for rule in ("sum", "mean", "lift"):  # a name of which no word is known must not win by an empty sum
        assert (module.scores(batch["image"], unknown, rule, prior).argmax(dim=1) > 0).all()


def test_caption_likelihood_is_the_product_over_the_next_tokens_and_ignores_padding(batch):
    torch.manual_seed(0)
    module = tiny.silent(CaptionModule(tiny_image(), 60, optim=OPTIM, dim=64, depth=1, context_length=11)).eval()
    images, texts = batch["image"], batch["tokens"]
    total = module.log_likelihood(images, texts)
    context = module.image.vit.norm(module.image.vit.tokens(images[1:2]))
    expected = 0.0
    for end in range(1, 5):  # row 1: sot, three pieces, eot
        prefix = module.embedding(texts[1:2, :end]) + module.positions[:end]
        state = module.norm(module.decoder(prefix, is_causal=True, context=context))[0, -1]
        expected += (module.embedding.weight @ state).log_softmax(dim=0)[texts[1, end]]
    torch.testing.assert_close(total[1], expected)
    padded = texts.clone()
    padded[1, 5:] = 9
    torch.testing.assert_close(module.log_likelihood(images, padded)[1], expected)
    torch.testing.assert_close(module.scores(images, texts).diag(), total)
    assert not torch.allclose(module.scores(images, texts)[0, 1], total[1])  # the image matters
    pieces = torch.tensor([2, 4, 6, 9]).sum()
    torch.testing.assert_close(module.training_step(batch, 0), -total.sum() / pieces)


# Evaluation


def test_zero_shot_weights_average_normalised_prompts_and_are_normalised_again():
    torch.manual_seed(0)
    model = small(len(TOKENIZER), 16).eval()
    names, templates = ["cat", "dog"], ["a {}.", "the {} !", "{}"]
    weights = zero_shot_classifier(model, TOKENIZER, names, templates)
    for row, name in zip(weights, names):
        prompts = TOKENIZER([t.format(name) for t in templates])
        features = model.text(prompts)
        features = features / features.norm(dim=1, keepdim=True)
        mean = features.mean(dim=0)
        torch.testing.assert_close(row, mean / mean.norm())


def test_validation_reports_zero_shot_accuracy_on_an_image_folder(folders, tmp_path):  # noqa: F811
    torch.manual_seed(1)
    TOKENIZER.save(tmp_path)
    (tmp_path / "names.txt").write_text("tench\ngoldfish\n\nwhite shark\n")
    options = {"tokenizer": str(tmp_path), "context_length": 16, "image_size": 16, "num_workers": 0}
    with pytest.raises(EncoreError, match="needs class_names"):
        WebData(zero_shot_root=str(folders), **options)
    data = WebData(zero_shot_root=str(folders), class_names=str(tmp_path / "names.txt"), eval_batch_size=4, **options)
    module = CLIPModule(small(len(TOKENIZER), 16), optim=OPTIM).eval()
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    (metrics,) = trainer.validate(module, datamodule=data, verbose=False)
    weights = zero_shot_classifier(module.model, TOKENIZER, ["tench", "goldfish", "white shark"], data.templates)
    features, labels = image_features(module.model, data.val_dataloader())
    hits = ((features @ weights.T).argmax(dim=1) == labels).float().mean().item()
    assert 0 < hits < 1  # chance would hide swapped labels less well at an end
    assert metrics["val/zero_shot_top1"] == pytest.approx(100 * hits)
    assert metrics["val/zero_shot_top5"] == 100


def test_linear_probe_takes_features_before_or_after_the_projection():
    torch.manual_seed(0)
    model = small().eval()
    images = torch.randn(40, 3, 16, 16) * 0.1
    labels = torch.arange(40) % 2
    images[labels == 1] += 1.0
    rows = [{"image": image, "label": label} for image, label in zip(images, labels)]
    train, test = DataLoader(rows[:30], batch_size=8), DataLoader(rows[30:], batch_size=8)
    before, _ = image_features(model, test, project=False)
    after, y = image_features(model, test)
    assert (before.shape, after.shape) == ((10, 32), (10, 16))
    torch.testing.assert_close(after, model.image.proj(before))
    assert torch.equal(y, labels[30:])
    assert linear_probe(model, train, test, c=0.316, project=True).accuracy == 100
    assert linear_probe(model, train, test, validation=test).accuracy == 100


def test_lists_of_classes_and_templates_must_have_entries(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(EncoreError, match=r"empty\.txt: no entries"):
        read_lines(str(tmp_path / "empty.txt"))
    with pytest.raises(EncoreError, match=r"none\.txt: cannot be read"):
        read_lines(str(tmp_path / "none.txt"))


def test_training_can_start_from_published_weights(tmp_path):
    torch.manual_seed(0)
    published = small()
    to_hub(published, tmp_path)
    torch.manual_seed(1)
    module = CLIPModule(small(), optim=OPTIM, weights=str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(module.model.parameters(), published.parameters()))
    with pytest.raises(EncoreError, match="do not fit CLIP"):
        CLIPModule(small(image_size=24), optim=OPTIM, weights=str(tmp_path))
    bigger = CLIPModule(small(image_size=24), optim=OPTIM, weights=str(tmp_path), resize_positions=True)
    assert torch.equal(bigger.model.text.positions, published.text.positions)


# Claims


def test_both_objectives_get_equal_compute_and_the_same_numbers_every_time(tmp_path):
    arms = {}
    for arm in ("contrastive", "bag_of_words"):
        run = Run("clip", "contrastive-beats-predictive-shapes", arm, 0, "smoke", tmp_path / arm)
        arms[arm] = objectives_on_shapes(run)
    contrastive, bag = arms["contrastive"], arms["bag_of_words"]
    assert bag["multiply_adds_g"] == pytest.approx(contrastive["multiply_adds_g"], rel=0.1)
    assert bag["steps"] > contrastive["steps"]
    assert contrastive.keys() == {k for k in bag if not k.startswith("known_top1")}
    repeated = Run("clip", "contrastive-beats-predictive-shapes", "contrastive", 0, "smoke", tmp_path / "again")
    assert objectives_on_shapes(repeated) == contrastive


@requires_mirror("emoji")
def test_emoji_of_the_test_vendors_and_held_out_concepts_are_not_trained_on():
    data = EmojiData(captions_each=1)
    data.setup("fit")
    assert not set(data.train_names) & data.unseen_names
    assert len(data.unseen_names) == len(data.class_names) // 10
    assert len(data.test_labels) + len(data.unseen_labels) == 347
    assert {data.class_names[i] for i in data.unseen_labels.tolist()} == data.unseen_names
    assert data.test_images.shape[1:] == data.unseen_images.shape[1:] == (3, 32, 32)
    images, labels, names = data.known()
    assert names[labels[0]] == data.train_names[0]
    assert images.shape == (len(data.train_names), 3, 32, 32)

"""Export of the papers that build on others or have a format of their own: agreement, and padding."""

import pytest
import torch

from benchmarks.tools.export import export
from common.errors import EncoreError
from common.interop.encoder import Encoder
from tests.exported import described, randomised, save_checkpoint


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(5)


def exported_encoder(slug, module, arguments, model, prefix, tmp_path, hyper=True):
    path = save_checkpoint(tmp_path / "last.ckpt", f"papers.{slug}.module.{module}", arguments, model, prefix, hyper)
    return Encoder.from_directory(export(slug, path, tmp_path / "out"))


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


@torch.no_grad()
def test_a_bartscore_scorer_is_a_bart(tmp_path):
    from papers.bartscore.model import bartscore_tiny

    model = randomised(bartscore_tiny(vocab_size=60, max_positions=8))
    sizes = {"vocab_size": 60, "max_positions": 8}
    arguments = {"model": {"class_path": "papers.bart.model.bart_tiny", "init_args": sizes}}
    encoder = exported_encoder("bartscore", "Tuning", arguments, model, "scorer.", tmp_path)
    ids = torch.tensor([[0, 5, 2, 1]])
    close(encoder.encode(ids).pooled, model.bart.encode(ids[:, :3]).mean(1))


@torch.no_grad()
@pytest.mark.parametrize("dim", [None, 10])
def test_dupmae_agrees_with_transformers(dim, tmp_path):
    from transformers import BertModel

    from papers.dupmae.model import tiny_bert
    from papers.dupmae.retriever import Retriever

    model = randomised(Retriever(tiny_bert(80), dim=dim))
    arguments = {"size": "tiny", "vocab_size": 80}
    encoder = exported_encoder("dupmae", "Retrieval", arguments, model, "model.", tmp_path)
    ids = torch.tensor([[3, 9, 8, 7, 4], [3, 9, 4, 0, 0]])
    tokens, pooled = encoder.encode(ids)
    real = ids.ne(0)
    theirs = BertModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    hidden = theirs(input_ids=ids, attention_mask=real.long()).last_hidden_state
    close(tokens[real], hidden[real])
    assert not tokens[~real].any()
    close(pooled, model.reduce(hidden[:, 0]))
    assert pooled.shape == (2, dim or 96)


@torch.no_grad()
def test_mosaicbert_agrees_with_what_was_trained_and_padding_changes_nothing(tmp_path):
    from papers.mosaicbert.model import MaskedLM, mosaicbert_tiny

    model = randomised(MaskedLM(mosaicbert_tiny(64)))
    arguments = {"encoder": "mosaicbert_tiny", "vocab_size": 64}
    encoder = exported_encoder("mosaicbert", "Pretraining", arguments, model, "model.", tmp_path, hyper=False)
    ids = torch.tensor([[3, 9, 8, 7, 4], [3, 9, 4, 0, 0]])
    tokens, pooled = encoder.encode(ids)
    close(tokens[0], model.encoder(ids[:1])[0])
    assert not tokens[1, 3:].any()
    close(pooled[1:], model.encoder(ids[1:, :3]).mean(1))


@torch.no_grad()
def test_tera_agrees_with_what_was_trained_and_padding_changes_nothing(tmp_path):
    from papers.tera.model import TERA
    from papers.tera.model import Encoder as TERANet

    sizes = {"input_dim": 6, "dim": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}
    model = randomised(TERA(TERANet(**sizes)))
    encoder = exported_encoder("tera", "PretrainModule", {"encoder": sizes}, model, "model.", tmp_path)
    features = torch.randn(2, 9, 6)
    close(encoder.encode(features).tokens, model.encoder(features))
    features[1, 4:] = 0
    tokens, pooled = encoder.encode({"features": features, "lengths": torch.tensor([9, 4])})
    assert not tokens[1, 4:].any()
    close(pooled[1:], model.encoder(features[1:, :4]).mean(1))


@torch.no_grad()
def test_sigma_is_a_videomae_for_transformers(tmp_path):
    from transformers import VideoMAEModel

    from papers.sigma.model import sigma_tiny_patch8_32

    model = randomised(sigma_tiny_patch8_32())
    arguments = {"model": described("papers.sigma.model.sigma_tiny_patch8_32"), "lr": 0.1}
    encoder = exported_encoder("sigma", "Pretraining", arguments, model, "model.", tmp_path, hyper=False)
    video = torch.randn(2, 1, 8, 32, 32)
    tokens, _ = encoder.encode(video)
    close(tokens, model.video.encoder(video))
    theirs = VideoMAEModel.from_pretrained(tmp_path / "out").eval()
    close(tokens, theirs(pixel_values=video.transpose(1, 2)).last_hidden_state)


@torch.no_grad()
def test_a_continual_learners_vit_agrees_with_transformers(tmp_path):
    from transformers import ViTModel

    from papers.nmc_continual.model import FrozenViT, SmallResNet

    sizes = {"image_size": 16, "patch_size": 8, "dim": 16, "depth": 2, "num_heads": 2}
    model = randomised(FrozenViT(**sizes))
    arguments = {"backbone": described("papers.nmc_continual.model.FrozenViT", **sizes), "num_classes": 2}
    encoder = exported_encoder("nmc_continual", "NMC", arguments, model, "backbone.", tmp_path, hyper=False)
    images = torch.randn(2, 3, 16, 16)
    tokens, pooled = encoder.encode(images)
    theirs = ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False).eval()
    close(tokens, theirs(pixel_values=images).last_hidden_state)
    close(pooled, model(images))
    arguments = {"backbone": described("papers.nmc_continual.model.SmallResNet", image_size=8)}
    with pytest.raises(EncoreError, match="only a FrozenViT"):
        exported_encoder(
            "nmc_continual", "NMC", arguments, SmallResNet(image_size=8), "backbone.", tmp_path / "b", False
        )

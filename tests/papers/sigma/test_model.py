"""SIGMA: sizes, counted figures, and what does not fit together."""

import pytest
import torch

from common.errors import EncoreError
from common.training.recipe import Optim
from papers.sigma import facts, model
from papers.sigma.model import SIGMA, projection_mlp
from papers.sigma.module import Pretraining
from papers.videomae_v2.model import VideoMAE
from tests.papers.sigma.conftest import CUBE, tiny_dino, tiny_dino_sigma, tiny_mlp_sigma
from tests.papers.videomae_v2.conftest import DECODER, SIZES


def test_only_the_decoder_head_of_the_video_model_changes():
    torch.manual_seed(0)
    plain = VideoMAE(**SIZES, **DECODER)
    torch.manual_seed(0)
    net = SIGMA(VideoMAE(**SIZES, **DECODER), projection_mlp(CUBE, (20, 18), 10), 5)
    changed = [n for n, v in net.video.state_dict().items() if not torch.equal(v, plain.state_dict()[n])]
    assert changed == ["decoder.head.weight"] or changed == ["decoder.head.weight", "decoder.head.bias"]
    bound = (6 / (16 + 10)) ** 0.5
    assert 0.9 * bound < float(net.video.decoder.head.weight.detach().abs().max()) <= bound
    assert float(net.video.decoder.head.bias.detach().abs().max()) == 0


def test_the_projection_networks_have_the_released_code_s_shape():
    with torch.device("meta"):
        mlp, small = model.sigma_vit_base_patch16_224("mlp"), model.sigma_vit_small_patch16_224("dino_base")
    assert [part.out_features for part in mlp.phi[::2]] == [1024, 1024, 512, 256], "the paper says three"
    assert mlp.prototypes.weight.shape == (3000, 256)
    assert small.video.decoder.head.out_features == small.prototypes.weight.shape[1] == 768


def test_token_facts():
    assert [facts.tokens(which) for which in ("total", "visible", "decoded")] == [1568, 160, 1408]
    with torch.device("meta"):
        assert facts.dino_tokens("dino_vit_base_patch16") == 1568
    assert facts.assigned_tokens(640) == 901_120
    assert facts.tokens_per_prototype(512) == pytest.approx(240.299, abs=1e-3)
    assert facts.uniform_loss() == pytest.approx(16.0127, abs=1e-4)
    assert facts.kernel_range(0.03) == pytest.approx(3.0e14, rel=0.01)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SIGMA(VideoMAE(**SIZES, **DECODER), tiny_dino(image_size=32)), "64 patches.*4 x 4 tubes"),
        (lambda: SIGMA(VideoMAE(**SIZES, **DECODER), tiny_dino(stride=4)), "one frame in 4"),
        (lambda: SIGMA(VideoMAE(**SIZES, **DECODER), projection_mlp(50, (8,), 4)), "50 pixels, a cube has 96"),
        (lambda: Pretraining(tiny_mlp_sigma(), Optim(1e-3), eps=0.01), "eps 0.01"),
        (lambda: Pretraining(tiny_dino_sigma(), Optim(1e-3)), "dino_weights belongs to a DINO target"),
        (lambda: Pretraining(tiny_mlp_sigma(), Optim(1e-3), dino_weights="x"), "dino_weights belongs to a DINO target"),
        (lambda: Pretraining(tiny_dino_sigma(), Optim(1e-3), dino_weights="none.pth"), r"none\.pth: no such"),
    ],
)
def test_what_does_not_fit_together_is_named(build, message):
    with pytest.raises(EncoreError, match=message):
        build()

"""Prompts in the files of the authors' repository."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from common.errors import EncoreError
from papers.pre.interop import load_prompt, save_prompt
from papers.pre.model import Prompt


class Released(nn.Module):
    """The names under which the authors' prompt learner keeps its parts."""

    def __init__(self, encoder: nn.Module | None) -> None:
        super().__init__()
        self.ctx = nn.Parameter(torch.randn(4, 8))
        if encoder is not None:
            self.encoder_network = encoder
        self.register_buffer("token_prefix", torch.randn(5, 1, 8))
        self.register_buffer("token_suffix", torch.randn(5, 19, 8))

    def forward(self) -> torch.Tensor:
        network = getattr(self, "encoder_network", None)
        if network is None:
            return self.ctx
        if hasattr(network, "lstm_head"):
            return network.lstm_head(self.ctx)[0] + self.ctx
        return network.module(self.ctx) + self.ctx


def released(variant: str | None) -> Released:
    torch.manual_seed(0)
    if variant is None:
        return Released(None)
    encoder = nn.Module()
    if variant.startswith("lstm"):
        encoder.lstm_head = nn.LSTM(8, 4, int(variant[-1]), bidirectional=True)
    else:
        layers = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8)]
        encoder.module = nn.Sequential(*layers * int(variant[-1]))
    return Released(encoder)


def save_released(module: Released, path) -> None:
    """As their trainer saves: the schedule's state holds a scheduler and, through it, an optimizer as objects."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.002, momentum=0.9, weight_decay=5e-4)
    successor = CosineAnnealingLR(optimizer, 50.0)
    module().sum().backward()
    optimizer.step()
    schedule = {"successor": successor, "warmup_epoch": 1, "cons_lr": 1e-5, "last_epoch": 1, "base_lrs": [0.002]}
    content = {"epoch": 50, "optimizer": optimizer.state_dict(), "scheduler": schedule, "val_result": None}
    torch.save(content | {"state_dict": module.state_dict()}, path)


@pytest.mark.parametrize("variant", [None, "lstm1", "lstm2", "mlp1", "mlp2"])
def test_released_prompts_load_with_the_same_output_and_go_back(variant, tmp_path):
    theirs = released(variant).eval()
    save_released(theirs, tmp_path / "model.pth.tar-50")
    prompt = Prompt(8, 4, variant).eval()
    load_prompt(prompt, tmp_path / "model.pth.tar-50")
    torch.testing.assert_close(prompt(), theirs(), atol=1e-6, rtol=1e-6)
    save_prompt(prompt, tmp_path / "back")
    state = torch.load(tmp_path / "back", weights_only=True)["state_dict"]
    torch.manual_seed(9)
    report = (again := released(variant).eval()).load_state_dict(state, strict=False)
    assert set(report.missing_keys) == {"token_prefix", "token_suffix"}
    assert not report.unexpected_keys
    assert torch.equal(again(), theirs())


def test_prompts_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "model.pth.tar-50"
    save_released(released("lstm1"), path)
    for prompt, message in [
        (Prompt(8, 4, None), "unknown encoder"),
        (Prompt(8, 4, "mlp1"), "missing encoder"),
        (Prompt(8, 3), r"context is \(4, 8\), the model wants \(3, 8\)"),
    ]:
        with pytest.raises(EncoreError, match=message):
            load_prompt(prompt, path)
    for prompt in (Prompt(8, 4, "transformer"), Prompt(8, 4, separate=True)):
        with pytest.raises(EncoreError, match="fold the prompt first"):
            save_prompt(prompt, tmp_path / "no")
        prompt.fold()
        save_prompt(prompt, tmp_path / "folded")
        load_prompt(Prompt(8, 4, None), tmp_path / "folded")
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, path)
    with pytest.raises(EncoreError, match="no state_dict with a ctx"):
        load_prompt(Prompt(8, 4), path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EncoreError, match="not a readable checkpoint"):
        load_prompt(Prompt(8, 4), path)
    odd = released("mlp2").state_dict()
    odd["encoder_network.module.3.weight"] = odd["encoder_network.module.3.weight"] + 1
    torch.save({"state_dict": odd}, path)
    with pytest.raises(EncoreError, match="differ, but the MLP applied twice shares its layers"):
        load_prompt(Prompt(8, 4, "mlp2"), path)

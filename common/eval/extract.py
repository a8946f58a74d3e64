"""Features of a whole loader."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def extract_features(
    encode: Callable[[Tensor], Tensor], loader: Iterable[tuple[Tensor, Tensor]], device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Features (N, D) float32 and labels (N,), on the CPU and in the loader's order.

    encode: inputs (B, ...) -> (B, D). A module is put in eval mode meanwhile, and back as it was. loader yields
    (inputs, labels).
    """
    modes = [(module, module.training) for module in encode.modules()] if isinstance(encode, nn.Module) else []
    for module, _ in modes:
        module.training = False
    try:
        pairs = [(encode(inputs.to(device)).float().cpu(), labels.cpu()) for inputs, labels in loader]
    finally:
        for module, training in modes:
            module.training = training
    features, labels = zip(*pairs)
    return torch.cat(features), torch.cat(labels)

"""CLIP as an encoder to use elsewhere: image features, and text features in the same space."""

from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import EncoreError
from common.formats.images import load_image
from common.interop.encoder import Encoded, Exported, expect
from papers.clip import interop
from papers.clip.model import CLIP, ModifiedResNet, VisionTransformer

RESNET = "clip_resnet"  # model_type of a directory that holds the released layout, for which the hub has no class


class CLIPEncoder(Exported):
    """Two kinds of batch, whose pooled features (B, e) have length 1, so that inner products are cosines.

    Images (B, 3, R, R) float, R the model's resolution, normalised with CLIP's mean and standard deviation as `read`
    does: tokens are the class token and the patches before the last LayerNorm (B, 1 + N, D), or of a ResNet the feature
    map (B, N, D).
    Texts (B, N) int64, ids with padding 0 after the end token (the largest id): tokens (B, N, D) after the last
    LayerNorm.
    """

    kind = "images"
    within = "papers.clip.model"
    model_class = CLIP
    model: CLIP

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        resnet = expect(directory, "clip", RESNET)["model_type"] == RESNET
        return cls(interop.from_released(directory) if resnet else interop.from_hub(directory))

    def to_hub(self, directory: str | Path) -> None:
        if isinstance(self.model.image, ModifiedResNet):
            interop.RELEASED_RESNET.save(self.model, directory, {"model_type": RESNET})
        else:
            interop.to_hub(self.model, directory)

    def encode(self, batch: Tensor) -> Encoded:
        return self._images(batch) if batch.is_floating_point() else self._texts(batch)

    def _images(self, images: Tensor) -> Encoded:
        tower = self.model.image
        if isinstance(tower, VisionTransformer):
            if images.shape[1:] != (3, tower.image_size, tower.image_size):
                raise EncoreError(
                    f"images are (B, 3, {tower.image_size}, {tower.image_size}), not {tuple(images.shape)}"
                )
            tokens = tower.vit.tokens(images)
            return Encoded(tokens, F.normalize(tower.proj(tower.vit.norm(tokens[:, 0])), dim=-1))
        maps: list[Tensor] = []
        hook = tower.attnpool.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0]))
        try:
            pooled = self.model.encode_image(images)
        finally:
            hook.remove()
        return Encoded(maps[0].flatten(2).transpose(1, 2), pooled)

    def _texts(self, ids: Tensor) -> Encoded:
        tower, (batch, length) = self.model.text, ids.shape
        if length > tower.context_length:
            raise EncoreError(f"texts have at most {tower.context_length} tokens, not {length}; truncate them")
        end = ids.argmax(dim=1, keepdim=True)
        x = tower.blocks(tower.token_embedding(ids) + tower.positions[:length], is_causal=True)
        tokens = tower.norm(x)
        pooled = F.normalize(tower.proj(tokens[torch.arange(batch, device=ids.device), end[:, 0]]), dim=-1)
        after = torch.arange(length, device=ids.device) > end
        return Encoded(tokens.masked_fill(after[..., None], 0), pooled)

    @cached_property
    def transform(self) -> Any:
        from papers.clip.images import image_transform  # brings in torchvision, which encode does not need

        return image_transform(self.model.image.image_size, train=False)

    def read(self, path: str | Path) -> Tensor:
        """An image file -> (3, R, R): short side to R, central square, normalised."""
        return self.transform(load_image(path))


ENCODER = CLIPEncoder

"""The two predictive objectives that Fig. 2 compares with the contrastive one, on the same image tower."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.layers import Transformer
from common.training.recipe import Optim, Recipe
from papers.clip.model import VisionTransformer

Rule = Literal["sum", "mean", "lift"]


class BagOfWordsModule(Recipe):
    """Predicts which words the caption has (Sec. 2.3, after Joulin et al. 2016): softmax over the vocabulary against
    the uniform distribution over the caption's words.
    """

    def __init__(self, image: VisionTransformer, num_words: int, *, optim: Optim) -> None:
        super().__init__(optim)
        self.image = image
        self.head = nn.Linear(image.embed_dim, num_words)

    def log_probabilities(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) -> log p(word | image), (B, W)."""
        return self.head(self.image(images)).log_softmax(dim=-1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        target = batch["words"] / batch["words"].sum(dim=1, keepdim=True).clamp(min=1)
        return -(target * self.log_probabilities(batch["image"])).sum(dim=1).mean()

    @torch.no_grad()
    def scores(self, images: Tensor, prompts: Tensor, rule: Rule = "sum", prior: Tensor | None = None) -> Tensor:
        """How well prompts, bags (C, W), describe images: the sum of their words' log-probabilities, (B, C).

        rule "mean" divides by the number of words, so that long names are not punished; "lift" sums log p(word | image)
        - log prior(word), so that frequent words are not favoured. A prompt without a known word scores -inf: an empty
        sum of negative terms would win everywhere.
        """
        log_p = self.log_probabilities(images)
        if rule == "lift":
            assert prior is not None
            log_p = log_p - prior.log()
        weights = prompts.float()
        if rule == "mean":
            weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
        return (log_p @ weights.T).masked_fill(~prompts.any(dim=1), float("-inf"))


class CaptionModule(Recipe):
    """Predicts the caption word by word (Sec. 2.3, as VirTex): a causal decoder that attends to the image tokens."""

    def __init__(
        self,
        image: VisionTransformer,
        vocab_size: int,
        *,
        optim: Optim,
        dim: int = 128,
        depth: int = 2,
        context_length: int = 20,
    ) -> None:
        super().__init__(optim)
        self.image = image
        self.embedding = nn.Embedding(vocab_size, dim)
        self.positions = nn.Parameter(torch.randn(context_length, dim) * 0.01)
        self.decoder = Transformer(depth, dim, dim // 64, 4 * dim, activation="quick_gelu", cross_dim=image.feature_dim)
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.embedding.weight, std=0.02)

    def log_likelihood(self, images: Tensor, tokens: Tensor) -> Tensor:
        """log p(caption | image) of pairs; tokens (B, N): sot, pieces, eot, padding 0. Padding does not count. (B,)"""
        context = self.image.vit.norm(self.image.vit.tokens(images))
        return self._log_likelihood(context, tokens)

    def _log_likelihood(self, context: Tensor, tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        x = self.embedding(inputs) + self.positions[: inputs.shape[1]]
        x = self.norm(self.decoder(x, is_causal=True, context=context))
        logits = x @ self.embedding.weight.T  # tied output
        losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        counted = torch.arange(targets.shape[1], device=tokens.device) < tokens.argmax(dim=1, keepdim=True)
        return -(losses * counted).sum(dim=1)

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        tokens = batch["tokens"]
        predicted = tokens.argmax(dim=1).sum()  # eot is the largest id: its place is the number of predicted tokens
        return -self.log_likelihood(batch["image"], tokens).sum() / predicted

    @torch.no_grad()
    def scores(self, images: Tensor, prompts: Tensor) -> Tensor:
        """log p(prompt | image) for every prompt (C, N) -> (B, C)."""
        context = self.image.vit.norm(self.image.vit.tokens(images))
        rows = [self._log_likelihood(context, prompt.expand(len(images), -1)) for prompt in prompts]
        return torch.stack(rows, dim=1)

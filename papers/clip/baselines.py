"""The two predictive objectives that Fig. 2 compares with the contrastive one, on the same image tower."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.layers import Transformer
from papers.clip.model import VisionTransformer
from papers.clip.module import Pretraining

Rule = Literal["sum", "mean", "lift"]


class BagOfWordsModule(Pretraining):
    """Predicts which words the caption has (Sec. 2.3, after Joulin et al. 2016): softmax over the vocabulary against
    the uniform distribution over the caption's words.
    """

    def __init__(self, image: VisionTransformer, num_words: int, **optimizer: Any) -> None:
        super().__init__(**optimizer)
        self.image = image
        self.head = nn.Linear(image.embed_dim, num_words)

    def log_probabilities(self, images: Tensor) -> Tensor:
        """(B, 3, R, R) -> log p(word | image), (B, W)."""
        return self.head(self.image(images)).log_softmax(dim=-1)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        target = batch["words"] / batch["words"].sum(dim=1, keepdim=True).clamp(min=1)
        loss = -(target * self.log_probabilities(batch["image"])).sum(dim=1).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

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


class CaptionModule(Pretraining):
    """Predicts the caption word by word (Sec. 2.3, as VirTex): a causal decoder that attends to the image tokens."""

    def __init__(
        self,
        image: VisionTransformer,
        vocab_size: int,
        *,
        dim: int = 128,
        depth: int = 2,
        context_length: int = 20,
        **optimizer: Any,
    ) -> None:
        super().__init__(**optimizer)
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

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        tokens = batch["tokens"]
        predicted = tokens.argmax(dim=1).sum()  # eot is the largest id: its place is the number of predicted tokens
        loss = -self.log_likelihood(batch["image"], tokens).sum() / predicted
        self.log("train/loss", loss, prog_bar=True)
        return loss

    @torch.no_grad()
    def scores(self, images: Tensor, prompts: Tensor) -> Tensor:
        """log p(prompt | image) for every prompt (C, N) -> (B, C)."""
        context = self.image.vit.norm(self.image.vit.tokens(images))
        rows = [self._log_likelihood(context, prompt.expand(len(images), -1)) for prompt in prompts]
        return torch.stack(rows, dim=1)

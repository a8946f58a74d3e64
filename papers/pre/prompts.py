"""Tokenised prompts, hand-written prompts, and the harmonic mean of Base and New accuracy."""

from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import EncoreError
from common.formats.tokenizers import ClipTokenizer


def context_ids(tokenizer: ClipTokenizer, words: str) -> Tensor:
    """Ids of the words that a context starts from, (M,); "a photo of a" has four with the published merges."""
    ids = tokenizer.encode(words)
    if not ids:
        raise EncoreError("the words of a context are empty; give some, or none at all for random vectors")
    return torch.tensor(ids)


def prompt_tokens(
    tokenizer: ClipTokenizer, class_names: Sequence[str], num_context: int, words: str | None = None
) -> Tensor:
    """Tokenised "{words} {name}." of every class, (C, context_length). Underscores in names become spaces.

    Without words num_context times "X" stands in the context's place; what stands there is replaced anyway, but [EOS]
    must not move. Raises EncoreError for an empty list or name, for a name that does not fit, and for words that are
    not num_context tokens.
    """
    words = words or " ".join("X" * num_context)
    if (found := len(context_ids(tokenizer, words))) != num_context:
        raise EncoreError(
            f"context {words!r} has {found} tokens, the model learns {num_context}; change num_context or words"
        )
    names = [name.replace("_", " ").strip() for name in class_names]
    if not names or not all(names):
        raise EncoreError("a prompt needs a class name: the list of classes, or one name in it, is empty")
    prompts = [f"{words} {name}." for name in names]
    for name, prompt in zip(names, prompts):
        if len(tokenizer.encode(prompt)) > tokenizer.context_length - 2:
            raise EncoreError(
                f"class name {name!r} leaves no room for the prompt: [SOS], {num_context} context tokens, name, full "
                f"stop and [EOS] are more than {tokenizer.context_length} tokens; shorten the name"
            )
    return tokenizer(prompts)


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 Base New / (Base + New); 0 when one of them is 0."""
    return 2 * base * new / (base + new) if base > 0 and new > 0 else 0.0

"""BERT's uncased WordPiece tokenizer: read from published files, or trained on a small corpus."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from common.errors import EncoreError
from common.formats.lines import text_lines

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD = 0  # in every BERT vocabulary
PREFIX = "##"  # of a piece that goes on with a word


class WordPiece:
    """Lower-cased words cut into pieces, longest first.

    `unk`, `cls`, `sep`, `mask` are ids; `[PAD]` is 0. Texts are encoded without special tokens, and `[MASK]` and the
    like inside a text are text (a bracket, a word, a bracket), as in the released code: the public hub's tokenizer does
    so with split_special_tokens=True.
    """

    def __init__(self, vocabulary: dict[str, int]) -> None:
        absent = [token for token in SPECIALS if token not in vocabulary]
        if absent or vocabulary["[PAD]"] != PAD:
            raise EncoreError(f"not a BERT vocabulary: {', '.join(absent) or '[PAD]'} is missing or out of place")
        self.vocabulary = vocabulary
        self.unk, self.cls, self.sep, self.mask = (vocabulary[token] for token in SPECIALS[1:])
        self.tokenizer = Tokenizer(
            models.WordPiece(
                vocabulary, unk_token="[UNK]", continuing_subword_prefix=PREFIX, max_input_chars_per_word=100
            )
        )
        self.tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self.tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self.tokenizer.decoder = decoders.WordPiece(prefix=PREFIX)

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def special_ids(self) -> list[int]:
        """Ids of the special tokens, which are never masked."""
        return [PAD, self.unk, self.cls, self.sep, self.mask]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, no special tokens."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids, pieces joined into words."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    @cached_property
    def continues(self) -> Tensor:
        """(V,) bool: the pieces that go on with a word."""
        flags = torch.zeros(len(self), dtype=torch.bool)
        flags[[i for token, i in self.vocabulary.items() if token.startswith(PREFIX)]] = True
        return flags

    def save(self, directory: Path) -> None:
        """Writes vocab.txt, one token a line in the order of their ids."""
        directory.mkdir(parents=True, exist_ok=True)
        tokens = sorted(self.vocabulary, key=self.vocabulary.__getitem__)
        (directory / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> "WordPiece":
        """From vocab.txt, or a tokenizer.json that holds a WordPiece model, of a hub directory."""
        directory = Path(directory)
        plain, whole = directory / "vocab.txt", directory / "tokenizer.json"
        try:
            if plain.is_file():
                return cls({token: i for i, token in enumerate(text_lines(plain))})
            return cls(Tokenizer.from_file(str(whole)).get_vocab(with_added_tokens=False))
        except EncoreError as error:
            raise EncoreError(f"{directory}: {error}") from None
        except Exception as error:  # the library raises bare Exception for every bad file
            raise EncoreError(
                f"{directory}: no readable vocab.txt or tokenizer.json ({error}); copy the files of bert-base-uncased"
            ) from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, rarest: int = 1) -> "WordPiece":
        """Trained on texts, the same every time. Characters seen fewer than `rarest` times become `[UNK]`.

        A small corpus may yield fewer than vocab_size tokens. EncoreError when vocab_size does not even hold the
        characters.
        """
        texts = list(texts)
        tokenizer = cls({token: i for i, token in enumerate(SPECIALS)}).tokenizer
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(tokenizer.normalizer.normalize_str(text))
        characters = sorted(c for c, n in counts.items() if n >= rarest and not c.isspace())
        # characters as special tokens have fixed ids; left to the trainer their order, and with it the choice between
        # equally frequent merges, changes from run to run
        fixed = [*SPECIALS, *characters, *(PREFIX + c for c in characters)]
        if vocab_size < len(fixed):
            raise EncoreError(f"vocab_size {vocab_size} is too small: characters and special tokens take {len(fixed)}")
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=fixed,
            limit_alphabet=0,
            continuing_subword_prefix=PREFIX,
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.get_vocab(with_added_tokens=False))

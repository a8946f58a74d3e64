"""Byte-level BPE in the two forms the papers use: GPT-2's (BART, BEiT-3's text, ...) and CLIP's lower-cased one with
``</w>``.

Both are trained here on small corpora or read from the published files in a local directory.
"""

import gzip
import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ftfy
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from common.errors import EncoreError

BART_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"


class ByteBPE:
    """GPT-2's byte-level BPE; any text is encoded without unknown tokens and decoded back exactly.

    Texts are encoded as they are: a space before a word belongs to its first piece (``Ġ``), and no special token is
    added. Strings in the text that look like special tokens are encoded as plain text. `bos`, `pad`, `eos`, `unk`,
    `mask` are ids, None where the vocabulary has no such token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.bos, self.pad, self.eos, self.unk = (tokenizer.token_to_id(token) for token in BART_SPECIALS)
        self.mask = tokenizer.token_to_id(MASK)
        self.special_ids = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.tokenizer.encode_special_tokens = True  # which a copy, or a worker's tokenizer, would forget

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of many texts."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of token ids."""
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    def starts_word(self) -> Tensor:
        """bool (vocabulary,): the pieces that begin with a space.

        Special tokens do not; the first word of a text may not either.
        """
        vocabulary = self.tokenizer.get_vocab()
        starts = torch.zeros(len(self), dtype=torch.bool)
        starts[[i for token, i in vocabulary.items() if token.startswith("Ġ")]] = True
        return starts

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, which `load_byte_bpe` and the public hub's fast tokenizers read."""
        directory.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(directory / "tokenizer.json"))


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_byte_bpe(texts: Iterable[str], vocab_size: int, specials: Sequence[str] = BART_SPECIALS) -> ByteBPE:
    """Train on texts; deterministic. The special tokens have the ids 0, 1, ... and ``<mask>`` the last one (BART's
    layout).

    vocab_size counts everything; a small corpus may yield fewer. Raises EncoreError below 256 bytes + specials + mask.
    """
    smallest = 256 + len(specials) + 1
    if vocab_size < smallest:
        raise EncoreError(f"vocab_size {vocab_size} is too small: 256 bytes and the special tokens take {smallest}")
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([MASK])
    tokenizer.encode_special_tokens = True
    return ByteBPE(tokenizer)


def load_byte_bpe(directory: Path) -> ByteBPE:
    """A published GPT-2 or BART tokenizer from tokenizer.json, or from vocab.json and merges.txt (then the special
    tokens are those of BART and GPT-2 that the vocabulary has).
    """
    whole = directory / "tokenizer.json"
    try:
        if whole.is_file():
            tokenizer = Tokenizer.from_file(str(whole))
        else:
            vocabulary, merges = _hub_files(directory)
            tokenizer = _byte_level(models.BPE(vocabulary, merges))
            specials = (*BART_SPECIALS, MASK, "<|endoftext|>")
            tokenizer.add_special_tokens([token for token in specials if token in vocabulary])
    except EncoreError:
        raise
    except Exception as error:  # the library raises bare Exception for every bad file
        raise EncoreError(f"{directory}: not a byte-level BPE tokenizer ({error}); download its files again") from None
    tokenizer.encode_special_tokens = True
    return ByteBPE(tokenizer)


def _hub_files(directory: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    for name in ("vocab.json", "merges.txt"):
        if not (directory / name).is_file():
            raise EncoreError(f"{directory}: no {name}; a tokenizer directory holds vocab.json and merges.txt")
    vocabulary = json.loads((directory / "vocab.json").read_text(encoding="utf-8-sig"))
    return vocabulary, _parse_merges((directory / "merges.txt").read_text(encoding="utf-8-sig"))


def _parse_merges(text: str) -> list[tuple[str, str]]:
    lines = text.split("\n")
    start = 1 if "#version" in lines[0] else 0
    pairs = [tuple(line.split()) for line in lines[start:] if line.strip()]
    bad = [pair for pair in pairs if len(pair) != 2]
    if bad:
        raise EncoreError(f"merges: expected two pieces a line, found {' '.join(bad[0])!r}")
    return [(left, right) for left, right in pairs]  # type: ignore[misc]


# CLIP

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = 49152 - 256 - 2  # of the 262,144 in the published file
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def clean(text: str) -> str:
    """CLIP's cleaning: repaired Unicode, html entities unescaped twice, runs of whitespace collapsed, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


class ClipTokenizer:
    """CLIP's lower-cased byte-level BPE. Called on captions it gives (N, context_length) ids: sot, pieces, eot, zeros.

    `<|startoftext|>` and `<|endoftext|>` inside a caption are the tokens themselves, as in the public hub's tokenizer.
    Ids as in the released code: 256 bytes, 256 bytes that end a word, one token a merge, then sot and eot, so eot is
    the largest id (49407 for the published merges). A caption that is too long loses its last pieces, never eot; an
    empty one gives sot, eot.
    """

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], context_length: int = 77) -> None:
        self.context_length = context_length
        self.vocabulary, self.merges = vocabulary, list(merges)
        self.sot, self.eot = vocabulary[START], vocabulary[END]
        bpe = models.BPE(vocabulary, self.merges, end_of_word_suffix=END_OF_WORD)
        self.tokenizer = Tokenizer(bpe)
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        self.tokenizer.decoder = decoders.ByteLevel()
        self.tokenizer.add_special_tokens([START, END])

    @classmethod
    def from_merges(cls, merges: Sequence[tuple[str, str]], context_length: int = 77) -> "ClipTokenizer":
        """Build the vocabulary the way the released code does."""
        alphabet = _byte_symbols()
        tokens = [
            *alphabet,
            *(symbol + END_OF_WORD for symbol in alphabet),
            *("".join(pair) for pair in merges),
            START,
            END,
        ]
        return cls({token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges, context_length)

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, context_length: int = 77) -> "ClipTokenizer":
        """Train merges on cleaned captions; deterministic. A small corpus may yield fewer than vocab_size tokens.

        Raises EncoreError below the 514 tokens that are always there.
        """
        if vocab_size < 514:
            raise EncoreError(f"vocab_size {vocab_size} is too small: the byte and special tokens take 514")
        tokenizer = Tokenizer(models.BPE(end_of_word_suffix=END_OF_WORD))
        tokenizer.pre_tokenizer = cls.from_merges([]).tokenizer.pre_tokenizer
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 2,  # sot and eot come later
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            # as specials the bytes that end a word get fixed ids; left to the trainer their order, and with it the
            # choice between equally frequent merges, changes from run to run
            special_tokens=[symbol + END_OF_WORD for symbol in _byte_symbols()],
            end_of_word_suffix=END_OF_WORD,
            show_progress=False,
        )
        tokenizer.train_from_iterator((clean(caption) for caption in captions), trainer)
        merges = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
        return cls.from_merges(merges, context_length)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of one text, without sot, eot and padding."""
        return self.tokenizer.encode(clean(text), add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first eot, cleaned and with a space after every word."""
        pieces = []
        for i in ids:
            if int(i) == self.eot:
                break
            if int(i) != self.sot:
                pieces.append((self.tokenizer.id_to_token(int(i)) or "").replace(END_OF_WORD, "Ġ"))
        return self.tokenizer.decoder.decode(pieces).strip()

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Ids, int64 (N, context_length), padded with 0."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        out = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        encodings = self.tokenizer.encode_batch([clean(text) for text in texts], add_special_tokens=False)
        for row, encoding in zip(out, encodings):
            ids = [self.sot, *encoding.ids[: self.context_length - 2], self.eot]
            row[: len(ids)] = torch.tensor(ids)
        return out

    def save(self, directory: Path) -> None:
        """Write vocab.json and merges.txt, the public hub's form."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "vocab.json").write_text(json.dumps(self.vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in self.merges)]
        (directory / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def clip_tokenizer(path: Path, context_length: int = 77) -> ClipTokenizer:
    """The published tokenizer, from bpe_simple_vocab_16e6.txt[.gz] or from a directory with the hub's vocab.json and
    merges.txt.
    """
    try:
        if path.is_dir():
            return ClipTokenizer(*_hub_files(path), context_length)
        data = path.read_bytes()
        merges = _parse_merges((gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig"))
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise EncoreError(f"{path}: not a CLIP tokenizer ({error}); download it again") from None
    return ClipTokenizer.from_merges(merges[:CLIP_MERGES], context_length)


def _byte_symbols() -> list[str]:
    """The printable stand-in of every byte, in the order of the released code: printable bytes first, then the others,
    which are mapped to code points from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = len(set(range(256)) - set(printable))
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(others)]

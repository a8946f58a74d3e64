"""The uncased WordPiece vocabulary of bert-base-uncased: read from its files, or trained on a small corpus."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from common.errors import EncoreError

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUES = "##"


class WordPiece:
    """Lower-cased text in pieces, without special tokens. `unk`, `cls`, `sep`, `mask` are ids; [PAD] must be 0."""

    def __init__(self, vocabulary: dict[str, int]) -> None:
        if vocabulary.get("[PAD]") != 0 or not vocabulary.keys() >= set(SPECIALS):
            raise EncoreError(f"not a BERT vocabulary: it must hold {', '.join(SPECIALS)}, and [PAD] must be number 0")
        self.vocabulary = vocabulary
        _, self.unk, self.cls, self.sep, self.mask = (vocabulary[name] for name in SPECIALS)
        self.tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
        self.tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        self.tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def __len__(self) -> int:
        return len(self.vocabulary)

    @property
    def special_ids(self) -> list[int]:
        """Ids that are never masked."""
        return [self.vocabulary[name] for name in SPECIALS]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def save(self, directory: Path) -> None:
        """vocab.txt, a piece a line in the order of the ids."""
        directory.mkdir(parents=True, exist_ok=True)
        pieces = sorted(self.vocabulary, key=lambda piece: self.vocabulary[piece])
        (directory / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> "WordPiece":
        """From a hub directory's vocab.txt, or its tokenizer.json. EncoreError when neither can be used."""
        lines, whole = Path(directory) / "vocab.txt", Path(directory) / "tokenizer.json"
        try:
            if lines.is_file():
                return cls({piece: i for i, piece in enumerate(lines.read_text(encoding="utf-8").splitlines())})
            return cls(Tokenizer.from_file(str(whole)).get_vocab())
        except EncoreError as error:
            raise EncoreError(f"{directory}: {error}") from None
        except Exception as error:  # the library raises bare Exception for every bad file
            raise EncoreError(
                f"{directory}: no readable vocab.txt or tokenizer.json ({error}); take those of bert-base-uncased"
            ) from None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, rarest: int = 5) -> "WordPiece":
        """Trained on texts, the same every time. Characters seen fewer than `rarest` times become [UNK].

        A small corpus may give fewer than vocab_size pieces. EncoreError when not even its characters fit.
        """
        texts = list(texts)
        tokenizer = cls({name: i for i, name in enumerate(SPECIALS)}).tokenizer
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(tokenizer.normalizer.normalize_str(text))
        characters = sorted(c for c, n in counts.items() if n >= rarest and not c.isspace())
        # given as special tokens they have fixed numbers; the trainer would number them differently in every run, and
        # by these numbers it decides between equally frequent pairs
        fixed = [*SPECIALS, *characters, *(CONTINUES + c for c in characters)]
        if vocab_size < len(fixed):
            raise EncoreError(f"vocab_size {vocab_size} is too small: characters and special tokens take {len(fixed)}")
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=fixed, limit_alphabet=0, show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer.get_vocab(with_added_tokens=False))

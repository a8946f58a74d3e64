"""Batches for a scorer: pairs of texts to tune it on (ParaBank2's form), and judged texts to compare it with people."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

from common.errors import EncoreError
from common.formats.tables import numbered_lines
from common.formats.tokenizers import ByteBPE, load_byte_bpe, train_byte_bpe
from common.training.loaders import Loaders
from papers.bart.data import Pair, collate_pairs
from papers.bart.tasks import Pairs
from papers.bartscore import generated
from papers.bartscore.judged import Judged, read
from papers.bartscore.references import Groups, group, rewritings

TextPair = tuple[str, str]


def read_pairs(file: str | Path) -> list[TextPair]:
    """The pairs of a JSON-lines file, {"text": ..., "summary": ...} a line, without the spaces around them.

    EncoreError names the file and line that is not such an object, or has an empty text.
    """
    found = []
    for number, line in numbered_lines(Path(file)):
        try:
            row = json.loads(line)
            pair = row["text"].strip(), row["summary"].strip()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EncoreError(
                f'{file}:{number}: not {{"text": ..., "summary": ...}}; write one such object a line'
            ) from None
        if not all(pair):
            raise EncoreError(f"{file}:{number}: an empty text; leave the pair out")
        found.append(pair)
    if not found:
        raise EncoreError(f'{file}: holds no pairs; write one {{"text": ..., "summary": ...}} a line')
    return found


class ScorerData(Loaders):
    """Batches (source, target) for `fit` and judged texts of the named `sets` for `test`.

    train, valid: JSON-lines files as ParaBank2 is given to the official script. references: instead of files, the
    rewritings among the references of these data-to-text sets, with every tenth meaning held out. Without either:
    generated pairs.
    released: folder of the released data.pkl's (see judged.read), else the named source.
    tokenizer: directory of a published BPE; without it one of `vocab_size` is trained on the training pairs.
    """

    def __init__(
        self,
        sets: Sequence[str] = (),
        train: str | None = None,
        valid: str | None = None,
        references: Sequence[str] = (),
        released: str | None = None,
        tokenizer: str | None = None,
        vocab_size: int = 400,
        max_length: int = 1024,
        batch_size: int = 20,
        num_workers: int = 0,
        seed: int = 666,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, seed=seed)
        self.sets, self.released = tuple(sets), released
        self.files, self.references = (train, valid), tuple(references)
        self.tokenizer_path, self.vocab_size, self.max_length = tokenizer, vocab_size, max_length
        self.tokenizer: ByteBPE | None = None
        self.judged: list[tuple[str, Judged]] | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.tokenizer is None:
            train, valid = self._pairs()
            if self.tokenizer_path:
                self.tokenizer = load_byte_bpe(Path(self.tokenizer_path))
            else:
                self.tokenizer = train_byte_bpe([text for pair in train for text in pair], self.vocab_size)
            self.train, self.valid = self._encoded(train), self._encoded(valid)
        if stage == "test" and self.judged is None:
            self.judged = [(name, row) for name in self.sets for row in self._read(name)]

    def _pairs(self) -> tuple[list[TextPair], list[TextPair]]:
        if self.references:
            groups: Groups = {}
            for name in self.references:
                groups |= group(name, read(name, self.released))
            meanings = list(groups.items())
            held_out = dict(meanings[::10])
            return rewritings({m: texts for m, texts in meanings if m not in held_out}), rewritings(held_out)
        train, valid = (
            read_pairs(file) if file else generated.pairs(count, seed)
            for file, count, seed in zip(self.files, (400, 40), (0, 1))
        )
        return train, valid

    def _read(self, name: str) -> list[Judged]:
        return generated.judged(120) if name == "generated" else read(name, self.released)

    def _encoded(self, pairs: Sequence[TextPair]) -> Pairs:
        assert self.tokenizer is not None
        return Pairs(pairs, self.tokenizer, self.max_length, self.max_length)

    def collate(self, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor]:
        return collate_pairs(pairs)

    def test_dataloader(self) -> DataLoader:
        """Lists of rows of `judged`."""
        if not self.judged:
            raise EncoreError("no judged set is named; give data.init_args.sets, e.g. [bagel, realsumm]")
        return DataLoader(range(len(self.judged)), 32, collate_fn=list)  # type: ignore[arg-type]

"""Translation with a new source encoder (Sec. 3.4, 5.4): its two-phase training and parallel text."""

from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import Dataset
from torchmetrics.text import SacreBLEUScore

from common.errors import EncoreError
from common.formats.tokenizers import ByteBPE, load_byte_bpe
from papers.bart.data import Pair, PairBatches, column, local_dataset, wrap
from papers.bart.generate import Decoding, generate
from papers.bart.interop import load_into
from papers.bart.model import BARTTranslator
from papers.bart.module import SIZES, Batch, Size, decayed


class ParallelText(Dataset):
    """(foreign ids, English ids) rows; each side has its own tokenizer."""

    def __init__(
        self, rows: list[dict[str, str]], source: str, target: str, tokenizers: tuple[ByteBPE, ByteBPE], max_length: int
    ) -> None:
        self.rows, self.languages, self.tokenizers, self.max_length = rows, (source, target), tokenizers, max_length

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Pair:
        foreign, english = (
            wrap(tokenizer, [self.rows[index][language]], self.max_length)[0]
            for tokenizer, language in zip(self.tokenizers, self.languages)
        )
        return foreign, english


class Parallel(PairBatches):
    """Parallel text from a local directory in the `datasets` library's layout of WMT: a column `translation` of
    {language: text}. Back-translated pairs are simply more rows of the training split.

    source_tokenizer: directory of a byte-level BPE of the foreign language; tokenizer: BART's.
    """

    def __init__(
        self,
        path: str,
        source_tokenizer: str,
        tokenizer: str,
        source: str = "ro",
        target: str = "en",
        batch_size: int = 32,
        max_length: int = 256,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.path, self.source, self.target, self.batch_size = path, source, target, batch_size
        self.source_tokenizer, self.tokenizer_path = source_tokenizer, tokenizer
        self.max_length, self.num_workers, self.seed = max_length, num_workers, seed
        self.train: ParallelText | None = None

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            splits = local_dataset(self.path)
            if not {"train", "validation"} <= splits.keys():
                raise EncoreError(f"{self.path}: needs the splits train and validation; it has {', '.join(splits)}")
            self.tokenizer = load_byte_bpe(Path(self.tokenizer_path))
            self.tokenizers = load_byte_bpe(Path(self.source_tokenizer)), self.tokenizer
            self.train, self.valid = self._rows(splits["train"]), self._rows(splits["validation"])
            self.test = self._rows(splits["test"]) if "test" in splits else self.valid

    def _rows(self, split: Any) -> ParallelText:
        rows = column(split, "translation", self.path)
        absent = {self.source, self.target} - set(rows[0])
        if absent:
            raise EncoreError(f"{self.path}: no language {sorted(absent)[0]!r}; it has {', '.join(sorted(rows[0]))}")
        return ParallelText(rows, self.source, self.target, self.tokenizers, self.max_length)


class Translation(L.LightningModule):
    """For `new_parts_steps` only the new source encoder, BART's positions and the input projection of its first encoder
    layer learn, then everything does. The optimizer's values are ours: the paper gives none."""

    def __init__(
        self,
        size: Size = "large",
        source_vocab_size: int = 40000,
        source_depth: int = 6,
        vocab_size: int = 50265,
        max_positions: int = 1024,
        checkpoint: str | None = None,
        label_smoothing: float = 0.1,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        lr: float = 3e-5,
        warmup_steps: int = 1000,
        new_parts_steps: int = 40_000,
        total_steps: int = 50_000,
        decoding: Decoding = Decoding(beam=5, max_length=256),  # noqa: B008 (a frozen dataclass)
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        bart = SIZES[size](
            vocab_size, dropout=dropout, attention_dropout=attention_dropout, max_positions=max_positions
        )
        if checkpoint is not None:
            load_into(bart, checkpoint)
        self.model = BARTTranslator(bart, source_vocab_size, source_depth)
        self.label_smoothing, self.new_parts_steps, self.decoding = label_smoothing, new_parts_steps, decoding
        self.optimizer = {"lr": lr, "warmup_steps": warmup_steps, "total_steps": total_steps}
        self.bleu = SacreBLEUScore()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self.trainer.global_step < self.new_parts_steps:
            self.model.train_new_parts()
        else:
            self.model.train_everything()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        source, target = batch
        loss = self.model.loss(source, target, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        source, target = batch
        self.log("val/loss", self.model.loss(source, target), batch_size=len(source), prog_bar=True)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        source, target = batch
        tokenizer = self.trainer.datamodule.tokenizer  # type: ignore[attr-defined]
        tokens, _ = generate(self.model, source, self.decoding)
        self.bleu.update([tokenizer.decode(row) for row in tokens], [[tokenizer.decode(row)] for row in target])

    def on_test_epoch_end(self) -> None:
        self.log("test/bleu", 100 * self.bleu.compute())
        self.bleu.reset()

    def configure_optimizers(self) -> Any:
        self.model.train_everything()  # the optimizer must know all parameters; frozen ones have no gradient
        return decayed(self, **self.optimizer, betas=(0.9, 0.98))  # type: ignore[arg-type]

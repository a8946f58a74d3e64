"""`metrics.csv`: every row is on file as soon as it is logged, and a resumed run goes on in the same file."""

import csv
import io
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from common.files import replacing

Row = dict[str, Any]


class MetricsCSV(Logger):
    """A CSV file straight in the run's folder; of several processes the first one writes it.

    Nothing is removed before training starts, and then only rows of steps that are trained again. A column that comes
    later widens the file.
    """

    def __init__(self, folder: str | Path, name: str = "metrics.csv") -> None:
        super().__init__()
        self.file = Path(folder) / name
        self.columns: list[str] | None = None  # of the file; unknown until the first row

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.file.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: they stand in config.yaml and in every checkpoint."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        row = {name: getattr(value, "item", lambda value=value: value)() for name, value in metrics.items()}
        row["step"] = step or 0
        if self.columns is None:
            self.keep_before(None)
        if self.columns is None or not row.keys() <= set(self.columns):
            self._write([*self._rows(), row])
        else:
            with self.file.open("a", newline="", encoding="utf-8") as stream:
                csv.DictWriter(stream, self.columns).writerow(row)

    @rank_zero_only
    def keep_before(self, step: int | None) -> None:
        """Keep the whole rows of steps before `step` (None: of all steps); a torn last row goes."""
        rows = self._rows()
        kept = [row for row in rows if step is None or int(row["step"]) < step]
        if kept:
            self._write(kept)
        else:
            self.file.unlink(missing_ok=True)
            self.columns = None

    def _rows(self) -> list[Row]:
        try:
            with self.file.open(newline="", encoding="utf-8", errors="replace") as stream:
                text = stream.read()
        except OSError:
            return []
        found = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        return [
            {name: value for name, value in row.items() if name and value not in ("", None)}
            for row in found
            if (row.get("step") or "").isdecimal()
        ]

    def _write(self, rows: list[Row]) -> None:
        self.columns = sorted(set().union(*rows))
        with replacing(self.file) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self.columns)
            writer.writeheader()
            writer.writerows(rows)


class ContinueLog(Callback):
    """Tells a MetricsCSV logger at which step this run starts."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, MetricsCSV):
                logger.keep_before(trainer.global_step)

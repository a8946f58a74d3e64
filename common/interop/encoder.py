"""One small interface for every encoder that was exported: `encode(batch) -> (tokens, pooled)`.

A directory that `encore export` wrote has model.safetensors and config.json in the hub's format; config.json says in
{"encore": {"paper": ..., "format": 1}} whose model it is. papers/<paper>/export.py holds what is particular to a paper.
"""

import json
import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from common.errors import EncoreError
from common.interop.checkpoint import Checkpoint
from common.interop.layout import Layout
from common.interop.weights import check_and_load, load_config, load_weights, save_weights

BLOCK = "encore"
FORMAT = 1


class Encoded(NamedTuple):
    """tokens: (B, N, D), zero at padding; pooled: (B, E), one vector an input, to which padding adds nothing."""

    tokens: Tensor
    pooled: Tensor


class Encoder(nn.Module):
    """An encoder to use elsewhere.

    Gradients flow through `encode` as through any module, so it can be trained on: to read features only, call it under
    torch.no_grad(), as `encore embed` does, or every batch keeps its graph. `read` prepares a file, without weights.

    A paper's export.py defines a subclass and names it ENCODER; its docstring says what a batch is.
    """

    kind: ClassVar[str] = ""  # of the files that `read` takes: images, audio or videos; "" when it takes none
    model: nn.Module

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        """The encoder of a training run. EncoreError when the checkpoint is another model's."""
        raise NotImplementedError

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        """The encoder in a directory of the hub's format. EncoreError when that holds another model."""
        raise NotImplementedError

    def to_hub(self, directory: str | Path) -> None:
        """Write model.safetensors and config.json."""
        raise NotImplementedError

    def encode(self, batch: Any) -> Encoded:
        """(tokens, pooled) of a batch."""
        raise NotImplementedError

    def read(self, path: str | Path) -> Tensor:
        """One input file, prepared as for the paper's evaluation. An exception says what is wrong with the file."""
        raise EncoreError(f"{type(self).__name__} reads no files; call encode with tensors")

    def collate(self, items: Sequence[Tensor]) -> Any:
        """What `read` gave for several files -> a batch for `encode`."""
        return torch.stack(list(items))

    def forward(self, batch: Any) -> Encoded:
        return self.encode(batch)

    @staticmethod
    def from_directory(directory: str | Path, paper: str | None = None) -> "Encoder":
        """The encoder in an exported directory, in eval mode.

        paper: whose model a directory from the public hub is, for example "clip"; an exported one says so itself.
        Nothing in the directory is executed: its config.json can only choose among papers/*/export.py.
        """
        config = load_config(directory)
        block = config.get(BLOCK) if isinstance(config, dict) else None
        where = Path(directory) / "config.json"
        if block is None and paper is None:
            raise EncoreError(f'{where}: does not say which paper\'s model it is; pass paper="clip" or the like')
        if block is not None:
            if not isinstance(block, dict) or block.get("format") != FORMAT:
                raise EncoreError(f"{where}: {BLOCK!r} is not a block of format {FORMAT}; export the model again")
            if paper not in (None, block.get("paper")):
                raise EncoreError(f"{where}: this is a model of {block.get('paper')!r}, not of {paper!r}")
            paper = block.get("paper")
        reader = encoder_class(paper, where)
        try:
            return reader.from_hub(directory).eval()
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            raise EncoreError(
                f"{where}: does not describe a model of {paper} ({error!r:.200}); export it again"
            ) from error


class Exported(Encoder):
    """The common body of the papers' encoders: a module's weights below a prefix, a directory through a Layout.

    A subclass names model_types (of config.json; the first is written), the one module `within` whose constructors a
    checkpoint may name in its module's `argument`, and the layout (None: the directory holds our own names); it says
    how a config.json makes a model (`from_config`) and what config.json says of one (`config`).
    """

    model_types: ClassVar[tuple[str, ...]]
    within: ClassVar[str] = ""
    argument: ClassVar[str] = "model"
    prefixes: ClassVar[tuple[str, ...]] = ("model.",)  # of the model in a checkpoint's state; the first that occurs
    layout: ClassVar[Layout | None] = None
    model_class: ClassVar[type[nn.Module]] = nn.Module  # what a checkpoint's model must be

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Self:
        model = cls.build(checkpoint)
        if not isinstance(model, cls.model_class):
            wanted = cls.model_class.__name__
            raise EncoreError(f"{checkpoint.path}: only a {wanted} can be exported, this is a {type(model).__name__}")
        prefix = next((p for p in cls.prefixes if any(n.startswith(p) for n in checkpoint.state)), cls.prefixes[-1])
        check_and_load(model, checkpoint.part(prefix), checkpoint.path)
        return cls(model)

    @classmethod
    def build(cls, checkpoint: Checkpoint) -> nn.Module:
        """The model that a checkpoint's configuration describes, with weights of any kind."""
        return checkpoint.built(cls.argument, cls.within)

    @classmethod
    def from_hub(cls, directory: str | Path) -> Self:
        model = cls.from_config(expect(directory, *cls.model_types), directory)
        if cls.layout is None:
            check_and_load(model, load_weights(directory), directory)
        else:
            cls.layout.load(model, directory)
        return cls(model)

    @classmethod
    def from_config(cls, config: dict[str, Any], directory: str | Path) -> nn.Module:
        """The model that a config.json describes, with weights of any kind."""
        raise NotImplementedError

    def to_hub(self, directory: str | Path) -> None:
        config = {"model_type": self.model_types[0], **self.config()}
        state = self.model.state_dict()
        save_weights(directory, state if self.layout is None else self.layout.to_theirs(state), config)

    def config(self) -> dict[str, Any]:
        """config.json of the model, without model_type."""
        raise NotImplementedError


def encoder_class(paper: Any, source: str | Path = "paper") -> type[Encoder]:
    """ENCODER of papers/<paper>/export.py. EncoreError when there is no such paper or it exports nothing."""
    if not isinstance(paper, str) or not re.fullmatch(r"[a-z][a-z0-9_]{0,60}", paper):
        raise EncoreError(f"{source}: {str(paper)[:60]!r} is not the name of a paper")
    try:
        found = find_spec(f"papers.{paper}.export")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise EncoreError(f"{source}: {paper} has no encoder to export")
    return import_module(f"papers.{paper}.export").ENCODER


def mark(directory: str | Path, paper: str, about: dict[str, Any]) -> None:
    """Say in config.json whose model the directory holds, and where it came from."""
    config = load_config(directory) | {BLOCK: {"paper": paper, "format": FORMAT, **about}}
    (Path(directory) / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def expect(directory: str | Path, *model_types: str) -> dict[str, Any]:
    """config.json of a directory. EncoreError when its model_type is none of these."""
    config = load_config(directory)
    if not isinstance(config, dict) or config.get("model_type") not in model_types:
        found = config.get("model_type") if isinstance(config, dict) else config
        raise EncoreError(f"{directory}/config.json: model_type is {found!r:.60}, not {' or '.join(model_types)}")
    return config


def mean_over(tokens: Tensor, real: Tensor | None = None) -> Encoded:
    """Mean of tokens (B, N, D) over those where real (B, N) bool is True, None: all; the others become zero.

    A row without real tokens is pooled to zero.
    """
    if real is None:
        return Encoded(tokens, tokens.mean(dim=1))
    tokens = tokens.masked_fill(~real[..., None], 0)
    return Encoded(tokens, tokens.sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1))

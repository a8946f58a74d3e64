"""A training checkpoint as what it says about itself: weights, the module's arguments, the run's configuration."""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from common.checksums import file_sha256
from common.errors import EncoreError
from common.interop.weights import read_checkpoint
from common.plain_yaml import parse_mapping

RECORD = "encore"  # the key under which a train script keeps its configuration in every checkpoint
BESIDE = "config.yaml"  # and the file that it writes beside them


@dataclass(frozen=True)
class Checkpoint:
    """One Lightning checkpoint.

    module: class path of the LightningModule, "" where the file does not say. arguments: what it was built with.
    state: its weights, under the module's names. config: the whole configuration of the run, {} where unknown.
    """

    path: Path
    sha256: str
    module: str
    arguments: dict[str, Any]
    state: dict[str, Tensor]
    config: dict[str, Any]
    steps: int
    epochs: int

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Weights whose name begins with `prefix`, without it. EncoreError when there are none."""
        found = {name.removeprefix(prefix): value for name, value in self.state.items() if name.startswith(prefix)}
        if not found:
            raise EncoreError(f"{self.path}: holds no weights named {prefix}*; it is a checkpoint of another model")
        return found

    def argument(self, name: str) -> Any:
        """One argument of the module. EncoreError that asks for the configuration when the file does not hold it."""
        if name not in self.arguments:
            raise EncoreError(
                f"{self.path}: does not say what {name!r} was; give the configuration of the run "
                f"(--config, the {BESIDE} that the train script wrote)"
            )
        return self.arguments[name]

    def built(self, name: str, within: str) -> Any:
        """The object that the argument `name` describes: {class_path, init_args}, of a function or class in `within`.

        within: the one module that the class path may name; nothing else is imported or called.
        """
        return _construct(self.argument(name), within, self.path)


def load_checkpoint(path: str | Path, config: str | Path | None = None) -> Checkpoint:
    """Read a checkpoint; only tensors and plain containers are unpickled.

    config: the configuration it was trained with. Without it, the one kept in the checkpoint, else the config.yaml
    beside it. EncoreError when a file is missing or damaged, or is no training checkpoint.
    """
    path = Path(path)
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise EncoreError(f"{path}: has no state_dict, so it is not a training checkpoint; give the last.ckpt of a run")
    found = _config(path, content, config)
    model = found.get("model") or {}
    hyper = dict(content.get("hyper_parameters") or {})
    module = str(hyper.pop("_class_path", "") or model.get("class_path", ""))
    hyper.pop("_instantiator", None)
    return Checkpoint(
        path=path,
        sha256=file_sha256(path),
        module=module,
        arguments=(model.get("init_args") or {}) | hyper,
        state=content["state_dict"],
        config=found,
        steps=int(content.get("global_step", 0)),
        epochs=int(content.get("epoch", 0)),
    )


def check_training_state(content: Any, path: str | Path) -> None:
    """EncoreError that names the part unless this can be the checkpoint of a training: weights that are finite, and
    what is needed to go on has the form in which it is saved. A part that is not there is not needed."""
    if not isinstance(content, dict) or "state_dict" not in content:
        raise EncoreError(
            f"{path}: has no state_dict, so it is not a training checkpoint; load weights through the config"
        )
    forms: dict[str, Any] = {"global_step": int, "epoch": int, "callbacks": dict, "loops": dict, RECORD: dict}
    forms |= {"state_dict": dict, "optimizer_states": list, "lr_schedulers": list}
    for part, form in forms.items():
        if part in content and not isinstance(content[part], form):
            _refuse(path, part, f"is no {form.__name__}")
    for name, value in content["state_dict"].items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            _refuse(path, f"state_dict[{name!r:.60}]", "is no tensor")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            _refuse(path, f"state_dict[{name!r}]", "is not finite")
    for part in ("global_step", "epoch"):
        if content.get(part, 0) < 0:
            _refuse(path, part, "is negative")
    for index, state in enumerate(content.get("optimizer_states", [])):
        where = f"optimizer_states[{index}]"
        if not isinstance(state, dict) or not isinstance(state.get("state"), dict):
            _refuse(path, where, "has no state")
        groups = state.get("param_groups")
        if not isinstance(groups, list) or not all(isinstance(g, dict) and "params" in g and "lr" in g for g in groups):
            _refuse(path, where, "has no parameter groups with rates")
        for tensor in tree_leaves(state["state"]):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                _refuse(path, where, "is not finite")
    if "loops" in content:
        loop = content["loops"].get("fit_loop")
        for part in ("epoch_progress", "epoch_loop.batch_progress"):
            if not isinstance(loop, dict) or not _counts(loop.get(part)):
                _refuse(path, f"loops.fit_loop[{part!r}]", "does not count batches and epochs")


def _counts(progress: Any) -> bool:
    parts = [progress.get(key) for key in ("total", "current")] if isinstance(progress, dict) else [None]
    return all(isinstance(part, dict) and all(type(value) is int for value in part.values()) for part in parts)


def _refuse(path: str | Path, part: str, what: str) -> None:
    raise EncoreError(f"{path}: {part} {what}: the checkpoint is damaged; go on from another one, or start afresh")


def _config(path: Path, content: dict[str, Any], given: str | Path | None) -> dict[str, Any]:
    kept = (content.get(RECORD) or {}).get("config")
    beside = path.parent / BESIDE
    if given is not None:
        source, text = Path(given), _read(Path(given))
    elif kept is not None:
        source, text = path, str(kept)
    elif beside.is_file():
        source, text = beside, _read(beside)
    else:
        return {}
    config = parse_mapping(text, str(source))
    if not isinstance(config.get("model") or {}, dict):
        raise EncoreError(f"{source}: is not the configuration of a run: it must have a section model")
    return config


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EncoreError(f"{path}: the configuration cannot be read: {error}") from error


def _construct(spec: Any, within: str, source: Path) -> Any:
    if not isinstance(spec, dict) or not isinstance(spec.get("class_path"), str):
        raise EncoreError(f"{source}: {str(spec)[:80]!r} is no description of a model; give the run's configuration")
    module, _, name = spec["class_path"].rpartition(".")
    factory = getattr(import_module(within), name, None) if module == within else None
    if not callable(factory) or getattr(factory, "__module__", "") != within:
        raise EncoreError(f"{source}: {spec['class_path']!r} is not in {within}; it is a checkpoint of another model")
    arguments = {
        key: _construct(value, within, source) if isinstance(value, dict) and "class_path" in value else value
        for key, value in (spec.get("init_args") or {}).items()
    }
    try:
        return factory(**arguments)
    except TypeError as error:
        raise EncoreError(f"{source}: {spec['class_path']} cannot be built: {error}") from error

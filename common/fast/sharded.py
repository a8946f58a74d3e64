"""Fully sharded data parallelism (FSDP2) of any LightningModule: what `--trainer.strategy fsdp` is."""

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

STAGES = ("validation", "test", "predict")
SEE_WHOLE_WEIGHTS = (  # all other hooks but on_train_end, the optimizer's among them, see the shards
    "training_step",
    *(f"{stage}_step" for stage in STAGES),
    *(f"on_{stage}_{when}" for stage in STAGES for when in ("start", "epoch_start", "epoch_end", "end")),
)


def units(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of which one at a time has whole weights: the outermost elements of module lists, single operations
    excepted."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and any(child.children()) and any(True for _ in child.parameters()):
            yield child
        else:
            yield from units(child)


def as_on_first(tensors: list[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if tensors:
        world = dist.group.WORLD
        assert world is not None
        dist._broadcast_coalesced(world, [t.detach() for t in tensors], 2**28, 0)


class Shards:
    """This process's shards of a module's parameters."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.shards = {name: p for name, p in module.named_parameters() if isinstance(p, DTensor)}
        self.versions: dict[str, int] = {}

    @torch.no_grad()
    def update(self) -> None:
        """Take over what a step has changed in whole weights, as where it normalises prototypes; FSDP2 drops that."""
        for name, weight in self.module.named_parameters():
            if name in self.shards and not isinstance(weight, DTensor) and self.versions.get(name) != weight._version:
                self.shards[name].copy_(sharded_like(weight.detach(), self.shards[name]))
                self.versions[name] = weight._version


def shard(module: L.LightningModule, mesh: DeviceMesh, device: torch.device) -> Shards:
    """Shard each of `units`, then what remains in the module, all but scalars, which have no dimension to shard. Every
    process starts from the weights of the first. Returns the shards of the remainder."""
    scalars = {p for p in module.parameters() if p.dim() == 0}
    shards: dict[nn.Module, Shards] = {}
    for unit in (*units(module), module):
        unit.to(device)
        as_on_first([p for p in (*unit.parameters(), *unit.buffers()) if not isinstance(p, DTensor)])
        unit.register_forward_hook(lambda unit, *_: shards[unit].update())  # before FSDP2's, which frees the weights
        fully_shard(unit, mesh=mesh, ignored_params=scalars)
        shards[unit] = Shards(unit)
    for name in SEE_WHOLE_WEIGHTS:
        if is_overridden(name, module, L.LightningModule):
            register_fsdp_forward_method(module, name)
    if is_overridden("on_train_end", module, L.LightningModule):  # where encoders are exported
        vars(module)["on_train_end"] = seeing_all_weights(module, module.on_train_end)
    return shards[module]


def seeing_all_weights(module: nn.Module, hook: Callable[[], None]) -> Callable[[], None]:
    """The hook, called by all processes, with every parameter a plain whole tensor meanwhile."""

    @wraps(hook)
    def seeing() -> None:
        shards: list[tuple[nn.Module, str, Any]] = [
            (part, name, p)
            for part in module.modules()
            for name, p in part._parameters.items()
            if isinstance(p, DTensor)
        ]
        whole = {p: nn.Parameter(p.full_tensor(), p.requires_grad) for *_, p in shards}
        try:
            for part, name, p in shards:
                part._parameters[name] = whole[p]
            hook()
        finally:
            for part, name, p in shards:
                part._parameters[name] = p

    return seeing


def sharded_like(value: Tensor, parameter: DTensor) -> DTensor:
    """A tensor that every process has, of the parameter's shape, sharded as the parameter is."""
    value = value.to(parameter.device)
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole(state: dict[str, Any]) -> dict[str, Any]:
    """`state` on the first process, with every DTensor as one CPU tensor, and {} elsewhere. All processes call it."""
    first = dist.get_rank() == 0

    def gathered(tensor: DTensor) -> Tensor | None:
        full = tensor.full_tensor()
        return full.cpu() if first else None

    state = tree_map_only(DTensor, gathered, state)
    return state if first else {}


class FullySharded(ModelParallelStrategy):
    """Parameters, gradients and optimizer state are spread over all processes, on GPUs (nccl) or CPUs (gloo).

    The losses are those of DDP: gradients are averaged, and the buffers of the first process hold for all. A checkpoint
    is the one file that a single process writes; either continues the other's. What reads the weights of a layer
    outside of its forward gets an error, except in `on_train_end`, where all weights are whole on every process.
    """

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.scalars: list[nn.Parameter] = []
        self.buffers: list[Tensor] = []
        self.shards: Shards | None = None

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return False  # weights are loaded whole, then sharded

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        assert self.lightning_module is not None
        assert self.accelerator is not None
        self.accelerator.setup(trainer)
        if not isinstance(self.lightning_module, FSDPModule):
            module = self.precision_plugin.convert_module(self.lightning_module)
            self.model = self._layer_sync.apply(module) if self._layer_sync else module
            self.shards = shard(self.lightning_module, self.device_mesh["data_parallel"], self.root_device)
        self.scalars = [p for p in self.lightning_module.parameters() if p.dim() == 0]
        kept = self.lightning_module.state_dict(keep_vars=True).values()
        self.buffers = [t for t in kept if isinstance(t, Tensor) and not isinstance(t, nn.Parameter)]
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self.shards is not None
        as_on_first(self.buffers)
        output = super().training_step(*args, **kwargs)
        self.shards.update()
        return output

    def post_backward(self, closure_loss: Tensor) -> None:
        """Average the gradients of scalars, as FSDP2 has those of all others."""
        gradients = [p.grad for p in self.scalars if p.grad is not None]
        if gradients:
            mean = torch.stack(gradients)
            dist.all_reduce(mean, op=dist.ReduceOp.AVG)
            torch._foreach_copy_(gradients, list(mean.unbind()))

    def on_validation_start(self) -> None:
        as_on_first(self.buffers)

    def on_validation_end(self) -> None:
        assert isinstance(self.lightning_module, FSDPModule)
        self.lightning_module.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return whole(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole(optimizer.state_dict())

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"]):
            numbers = [number for group in state["param_groups"] for number in group["params"]]
            parameters = dict(zip(numbers, (p for group in optimizer.param_groups for p in group["params"])))

            def sharded(number: int, value: Any, parameters: dict[int, Any] = parameters) -> Any:
                p = parameters[number]
                alike = isinstance(p, DTensor) and isinstance(value, Tensor) and value.shape == p.shape
                return sharded_like(value, p) if alike else value

            entries = {n: {key: sharded(n, v) for key, v in entry.items()} for n, entry in state["state"].items()}
            optimizer.load_state_dict({**state, "state": entries})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

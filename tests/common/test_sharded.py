"""What is sharded by itself; that training is the same is shown in tests/benchmarks/test_across_processes.py."""

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing

from common.fast.sharded import units
from common.layers import Transformer, TransformerLayer


def test_every_layer_of_a_stack_is_gathered_by_itself() -> None:
    tower = Transformer(2, 8, 2, 16)
    model = nn.ModuleDict({"tower": tower, "heads": nn.ModuleList([nn.Linear(8, 2)]), "norm": nn.LayerNorm(8)})
    assert list(units(model)) == list(tower.layers)
    apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, TransformerLayer))
    wrapped = list(units(model))
    assert wrapped == list(tower.layers), "with the wrapper that recomputes it"
    assert [type(unit).__name__ for unit in wrapped] == ["CheckpointWrapper"] * 2

"""Weights from and to the public hub's directory format (safetensors + config.json)."""

from common.interop.weights import (
    check_and_load,
    load_config,
    load_weights,
    read_checkpoint,
    save_weights,
)

__all__ = ["check_and_load", "load_config", "load_weights", "read_checkpoint", "save_weights"]

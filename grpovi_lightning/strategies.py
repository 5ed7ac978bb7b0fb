"""The strategy `fsdp2`: Lightning's `ModelParallelStrategy`, whose checkpoints are those of a single process."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.optim import Optimizer

from grpovi_lightning.models.sharding import move_unsharded, spread_optimizer_state, spread_state, whole_state

FSDP2 = "fsdp2"


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded training (FSDP2): each process keeps a part of the weights, gradients and optimiser states.

    What is sharded, the module says: see `models.sharding`. All processes share the batch; there is no tensor
    parallelism. A checkpoint is one file with whole tensors, the same that any other strategy writes and reads: a run
    goes on with another number of processes, or without sharding. The first process gathers it in main memory.
    """

    def __init__(
        self,
        data_parallel_size: Literal["auto"] | int = "auto",
        tensor_parallel_size: Literal["auto"] | int = "auto",
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = timedelta(minutes=30),
    ) -> None:
        """Take the arguments of `ModelParallelStrategy`; `trainer_arguments` checks them."""
        super().__init__(
            data_parallel_size, tensor_parallel_size, save_distributed_checkpoint, process_group_backend, timeout
        )

    def setup_environment(self) -> None:
        """Let all processes share the data, which Lightning would have one node's do in tensor parallelism."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()
        # One dimension of one process would only be in the way.
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self.device_mesh["data_parallel"]

    def model_to_device(self) -> None:
        assert self.model is not None
        move_unsharded(self.model, self.root_device)

    # Checkpoints.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the state that changes, gathered; see `FrozenLeftOut`."""
        assert self.lightning_module is not None
        left_out = getattr(self.lightning_module, "left_out", set)()
        state = self.lightning_module.state_dict()
        return whole_state({name: value for name, value in state.items() if name not in left_out})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return whole_state(plain.state_dict())

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        # Not read into memory: each process reads its part of it.
        path = self.broadcast(checkpoint_path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        module.load_state_dict(spread_state(checkpoint["state_dict"], module), strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(spread_optimizer_state(state, optimizer))


if FSDP2 not in StrategyRegistry:
    StrategyRegistry.register(FSDP2, FSDP2Strategy, description="weights spread over all processes")

"""The strategy `fsdp2`: Lightning's `ModelParallelStrategy`, whose checkpoints go on under any other strategy, too."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch.optim import Optimizer

from grpovi_lightning.distributed import is_first_rank
from grpovi_lightning.models.checkpoint_folder import (
    SPREAD,
    UNFINISHED,
    in_memory,
    is_real_folder,
    read_checkpoint,
    remove_checkpoint,
    write_folder,
)
from grpovi_lightning.models.sharded_state import own_parts, spread_optimizer_state, spread_state, whole_state
from grpovi_lightning.models.sharding import move_unsharded

FSDP2 = "fsdp2"


class FSDP2Strategy(ModelParallelStrategy):
    """Fully sharded training (FSDP2): each process keeps a part of the weights, gradients and optimiser states.

    What is sharded, the module says: see `models.sharding`. All processes share the batch; there is no tensor
    parallelism. A checkpoint is one file with whole tensors, the same that any other strategy writes and reads, which
    the first process gathers in main memory. With `save_distributed_checkpoint` it is a folder into which each process
    writes its parts. From both a run goes on with another number of processes, or without sharding.
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
        """Return the state that changes, gathered if it goes into one file; see `FrozenLeftOut`."""
        assert self.lightning_module is not None
        left_out = getattr(self.lightning_module, "left_out", set)()
        state = self.lightning_module.state_dict()
        return self._to_save({name: value for name, value in state.items() if name not in left_out})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        plain = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return self._to_save(plain.state_dict())

    def _to_save(self, state: dict[str, Any]) -> dict[str, Any]:
        return state if self._save_distributed_checkpoint else whole_state(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        if not self._save_distributed_checkpoint:
            if is_first_rank():
                FilesAndFolders().save_checkpoint(checkpoint, filepath, storage_options)
            return
        rest, parts = own_parts({key: checkpoint[key] for key in SPREAD if key in checkpoint})
        write_folder(Path(self.broadcast(filepath)), checkpoint | rest, parts)

    def remove_checkpoint(self, filepath: str | Path) -> None:
        if is_first_rank():
            remove_checkpoint(Path(filepath))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        # Not read into memory: each process reads its part of it.
        return read_checkpoint(Path(self.broadcast(checkpoint_path)))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        module.load_state_dict(spread_state(checkpoint["state_dict"], module), strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(spread_optimizer_state(state, optimizer))


class FilesAndFolders(TorchCheckpointIO):
    """How strategies that do not shard treat checkpoints: they read and replace those of `FSDP2Strategy`, too."""

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> Any:
        """Read all of a checkpoint; of a folder, nothing but plain values is unpickled."""
        if Path(path).is_dir():
            return in_memory(read_checkpoint(Path(path)))
        return super().load_checkpoint(path, *arguments, **options)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write one file, also where a folder is: moved there it would land in the folder."""
        path = Path(path)
        draft = path.with_name(UNFINISHED) if is_real_folder(path) else path
        super().save_checkpoint(checkpoint, draft, storage_options)
        if draft != path:
            remove_checkpoint(path)
            draft.replace(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        remove_checkpoint(Path(path))


def read_folders(trainer: L.Trainer) -> None:
    """Let a trainer go on from folders, too, whatever its strategy, unless it has its own way to read checkpoints."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = FilesAndFolders()


if FSDP2 not in StrategyRegistry:
    StrategyRegistry.register(FSDP2, FSDP2Strategy, description="weights spread over all processes")

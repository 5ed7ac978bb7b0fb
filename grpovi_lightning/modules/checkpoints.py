"""What goes into a checkpoint: state that changes. Frozen weights are loaded from where they came."""

from abc import abstractmethod
from typing import Any

import lightning as L
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX  # torch documents `get_extra_state`, but not its key


class FrozenLeftOut(L.LightningModule):
    """A module whose checkpoints leave out frozen state. The extra state of its parts, what they learned, is saved."""

    @abstractmethod
    def frozen_state(self) -> set[str]:
        """Return the names of the state that never changes; those of extra state among them are passed over."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = self._left_out()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill frozen state in again, so that loading can stay strict about all the rest."""
        frozen = self._left_out()
        checkpoint["state_dict"] |= {k: v for k, v in self.state_dict().items() if k in frozen}

    def _left_out(self) -> set[str]:
        return {name for name in self.frozen_state() if not name.endswith(_EXTRA_STATE_KEY_SUFFIX)}

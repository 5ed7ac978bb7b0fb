"""What goes into a checkpoint: all that changes, and nothing that is loaded from where it came."""

from abc import abstractmethod
from typing import Any

import lightning as L


class FrozenLeftOut(L.LightningModule):
    """A module whose checkpoints leave out frozen state."""

    @abstractmethod
    def frozen_state(self) -> set[str]:
        """Names of the state that never changes."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves it out."""
        frozen = self.frozen_state()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fills it in again, so that loading can stay strict about all the rest."""
        frozen = self.frozen_state()
        checkpoint["state_dict"] |= {k: v for k, v in self.state_dict().items() if k in frozen}

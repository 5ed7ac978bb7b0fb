"""What goes into a checkpoint: state that changes. Frozen weights are loaded from where they came."""

from typing import Any

import lightning as L
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX  # torch documents `get_extra_state`, but not its key


class FrozenLeftOut(L.LightningModule):
    """A module whose checkpoints leave out frozen state. The extra state of its parts, what they learned, is saved."""

    def frozen_state(self) -> set[str]:
        """Return the names of the state that never changes; those of extra state among them are passed over.

        These are the parameters that are not trained, tied ones under all their names, and the buffers of parts in
        which nothing is trained.
        """
        trained = {name: p.requires_grad for name, p in self.named_parameters(remove_duplicate=False)}
        frozen = {name for name, is_trained in trained.items() if not is_trained}
        for name, _ in self.named_buffers(remove_duplicate=False):
            part, within = name, []
            while "." in part and not within:  # up to the nearest part that has parameters
                part = part.rpartition(".")[0]
                within = [is_trained for other, is_trained in trained.items() if other.startswith(f"{part}.")]
            if within and not any(within):
                frozen.add(name)
        return frozen | self._scales()

    def _scales(self) -> set[str]:
        """Return the names of what weights of whole numbers, as bitsandbytes keeps them, have beside them.

        It is written with a state, but is no parameter nor buffer, and bitsandbytes does not take it from a state.
        """
        weights = dict(self.named_parameters(remove_duplicate=False))
        own = weights.keys() | {name for name, _ in self.named_buffers(remove_duplicate=False)}
        rounded = tuple(f"{name.rpartition('.')[0]}." for name, p in weights.items() if not p.is_floating_point())
        return (
            {name for name in self.state_dict() if name not in own and name.startswith(rounded)} if rounded else set()
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = self.left_out()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Fill in the frozen state that the checkpoint lacks, so that loading can stay strict about all the rest."""
        frozen = self.left_out() - self._scales()
        present = {k: v for k, v in self.state_dict().items() if k in frozen}
        checkpoint["state_dict"] = present | checkpoint["state_dict"]

    def left_out(self) -> set[str]:
        """Return the names of the state that no checkpoint holds."""
        return {name for name in self.frozen_state() if not name.endswith(_EXTRA_STATE_KEY_SUFFIX)}

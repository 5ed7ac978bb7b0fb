"""The score of reward models that were published in another form than a sequence classifier with one label."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.files import loading


@dataclass(frozen=True)
class PublishedHead:
    """Where a published reward model keeps its score, if it is no sequence classifier with one label.

    Attributes:
        head: name of a linear layer in the checkpoint, such as `v_head`, that reads the last token's state; its weight
            is [labels, D], and it may have a bias. None: the classifier's own.
        label: the one of several labels whose logit is the score, by its number or by its name in the `config.json`.
    """

    head: str | None = None
    label: int | str | None = None

    def row(self, count: int, names: dict[str, int], where: str) -> int:
        """Return which of `count` labels to score by.

        Raises:
            UserError: it is not known which, or there is no such label.
        """
        listed = ", ".join(names) or f"0 to {count - 1}"
        if self.label is None:
            if count == 1:
                return 0
            raise UserError(
                f"{where}: got {count} labels, expected 1; use a reward model's checkpoint, or name one by "
                f"RewardModel's `label`: {listed}"
            )
        if count == 1:
            raise UserError(f"{where}: got label {self.label!r} for a model with one label; leave it out")
        found = names.get(self.label, -1) if isinstance(self.label, str) else self.label
        if not 0 <= found < count:
            raise UserError(f"{where}: got label {self.label!r}, expected one of {listed}")
        return found

    def tensors(self, path: str) -> tuple[Tensor, Tensor | None, int]:
        """Return weight [labels, D], bias [labels] or None, and the row of the label, for a named `head`.

        Raises:
            UserError: the checkpoint has no such layer, or it is not known which of its rows is the score.
        """
        files, where = checkpoint_tensors(path), f"reward model {path}"
        if f"{self.head}.weight" not in files:
            layers = sorted({name.rpartition(".")[0] for name in files if "head" in name or "score" in name})
            known = f"; layers that may be it: {', '.join(layers[:5])}" if layers else ""
            raise UserError(f"{where}: got head {self.head}, but it has no {self.head}.weight{known}")
        weight, bias = (_read(files, f"{self.head}.{part}") for part in ("weight", "bias"))
        if weight is None or weight.ndim != 2:
            raise UserError(f"{where}: {self.head}.weight is no matrix, expected the weights of a linear layer")
        return weight, bias, self.row(len(weight), {}, f"{where}, head {self.head}")


def checkpoint_tensors(path: str) -> dict[str, Path]:
    """Return the names of the tensors of a checkpoint, a folder or a hub name, and the files that they are in."""
    with loading(f"reward model {path}"):
        folder = Path(path) if Path(path).is_dir() else Path(snapshot_download(path, allow_patterns="*.safetensors"))
        found: dict[str, Path] = {}
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                found |= dict.fromkeys(opened.keys(), file)
    return found


def _read(files: dict[str, Path], name: str) -> Tensor | None:
    if name not in files:
        return None
    with safe_open(files[name], framework="pt") as opened:
        return opened.get_tensor(name)

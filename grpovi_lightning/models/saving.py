"""Writing a trained model as a Hugging Face checkpoint folder."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning.errors import TrainingError


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write model and tokenizer.

    Raises:
        TrainingError: a weight is not finite; nothing is written.
    """
    for name, weights in model.named_parameters():
        if not bool(weights.isfinite().all()):
            raise TrainingError(
                f"{name}: a trained weight is not finite, so no model was written; lower the learning rate, or go on "
                "from an earlier checkpoint"
            )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

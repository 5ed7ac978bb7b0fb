"""What a model can read: sequences up to a length, of tokens that have an embedding."""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Self

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.encoding import end_tokens, frame


class InputLimits:
    """The limits of a model's input, to be held before an index error deep inside the model.

    Attributes:
        positions: the longest sequence, in tokens; None where the model has no limit.
        n_embeddings: tokens from this number on have no embedding; None where it is not known.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pad_token_id: int | None) -> None:
        """Compare a model with its tokenizer; padding is made of `pad_token_id`, or of a number that is sure to fit.

        Raises:
            UserError: the tokenizer makes tokens that the model has no embedding for.
        """
        self.what = f"model {model.name_or_path or type(model).__name__}"
        self.positions = position_limit(model)
        embeddings = model.get_input_embeddings()
        self.n_embeddings: int | None = getattr(getattr(embeddings, "base_layer", embeddings), "num_embeddings", None)
        self._tokenizer = tokenizer
        # A special token that nothing writes by itself, such as one for images, occurs only in texts that name it.
        written = {*end_tokens(tokenizer), *(token for part in frame(tokenizer) for token in part), pad_token_id}
        added = tokenizer.added_tokens_decoder
        for token in sorted(tokenizer.get_vocab().values()):
            if token in written or token not in added or not added[token].special:
                self._check_token(token, self.what)

    def check(self, rows: Sequence[Sequence[int]], where: Callable[[int], str], completion: int = 0) -> None:
        """Raise `UserError` for the first of these token lists that the model cannot read; `where` says where it is.

        With `completion`, each is a prompt to which so many tokens can be added.
        """
        for i, row in enumerate(rows):
            if self.positions is not None and len(row) + completion > self.positions:
                more, lower = "", ""
                if completion:
                    more, lower = f" and {completion} for the completion", " or lower max_completion_length"
                raise UserError(
                    f"{where(i)}: got {len(row)} tokens{more}, but {self.what} has {self.positions} positions; shorten "
                    f"or remove the row{lower}"
                )
            if row:
                self._check_token(max(row), where(i))

    def of_any_length(self) -> Self:
        """Return limits that let sequences of any length pass, for rows that are cut afterwards."""
        free = copy(self)
        free.positions = None
        return free

    def _check_token(self, token: int, where: str) -> None:
        if self.n_embeddings is not None and token >= self.n_embeddings:
            raise UserError(
                f"{where}: token {self._tokenizer.convert_ids_to_tokens(token)!r} has the number {token}, but "
                f"{self.what} has embeddings for 0 to {self.n_embeddings - 1}; resize them (`resize_token_embeddings`) "
                "and save the model again, or take the token out of the tokenizer"
            )


def position_limit(model: PreTrainedModel) -> int | None:
    """Return how many tokens a sequence may have; None where the model has no limit."""
    config = model.config.get_text_config(decoder=True)
    limits: list[int | None] = [getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    for parameters in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        # Beyond the length that these models were trained with first, their frequencies depend on the longest sequence
        # of a batch, so a completion would depend on its neighbours.
        if parameters.get("rope_type") == "longrope":
            limits.append(parameters["original_max_position_embeddings"])
    for name, table in model.named_modules():
        # RoBERTa and its kin count positions from behind the padding token's number on.
        if name.endswith("position_embeddings") and isinstance(table, nn.Embedding) and table.padding_idx is not None:
            limits.append(table.num_embeddings - table.padding_idx - 1)
    return min((limit for limit in limits if limit is not None and limit > 0), default=None)

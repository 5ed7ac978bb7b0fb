"""The one rule for sequences that are longer than a reward model reads."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.encoding import frame
from grpovi_lightning.models.limits import InputLimits

_TURN_END = 2
"""Tokens that stand behind a completion at most: an end token and, in some chat templates, a line break."""


class PromptCut:
    """Cuts the left part of a prompt off until the model can read it with its completion, which stays whole.

    Special tokens that the tokenizer puts before every text stay, too.
    """

    def __init__(self, limits: InputLimits, tokenizer: PreTrainedTokenizerBase) -> None:
        """Take the length from the model's limits.

        Raises:
            UserError: the model reads sequences of any length.
        """
        if limits.positions is None:
            raise UserError(f"truncate: {limits.what} reads sequences of any length; leave it out")
        self.longest, self.what = limits.positions, limits.what
        self.tokenizer, (self.opening, closing) = tokenizer, frame(tokenizer)
        self.room = self.longest - len(self.opening) - max(len(closing), _TURN_END)
        """Tokens of the longest completion that stays whole."""

    def __call__(
        self, rows: Sequence[list[int]], completions: Sequence[str], where: Callable[[int], str]
    ) -> tuple[list[list[int]], int]:
        """Cut token lists, each a prompt with its completion.

        Args:
            rows: the token lists.
            completions: the text of each one's completion.
            where: says where a row is, for messages.

        Returns:
            the token lists, none longer than the model reads, and how many were cut.

        Raises:
            UserError: a completion alone is longer than the model reads.
        """
        long = {i for i, row in enumerate(rows) if len(row) > self.longest}
        for i in long:
            tokens: list[int] = self.tokenizer(completions[i], add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
            if len(tokens) > self.room:
                raise UserError(
                    f"{where(i)}: got a completion of {len(tokens)} tokens, but {self.what} has {self.longest} "
                    f"positions, {self.longest - self.room} of them for special tokens, and only prompts are cut; "
                    "lower max_completion_length, or remove the row"
                )
        return [self._cut(row) if i in long else row for i, row in enumerate(rows)], len(long)

    def _cut(self, row: list[int]) -> list[int]:
        opening = self.opening if row[: len(self.opening)] == self.opening else []
        return [*opening, *row[len(row) - self.longest + len(opening) :]]

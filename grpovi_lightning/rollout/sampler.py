"""The completions of a rollout while they are drawn, whichever decoder computes the logits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grpovi_lightning.errors import TrainingError
from grpovi_lightning.rollout.sampling import SamplingConfig, TokenChoice, inverse_cdf, most_probable


class Sampler:
    """The tokens of B completions, drawn one after the other as `RolloutEngine` says.

    It does not matter which rows are drawn together, nor what is drawn for a row after its end. A decoder that draws by
    itself takes the settings and seeds from here, and hands over whole completions.

    Attributes:
        sampling: the settings.
        end_token_ids: tokens that end a completion.
        length: tokens that a completion may have.
        ended: [B] bool, those with an end token.
        on_end: called with the places of completions among the B soon after they got their end token, or None.
    """

    on_end: Callable[[list[int]], None] | None = None

    def __init__(
        self,
        sampling: SamplingConfig,
        uniforms: Tensor,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        ends: list[int],
        choose: TokenChoice = inverse_cdf,
    ) -> None:
        """Prepare B completions of which nothing is drawn yet.

        Args:
            sampling: the settings.
            uniforms: [B, length] float64 in [0, 1).
            prompt_ids: [P, S]; B is a multiple of P, and the rows of one prompt are adjacent.
            prompt_mask: [P, S] bool.
            ends: tokens that end a completion.
            choose: how a token is chosen by probabilities and a uniform number.
        """
        rows, self.length = uniforms.shape
        device = prompt_ids.device
        self.sampling, self.end_token_ids, self._choose = sampling, ends, choose
        self._processors = sampling.processors()
        self._filters = len(self._processors) > int(sampling.temperature != 1.0)  # more than the temperature
        self._uniforms = uniforms.to(device)
        self._ends = torch.tensor(ends, device=device)
        self._ids = torch.zeros((rows, self.length), dtype=torch.long, device=device)
        self._logprobs = torch.zeros((rows, self.length), device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self._told = self.ended.clone()
        # Padding would count as a repeated token, so the first token of the prompt stands there.
        first = prompt_ids.gather(1, prompt_mask.long().argmax(dim=1, keepdim=True))
        self._prompts = torch.where(prompt_mask, prompt_ids, first).repeat_interleave(rows // len(prompt_ids), dim=0)

    def draw(self, logits: Tensor, rows: Tensor, t: int) -> Tensor:
        """Draw the tokens at place `t` of some completions.

        Args:
            logits: [b, V].
            rows: [b] places of these completions among the B.
            t: number of tokens that they have already.

        Returns:
            the tokens, [b] int64.
        """
        logits = logits.float()
        if self._processors:
            context = torch.cat([self._prompts[rows], self._ids[rows, :t]], dim=1)
            processed = self._processors(context, logits)  # type: ignore[arg-type]
        else:
            processed = logits
        # float64, so that the sum over a large vocabulary does not shift the token that a number falls on.
        probabilities = processed.double().softmax(dim=-1)
        tokens = self._choose(probabilities, self._uniforms[rows, t])
        # The log-probability that is kept is that of the policy itself: the loss knows the temperature, but no filters.
        if self._filters:
            chosen = (logits / self.sampling.temperature).double().log_softmax(dim=-1)
            chosen = chosen.gather(1, tokens[:, None]).squeeze(1)
        else:
            chosen = probabilities.gather(1, tokens[:, None]).squeeze(1).log()
        self._ids[rows, t], self._logprobs[rows, t] = tokens, chosen.float()
        self.ended[rows] |= (tokens[:, None] == self._ends).any(dim=1)
        if self.on_end is not None and (t + 1) % sync_interval(tokens) == 0:
            now = (self.ended & ~self._told).nonzero().flatten().tolist()
            self._told |= self.ended
            if now:
                self.on_end(now)
        return tokens

    @property
    def is_greedy(self) -> bool:
        """Whether each token is the most probable one."""
        return self._choose is most_probable

    def seeds(self) -> list[int]:
        """Return B numbers below 2^53, each made from the first uniform number of a completion."""
        return (self._uniforms[:, 0] * 2**53).long().tolist()

    def keep(self, drawn: Sequence[tuple[Sequence[int], Sequence[float]]]) -> None:
        """Take whole completions in place of `draw`.

        Args:
            drawn: of each of the B completions its tokens, up to an end token or `length` of them, and their
                log-probabilities as `completions` returns them.

        Raises:
            TrainingError: one stops before that.
        """
        ends = set(self.end_token_ids)
        for row, (tokens, logprobs) in enumerate(drawn):
            ended = not ends.isdisjoint(tokens)
            if not ended and len(tokens) != self.length:
                raise TrainingError(
                    f"completion {row}: the decoder returned {len(tokens)} tokens without an end token, expected "
                    f"{self.length}; look at the log of its engine"
                )
            self._ids[row, : len(tokens)] = torch.tensor(tokens, device=self._ids.device)
            self._logprobs[row, : len(tokens)] = torch.tensor(logprobs, device=self._ids.device)
            self.ended[row] = ended

    def completions(self, pad_token_id: int, rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """Return what was drawn, up to and including the first end token of each completion at these places.

        Returns:
            ids, mask, and log-probabilities (nats) under the policy at the sampling temperature without filters, each
            [B, T], where T is the length of the longest completion; padded, and 0 where masked.
        """
        is_end = torch.isin(self._ids[rows], self._ends)
        # The first end token belongs to the completion, so the count of those before it decides.
        mask = is_end.long().cumsum(dim=1) - is_end.long() == 0
        mask = mask[:, : int(mask.sum(dim=1).max())]
        length = mask.shape[1]
        ids = self._ids[rows, :length].masked_fill(~mask, pad_token_id)
        return ids, mask, self._logprobs[rows, :length].masked_fill(~mask, 0.0)


def sync_interval(tensor: Tensor) -> int:
    """Return after how many tokens to ask again which completions are finished."""
    # The answer makes the CPU wait for the GPU, so there it is asked seldom.
    return 1 if tensor.device.type == "cpu" else 16

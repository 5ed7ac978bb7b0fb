"""A causal language model together with what generation needs to know: tokenizer, end tokens, padding."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning.conversations import Answer, Prompt
from grpovi_lightning.errors import UserError
from grpovi_lightning.models.adapter_files import save_adapter
from grpovi_lightning.models.adapters import has_adapters
from grpovi_lightning.models.chat import demonstration, has_turns, plain_pair, prompt_rows, turn_end
from grpovi_lightning.models.encoding import (
    completion_tokens,
    configured_ends,
    end_tokens,
    name_end_token,
)
from grpovi_lightning.models.limits import InputLimits
from grpovi_lightning.models.merging import merged
from grpovi_lightning.models.passes import CompiledPasses, ForwardPasses, find_capabilities
from grpovi_lightning.models.saving import save_checkpoint
from grpovi_lightning.models.sharding import WholeWeights
from grpovi_lightning.ops import TokenStatistics, chunked_statistics, pad_left
from grpovi_lightning.run_record.layout import ADAPTER_FOLDER
from grpovi_lightning.structures import Rollout


class LanguageModel(nn.Module):
    """A `transformers` causal LM and its tokenizer.

    Attributes:
        model: the `transformers` model.
        tokenizer: its tokenizer.
        end_token_ids: every token that ends a completion: those of the generation config, the tokenizer's, and what the
            chat template writes behind an answer.
        pad_token_id: fills padding; the first end token where the tokenizer has no padding token.
        limits: which token lists the model can read.
        weights: where its weights are.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        name_end_token(tokenizer, model)
        self.end_token_ids = _end_tokens(model, tokenizer)
        pad = tokenizer.pad_token_id
        self.pad_token_id: int = self.end_token_ids[0] if pad is None else int(pad)  # type: ignore[arg-type]
        self.limits = InputLimits(model, tokenizer, self.pad_token_id)
        self.weights = WholeWeights(model)
        self._passes: ForwardPasses | None = None
        self._compiled: CompiledPasses | None = None

    @property
    def passes(self) -> ForwardPasses:
        """The forward passes of this model, in the ways that it can take."""
        # What it can take is tried out at the first use: by then the model is on its device, in its final dtype.
        if self._passes is None:
            with self.weights.gathered():
                found = self(find_capabilities, self.model)
            self._passes = ForwardPasses(self.model, found)
        return self._passes

    def forward(self, compute: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Compute something with the model. Sharded weights are at hand only inside of this, so go through it."""
        return compute(*arguments, **named)

    @property
    def runs_prompts_once(self) -> bool:
        """Whether `completion_statistics` runs each prompt once for its whole group."""
        return self.passes.runs_prompts_once and self.weights.shares_prefix

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of texts, without special tokens added."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # type: ignore[return-value]

    def encode_prompts(self, prompts: Sequence[Prompt], completion: int = 0) -> tuple[Tensor, Tensor]:
        """Return the `prompt_tokens` of P prompts, left-padded: ids [P, S], and mask [P, S] bool.

        Raises:
            UserError: the model cannot read one of them with so many completion tokens behind it.
        """
        rows = self.prompt_tokens(prompts)
        self.limits.check(rows, lambda i: f"prompt {str(prompts[i])[:60]!r}", completion)
        ids, mask = pad_left(rows, self.pad_token_id)
        return ids.to(self.device), mask.to(self.device)

    def prompt_tokens(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return the tokens of prompts.

        A beginning-of-sequence token is put in front of text where the tokenizer does that by itself. Conversations
        have the special tokens that the chat template writes, up to where an answer begins.

        Raises:
            UserError: a prompt is empty, or the chat template fails.
        """
        rows = prompt_rows(self.tokenizer, prompts, self.end_token_ids)
        for prompt, row in zip(prompts, rows, strict=True):
            if not row:
                raise UserError(f"prompt {str(prompt)!r} has no tokens; expected at least one; remove the row")
        return rows

    def demonstrations(
        self, prompts: Sequence[Prompt], completions: Sequence[Answer]
    ) -> list[tuple[list[int], list[bool]]]:
        """Return the tokens of prompts with completions that ended, and which of them the completion says.

        Of messages, these are the tokens of each assistant's turn with the one that ends it.
        """
        written = end_tokens(self.tokenizer)
        if has_turns(self.tokenizer, prompts):
            pairs = zip(prompts, completions, strict=True)
            return [demonstration(self.tokenizer, prompt, answer, written) for prompt, answer in pairs]
        texts = [plain_pair(self.tokenizer, *pair) for pair in zip(prompts, completions, strict=True)]
        heads = self.prompt_tokens([prompt for prompt, _ in texts])
        tails = completion_tokens(self.tokenizer, [answer for _, answer in texts], written, self.end_token_ids)
        return [(h + t, [False] * len(h) + [True] * len(t)) for h, t in zip(heads, tails, strict=True)]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.weights.device

    @property
    def is_sharded(self) -> bool:
        """Whether weights are spread over processes, so that a forward pass gathers them."""
        return type(self.weights) is not WholeWeights

    def completion_statistics(
        self, rollout: Rollout, temperature: float, entropy_gradient: bool = False
    ) -> TokenStatistics:
        """Return log-probabilities and entropies of completions, in nats, with logits divided by the temperature.

        Each prompt is run once, with gradient, and its keys and values are expanded to the group. Where that is not
        possible (`runs_prompts_once`), prompt and completion are run as one sequence.

        Returns:
            two [B, T] float32 tensors, 0 at masked positions; the entropies carry gradient where asked.
        """
        return self(self._completion_statistics, self.passes, rollout, temperature, entropy_gradient)

    def _completion_statistics(
        self, passes: ForwardPasses, rollout: Rollout, temperature: float, entropy_gradient: bool
    ) -> TokenStatistics:
        if self._compiled is not None and self._compiled.take(rollout):
            states = self._compiled.states(passes, rollout)
        else:
            states = passes.shared_prefix_states(rollout) if self.runs_prompts_once else passes.plain_states(rollout)
        ids, mask = rollout.completion_ids, rollout.completion_mask
        return chunked_statistics(
            states, passes.parts.logits, ids, mask, temperature, entropy_gradient=entropy_gradient
        )

    def compile_passes(self) -> None:
        """Have `completion_statistics` run compiled code from now on; see `CompiledPasses`."""
        self._compiled = CompiledPasses()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer as a Hugging Face checkpoint folder.

        Adapters are merged into the weights there, and written as adapters into the folder `adapter` beside it. Where
        the weights are sharded, all processes call this together, and the first writes.
        """
        model = self.weights.plain_model()
        if model is None:
            return
        is_adapted = has_adapters(model)
        save_checkpoint(merged(model) if is_adapted else model, self.tokenizer, folder)
        if is_adapted:
            save_adapter(model, Path(folder).with_name(ADAPTER_FOLDER))


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    ends = list(dict.fromkeys([*configured_ends(model), *end_tokens(tokenizer), *turn_end(tokenizer)]))
    if not ends:
        raise UserError(
            "the model has no end token: neither its generation config nor its tokenizer names one; "
            "set eos_token in the checkpoint's tokenizer_config.json"
        )
    return ends

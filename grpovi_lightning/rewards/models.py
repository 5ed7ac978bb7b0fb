"""Rewards from a learned sequence classifier."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpovi_lightning.errors import TrainingError, UserError
from grpovi_lightning.models.sources import Precision, check_checkpoint, load_classifier
from grpovi_lightning.ops import pad_right
from grpovi_lightning.rewards.base import Reward
from grpovi_lightning.structures import Rollout

REWARD_STATISTICS = {"reward_mean": 0.0, "reward_std": 1.0}
"""Names in a reward model's `config.json`, and what counts where they are absent."""


class RewardModel(Reward):
    """A Hugging Face sequence classifier with one label, frozen.

    The score is (logit - mean) / std with the `reward_mean` and `reward_std` that the checkpoint's
    `config.json` names (0 and 1 where it does not): learned rewards have an arbitrary origin and scale.

    The model reads prompt and completion as one sequence. Where its vocabulary is the policy's, it gets
    the policy's tokens, the end token included; otherwise the text is tokenised anew, with the reward
    tokenizer's end token after a completion that ended.
    """

    def __init__(
        self, path: str, name: str = "reward_model", dtype: Precision = "float32", batch_size: int = 16
    ) -> None:
        """Names the checkpoint; `load` reads it.

        Args:
            path: local checkpoint folder, or a hub name.
            name: the name under which the score is logged.
            dtype: dtype of the weights.
            batch_size: sequences scored at once, sorted by length.
        """
        super().__init__()
        if batch_size < 1:
            raise UserError(f"reward model batch_size: got {batch_size}, expected at least 1")
        self.path, self.name, self.batch_size = path, name, batch_size
        self.dtype: Precision = dtype
        self.model: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None
        self.policy_tokenizer: PreTrainedTokenizerBase | None = None
        self.shares_tokens = False

    def weights(self) -> dict[str, float]:
        """One component of weight 1."""
        return {self.name: 1.0}

    def check(self) -> None:
        """Checks a local folder."""
        check_checkpoint(self.path, "reward model")

    def load(self, policy_tokenizer: PreTrainedTokenizerBase) -> None:
        """Loads the classifier once and compares its vocabulary with the policy's."""
        if self.model is None:
            self.model, self.tokenizer = load_classifier(self.path, self.dtype)
            self.model.requires_grad_(False).eval()
            self.policy_tokenizer = policy_tokenizer
            self.shares_tokens = self.tokenizer.get_vocab() == policy_tokenizer.get_vocab()

    @torch.no_grad()
    def components(self, rollout: Rollout) -> dict[str, Tensor]:
        """Scores of the B completions.

        Raises:
            TrainingError: a score is not finite. A classifier has no completions that it cannot score.
        """
        assert self.model is not None, "load() comes before scoring"
        rows = self._policy_tokens(rollout) if self.shares_tokens else self._own_tokens(rollout)
        scores = torch.empty(len(rows), device=self.model.device)
        by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(rows), self.batch_size):
            chosen = by_length[start : start + self.batch_size]
            scores[chosen] = classifier_scores(self.model, [rows[i] for i in chosen])
        mean, std = (getattr(self.model.config, name, default) for name, default in REWARD_STATISTICS.items())
        scores = (scores - mean) / std
        for i in (~scores.isfinite()).nonzero().flatten().tolist():
            prompt = rollout.prompts.texts[i // rollout.group_size]
            raise TrainingError(
                f"reward model {self.path}: score {scores[i]} for a completion of {prompt[:60]!r}, expected a finite "
                "number; look at the checkpoint, its `reward_std` and its dtype"
            )
        return {self.name: scores}

    def _policy_tokens(self, rollout: Rollout) -> list[list[int]]:
        prompts = [ids[kept].tolist() for ids, kept in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
        completions = zip(rollout.completion_ids, rollout.completion_mask, strict=True)
        return [prompts[i // rollout.group_size] + ids[kept].tolist() for i, (ids, kept) in enumerate(completions)]

    def _own_tokens(self, rollout: Rollout) -> list[list[int]]:
        assert self.tokenizer is not None
        encoded: list[list[int]] = self.tokenizer(self._texts(rollout))["input_ids"]  # type: ignore[assignment]
        end = end_tokens(self.tokenizer)
        pairs = zip(encoded, rollout.truncated.tolist(), strict=True)
        return [row if cut or row[-1:] == end else [*row, *end] for row, cut in pairs]

    def _texts(self, rollout: Rollout) -> list[str]:
        """Prompt and completion as one text.

        A completion decoded by itself has lost the space before its first word where the tokenizer puts none
        there, so what follows the prompt is read off the two decoded together.
        """
        assert self.policy_tokenizer is not None
        prompts = [ids[kept].tolist() for ids, kept in zip(rollout.prompt_ids, rollout.prompt_mask, strict=True)]
        heads = self.policy_tokenizer.batch_decode(prompts, skip_special_tokens=True)
        wholes = self.policy_tokenizer.batch_decode(self._policy_tokens(rollout), skip_special_tokens=True)
        texts = []
        for i, (whole, completion) in enumerate(zip(wholes, rollout.texts, strict=True)):
            prompt, head = (part[i // rollout.group_size] for part in (rollout.prompts.texts, heads))
            texts.append(prompt + (whole.removeprefix(head) if whole.startswith(head) else completion))
        return texts


def end_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What stands behind a completion that ended: the tokenizer's end token, where it has one."""
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]  # type: ignore[arg-type]


def classifier_scores(model: PreTrainedModel, rows: list[list[int]]) -> Tensor:
    """Logits of a one-label classifier for token lists, [B] float32. Padded at the end."""
    ids, mask = pad_right(rows, model.config.pad_token_id or 0)
    ids, mask = ids.to(model.device), mask.to(model.device)
    return model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits.squeeze(-1).float()

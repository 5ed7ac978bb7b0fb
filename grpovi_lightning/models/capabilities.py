"""What a model can do, tried out on a few tokens: a wrong number in silence would be worse than a slow path."""

import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.output_head import Split, Whole, split
from grpovi_lightning.ops import pad_left
from grpovi_lightning.structures import PromptBatch, Rollout

if TYPE_CHECKING:
    from grpovi_lightning.models.language_model import LanguageModel

_log = logging.getLogger(__name__)
_said: set[str] = set()
_GROUP_SIZE, _LENGTH = 2, 3


@dataclass
class Capabilities:
    """How a model may be run.

    Attributes:
        parts: its two halves, or the whole of it.
        takes_positions: whether its forward pass takes position ids.
        windows: of each layer of its cache, how many tokens it sees; None: all.
        shares_prefix: whether a cache of prompts can be expanded to their completions: every layer keeps the keys and
            values of all earlier tokens.
        decodes_by_groups: whether its attention can be computed group by group while decoding.
    """

    parts: Split | Whole
    takes_positions: bool
    windows: list[int | None]
    shares_prefix: bool = False
    decodes_by_groups: bool = False

    def positions(self, ids: Tensor) -> dict[str, Tensor]:
        """Position ids as an argument, for a model that takes them."""
        return {"position_ids": ids} if self.takes_positions else {}


def find_capabilities(model: "LanguageModel") -> Capabilities:
    """Tries the faster ways of running a model against the plain one; logs, once, which it cannot take and why."""
    causal_lm, training = model.model, model.model.training
    model.model.eval()  # so that nothing is random, and caches are not dropped
    try:
        # Both ways do the same operations, so next to nothing may differ.
        parts = split(causal_lm, lambda a, b: _error(a, b) < 1e-5)
        found = Capabilities(parts, "position_ids" in inspect.signature(causal_lm.forward).parameters, [])
        model._capabilities = found
        rollout = _few_tokens(causal_lm)
        with torch.no_grad():
            plain = _logits(model, model.plain_states(rollout))
            error = _error(plain, _alone(causal_lm, rollout))
        if not error < _tolerance(causal_lm):
            raise UserError(
                f"model {type(causal_lm).__name__}: got logits that differ by {error:.1e} of their spread from those "
                "of single prompts, expected a causal model that left padding does not change; choose another"
            )
        layers = _standard_layers(causal_lm)
        if layers is None:
            _say(causal_lm, "its cache does not keep the keys and values of all tokens")
            return found
        found.windows = layers
        found.shares_prefix = _agrees(model, plain, "the shared-prefix forward pass", lambda: _shared(model, rollout))
        if not getattr(causal_lm, "_supports_attention_backend", False):
            _say(causal_lm, "its attention does not go through the attention interface of transformers")
        elif found.shares_prefix:
            found.decodes_by_groups = _agrees(model, plain, "decoding by groups", lambda: _decoded(model, rollout))
        return found
    except UserError:
        model._capabilities = None
        raise
    finally:
        causal_lm.train(training)


def _standard_layers(model: PreTrainedModel) -> list[int | None] | None:
    """The window of each layer of the cache; None where some keep something else than keys and values."""
    if getattr(model, "_is_stateful", False):
        return None
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    layers = DynamicCache(config=model.config).layers
    standard = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return [getattr(layer, "sliding_window", None) for layer in layers] if standard and not kinds else None


@torch.no_grad()
def _agrees(model: "LanguageModel", plain: Tensor, what: str, fast) -> bool:
    try:
        error = _error(fast(), plain)
    except Exception as failure:  # whatever the reason, the plain way remains
        _say(model.model, f"{what} failed ({type(failure).__name__}: {str(failure)[:120]})")
        return False
    if error < _tolerance(model.model):
        return True
    _say(model.model, f"{what} gives logits that differ by {error:.1e} of their spread")
    return False


def _alone(model: PreTrainedModel, rollout: Rollout) -> Tensor:
    """Logits [B, T, V] of single sequences without padding."""
    logits = []
    for row, completion in enumerate(rollout.completion_ids):
        prompt = row // rollout.group_size
        tokens = rollout.prompt_ids[prompt][rollout.prompt_mask[prompt]]
        whole = model(torch.cat([tokens, completion])[None], use_cache=False).logits[0, len(tokens) - 1 : -1]
        # The first token is predicted where there are no others yet: a model that looks ahead is not causal.
        first = model(tokens[None], use_cache=False).logits[0, -1:]
        logits.append(torch.cat([first, whole[1:]]))
    return torch.stack(logits)


def _shared(model: "LanguageModel", rollout: Rollout) -> Tensor:
    return _logits(model, model.shared_prefix_states(rollout))


def _decoded(model: "LanguageModel", rollout: Rollout) -> Tensor:
    """The logits met while the completions are fed token by token, [B, T, V]."""
    first, cache = model.start_groups(rollout.prompt_ids, rollout.prompt_mask, _GROUP_SIZE, _LENGTH)
    logits = [first.repeat_interleave(_GROUP_SIZE, dim=0)]
    starts = rollout.prompt_mask.sum(dim=1).repeat_interleave(_GROUP_SIZE)
    for t in range(_LENGTH - 1):
        logits.append(model.next_logits(rollout.completion_ids[:, t], starts + t, cache))
    return torch.stack(logits, dim=1)


def _logits(model: "LanguageModel", states: Tensor) -> Tensor:
    return model.capabilities.parts.head(states)


def _few_tokens(model: PreTrainedModel) -> Rollout:
    """Two prompts of unequal length with two completions each, of different tokens."""
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    tokens = [(7919 * i + 5) % vocabulary for i in range(6 + 2 * _GROUP_SIZE * _LENGTH)]
    ids, mask = (tensor.to(model.device) for tensor in pad_left([tokens[:2], tokens[2:6]], tokens[0]))
    completions = torch.tensor(tokens[6:], device=model.device).view(-1, _LENGTH)
    rows = len(completions)
    return Rollout(
        prompts=PromptBatch(["", ""], torch.arange(2), {}),
        group_size=_GROUP_SIZE,
        step=0,
        prompt_ids=ids,
        prompt_mask=mask,
        completion_ids=completions,
        completion_mask=torch.ones_like(completions, dtype=torch.bool),
        old_logprobs=torch.zeros(completions.shape, device=model.device),
        truncated=torch.zeros(rows, dtype=torch.bool, device=model.device),
        texts=[""] * rows,
    )


def _error(found: Tensor, expected: Tensor) -> float:
    """Difference of logits, as a share of their spread."""
    found, expected = found.float(), expected.float()
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm().clamp(min=1e-20)
    error = float((found - expected).norm() / spread)
    return error if error == error else torch.inf


def _tolerance(model: PreTrainedModel) -> float:
    """Far above rounding, far below what a missing token or a wrong mask does."""
    device = model.device.type
    half = model.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(device)
    return 0.03 if half else 1e-3


def _say(model: PreTrainedModel, why: str) -> None:
    text = f"{type(model).__name__} takes a plain, slower path: {why}"
    if text not in _said:
        _said.add(text)
        _log.warning(text)

"""Trying out on a few tokens what a model can do. A wrong number in silence would be worse than a slow path."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.passes.capabilities import Capabilities
from grpovi_lightning.models.passes.forward import ForwardPasses, evaluating
from grpovi_lightning.models.passes.model_traits import keeps_other_state, uses_attention_interface
from grpovi_lightning.models.passes.output_head import FusedHead, SeparateHead
from grpovi_lightning.ops import pad_left
from grpovi_lightning.structures import PromptBatch, Rollout

_log = logging.getLogger(__name__)
_said: set[str] = set()
_GROUP_SIZE, _LENGTH = 2, 3
# Body and head do the same operations together as apart, so next to nothing may differ.
_SAME_OPERATIONS = 1e-5


@torch.no_grad()
def find_capabilities(model: PreTrainedModel) -> Capabilities:
    """Try the faster ways of running a model against the plain one; log, once, which it cannot take and why.

    Whatever is raised, the model is left as it was. Running out of memory and an interrupt say nothing about the model,
    so they are raised.

    Raises:
        UserError: left padding changes the logits, or a token sees later ones: no way of running it would be right.
    """
    with evaluating(model):  # so that nothing is random, and caches are not dropped
        found = Capabilities(_find_parts(model), "position_ids" in inspect.signature(model.forward).parameters)
        rollout = _few_tokens(model)
        plain = found.parts.logits(ForwardPasses(model, found).plain_states(rollout))
        _check_causal(model, rollout, plain)
        windows = _windows(model)
        if windows is None:
            _say(model, "its cache does not keep the keys and values of all tokens")
            return found
        found = replace(found, windows=windows)
        passes, tolerance = ForwardPasses(model, found), _tolerance(model)

        def agrees(what: str, logits: Callable[[ForwardPasses, Rollout], Tensor]) -> bool:
            return _holds(model, what, tolerance, lambda: _error(logits(passes, rollout), plain))

        shares_prefix = agrees("the shared-prefix forward pass", _shared_logits)
        if not uses_attention_interface(model):
            _say(model, "its attention does not go through the attention interface of transformers")
            by_groups = False
        else:
            by_groups = shares_prefix and agrees("decoding by groups", _decoded_logits)
        return replace(found, shares_prefix=shares_prefix, decodes_by_groups=by_groups)


def _holds(model: PreTrainedModel, what: str, tolerance: float, error: Callable[[], float]) -> bool:
    """Return whether a trial ends with an error below the tolerance; log why not."""
    try:
        size = error()
    except Exception as failure:
        # A model's own code may raise anything on a path that it was not written for, and then the plain way remains.
        # Running out of memory is not an answer: another run would get another one, and other bits.
        if _out_of_memory(failure):
            raise
        _say(model, f"{what} failed ({type(failure).__name__}: {str(failure)[:120]})")
        return False
    if size < tolerance:
        return True
    _say(model, f"{what} gives logits that differ by {size:.1e} of their spread")
    return False


def _out_of_memory(failure: Exception) -> bool:
    # On a CPU torch raises a `RuntimeError` without a class of its own.
    texts = ("can't allocate memory", "not enough memory")
    return isinstance(failure, MemoryError | torch.OutOfMemoryError) or any(text in str(failure) for text in texts)


def _find_parts(model: PreTrainedModel) -> SeparateHead | FusedHead:
    """Return body and head apart where both together give the model's own logits."""
    fused, output = FusedHead(model), model.get_output_embeddings()
    if not isinstance(output, nn.Module) or model.base_model is model:
        return fused
    separate = SeparateHead(model)
    inputs: dict[str, Any] = {"input_ids": torch.arange(6, device=model.device)[None], "use_cache": False}
    factors: list[Tensor] = []

    def enlarge(module: nn.Module, arguments: Any, logits: Tensor) -> Tensor:
        """Scale the logits so far up that a soft cap behind them shows, whatever the weights."""
        factors.append(100.0 / logits.abs().max().clamp(min=1e-6))
        return logits * factors[0]

    def error() -> float:
        expected = fused.states(6, **inputs)
        return _error(separate.logits(separate.states(6, **inputs)), expected)

    hook = output.register_forward_hook(enlarge)
    try:
        apart = _holds(model, "its output head apart from its body", _SAME_OPERATIONS, error)
    finally:
        hook.remove()
    return separate if apart else fused


def _check_causal(model: PreTrainedModel, rollout: Rollout, plain: Tensor) -> None:
    error = _error(plain, _logits_alone(model, rollout))
    if not error < _tolerance(model):
        raise UserError(
            f"model {type(model).__name__}: got logits that differ by {error:.1e} of their spread from those "
            "of single prompts, expected a causal model that left padding does not change; choose another"
        )


def _windows(model: PreTrainedModel) -> tuple[int | None, ...] | None:
    """Return the window of each layer of the cache; None where some layer keeps no keys and values."""
    if keeps_other_state(model):
        return None
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    layers = DynamicCache(config=model.config).layers
    # Subclasses of these layers may keep anything, hence the exact types.
    standard = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return tuple(getattr(layer, "sliding_window", None) for layer in layers) if standard and not kinds else None


def _logits_alone(model: PreTrainedModel, rollout: Rollout) -> Tensor:
    """Return the logits [B, T, V] of single sequences without padding."""
    logits = []
    for row, completion in enumerate(rollout.completion_ids):
        prompt = row // rollout.group_size
        tokens = rollout.prompt_ids[prompt][rollout.prompt_mask[prompt]]
        whole = model(torch.cat([tokens, completion])[None], use_cache=False).logits[0, len(tokens) - 1 : -1]
        # The first token is predicted where there are no others yet: a model that looks ahead is not causal.
        first = model(tokens[None], use_cache=False).logits[0, -1:]
        logits.append(torch.cat([first, whole[1:]]))
    return torch.stack(logits)


def _shared_logits(passes: ForwardPasses, rollout: Rollout) -> Tensor:
    """Return the logits [B, T, V] where each prompt is run once for its group."""
    return passes.parts.logits(passes.shared_prefix_states(rollout))


def _decoded_logits(passes: ForwardPasses, rollout: Rollout) -> Tensor:
    """Return the logits [B, T, V] that are met while the completions are fed token by token."""
    first, cache = passes.start_groups(rollout.prompt_ids, rollout.prompt_mask, _GROUP_SIZE, _LENGTH)
    logits = [first.repeat_interleave(_GROUP_SIZE, dim=0)]
    starts = rollout.prompt_mask.sum(dim=1).repeat_interleave(_GROUP_SIZE)
    for t in range(_LENGTH - 1):
        logits.append(passes.next_logits(rollout.completion_ids[:, t], starts + t, cache))
    return torch.stack(logits, dim=1)


def _few_tokens(model: PreTrainedModel) -> Rollout:
    """Return two prompts of unequal length with two completions each, of different tokens."""
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
    """Return the difference of logits as a share of their spread, infinite where one of them is NaN."""
    found, expected = found.float(), expected.float()
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm().clamp(min=1e-20)
    error = float((found - expected).norm() / spread)
    return error if error == error else torch.inf


def _tolerance(model: PreTrainedModel) -> float:
    """Return a bound far above rounding, and far below what a missing token or a wrong mask does."""
    device = model.device.type
    half = model.dtype not in (torch.float32, torch.float64) or torch.is_autocast_enabled(device)
    return 0.03 if half else 1e-3


def _say(model: PreTrainedModel, why: str) -> None:
    text = f"{type(model).__name__} takes a plain, slower path: {why}"
    if text not in _said:
        _said.add(text)
        _log.warning(text)

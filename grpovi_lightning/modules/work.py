"""How much the policy computed in a step."""

import torch
from torch import nn

from grpovi_lightning.models import LanguageModel
from grpovi_lightning.modules.outcome import PolicyWork
from grpovi_lightning.modules.update_settings import UpdateSettings
from grpovi_lightning.structures import Experience


def policy_work(policy: LanguageModel, experience: Experience, settings: UpdateSettings) -> PolicyWork:
    """Return the work of a step that trained the policy on `experience`."""
    has_gradient = experience.groups_with_advantage()
    body, head = matrix_weights(policy.model)
    device = policy.device.type
    mixed = torch.is_autocast_enabled(device)
    old_logprobs = experience.old_logprobs
    return PolicyWork(
        body_weights=body,
        head_weights=head,
        dtype=torch.get_autocast_dtype(device) if mixed else next(policy.model.parameters()).dtype,
        runs_prompts_once=policy.runs_prompts_once,
        num_iterations=settings.num_iterations,
        old_pass=experience.selected is not None
        or (old_logprobs is not None and old_logprobs is not experience.rollout.old_logprobs),
        trained=has_gradient if settings.skip_zero_advantage_groups else torch.ones_like(has_gradient),
    )


def matrix_weights(model: nn.Module) -> tuple[int, int]:
    """Count the numbers of a causal LM that a token is multiplied with.

    Vectors do not count, nor embeddings, which are looked up. An embedding that is the head as well counts there.

    Returns:
        those of the body, and those of the head that predicts the next token.
    """
    output = getattr(model, "get_output_embeddings", lambda: None)()
    head = getattr(output, "weight", None)
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)} | {id(head)}
    body = sum(weights.numel() for weights in model.parameters() if weights.ndim > 1 and id(weights) not in looked_up)
    return body, 0 if head is None else head.numel()

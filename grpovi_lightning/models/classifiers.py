"""Reward models: sequence classifiers with one label, as they were published, or with a new head to be trained.

A classifier is a body, which `transformers` names by `base_model_prefix`, and a head, whose last linear layer gives the
labels' logits. Under whatever name a family keeps that layer, it is found by its place and its size.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.encoding import end_tokens, name_end_token
from grpovi_lightning.models.files import loading
from grpovi_lightning.models.published_heads import PublishedHead, checkpoint_tensors
from grpovi_lightning.models.sources import Precision, check_checkpoint, load_config, load_model, load_tokenizer

LAST_TOKEN = "last_token"
"""`reward_pooling` in the `config.json` of a classifier that scores by the state at the last token that is no padding
by the attention mask. Where that is not named, it is the last one that differs from the padding token, as in
`transformers`: that never is an end token which serves as padding, too. Encoders score by their first token."""

_log = logging.getLogger(__name__)


def load_classifier(
    path: str,
    dtype: Precision = "float32",
    new_head: bool = False,
    chat_template: str | None = None,
    published: PublishedHead = PublishedHead(),  # noqa: B008  a frozen value
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a sequence classifier, made to give one number, and its tokenizer.

    Args:
        path: local folder or hub name.
        dtype: dtype of the weights.
        new_head: whether a checkpoint without a head will do, to start training from: that of a causal LM, a masked LM
            or a bare encoder. Its body is taken, and the head starts without random numbers (see `_start`), so that
            every reward is 0 until it is trained, and no seed is needed.
        chat_template: in place of the tokenizer's own; see `set_chat_template`.
        published: where a model that was trained elsewhere keeps its score.

    Raises:
        UserError: the folder is missing, or the checkpoint has several labels or no trained head.
    """
    check_classifier(path, new_head, published)
    config = load_config(path)
    if published.head is not None:
        model = _with_published_head(path, config, dtype, published)
    elif _is_classifier(config):
        model = load_model(AutoModelForSequenceClassification, path, dtype)
        if _n_labels(config) > 1:
            _keep_label(model, published.row(_n_labels(config), _label_names(config), f"reward model {path}"), path)
    else:
        model = _with_new_head(path, config, dtype)
    tokenizer = load_tokenizer(path, chat_template)
    name_end_token(tokenizer, model)
    _name_padding(model, tokenizer, path)
    return model, tokenizer


def check_classifier(
    path: str,
    new_head: bool = False,
    published: PublishedHead = PublishedHead(),  # noqa: B008  a frozen value
) -> None:
    """Raise `UserError` where it can be told from the files of a local folder that it cannot be loaded."""
    check_checkpoint(path, "reward model")
    if not Path(path).is_dir():
        return
    config = load_config(path)
    if published.head is not None:
        published.tensors(path)
    elif _is_classifier(config):
        published.row(_n_labels(config), _label_names(config), f"reward model {path}")
    elif not new_head:
        raise UserError(
            f"reward model {path}: got {', '.join(config.architectures or ['no architecture'])}, expected a trained "
            "sequence classifier; train one with RewardModelModule first, or name the linear layer that gives its "
            "score: `head`"
        )


def pools_last_token(model: PreTrainedModel) -> bool:
    """Return whether a classifier scores by the last token of the attention mask; see `LAST_TOKEN`."""
    return getattr(model.config, "reward_pooling", None) == LAST_TOKEN


def head_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Return what stands behind the body; the pooling that some encoders have within it is the body's."""
    return [p for name, p in model.named_parameters() if not name.startswith(f"{model.base_model_prefix}.")]


def _in_head(model: PreTrainedModel, name: str) -> bool:
    return not name.startswith(f"{model.base_model_prefix}.") or ".pooler." in name


def _is_classifier(config: PreTrainedConfig) -> bool:
    return any("SequenceClassification" in name for name in config.architectures or [])


def _n_labels(config: PreTrainedConfig) -> int:
    return config.num_labels or 0


def _label_names(config: PreTrainedConfig) -> dict[str, int]:
    return {str(name): int(number) for name, number in (config.label2id or {}).items()}


def _output_layer(model: PreTrainedModel, path: str) -> str:
    """Return the name of the linear layer that gives the logits: the last one behind the body with so many outputs."""
    found = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and _in_head(model, name) and layer.out_features == model.config.num_labels
    ]
    if not found:
        raise UserError(f"reward model {path}: {type(model).__name__} has no linear layer that gives its score")
    return found[-1]


def _with_new_head(path: str, config: PreTrainedConfig, dtype: Precision) -> PreTrainedModel:
    if config.is_encoder_decoder:
        raise UserError(
            f"reward model {path}: got an encoder with a decoder, expected a causal LM or an encoder; a new head is "
            "trained on these alone"
        )
    empty = _empty(path, config)
    kept = {name.removeprefix(f"{empty.base_model_prefix}.") for name in checkpoint_tensors(path)}
    new = [name for name, _ in empty.named_parameters() if _in_head(empty, name)]
    new = [name for name in new if name.removeprefix(f"{empty.base_model_prefix}.") not in kept]
    output = _output_layer(empty, path)
    model = load_model(AutoModelForSequenceClassification, path, dtype, tuple(new), num_labels=1)
    for name in new:
        _start(model, name, output, path)
    if output == "score":
        model.config.reward_pooling = LAST_TOKEN
    return model


@torch.no_grad()
def _start(model: PreTrainedModel, name: str, output: str, path: str) -> None:
    """Set a new weight: the output layer to 0, layers between it and the body to what hands on their input.

    An encoder's pooling, such as tanh(W x + b) of its first token's state, then starts as tanh(x).
    """
    weight = model.get_parameter(name)
    if name.rpartition(".")[0] == output or name.endswith("bias"):
        weight.zero_()
    elif weight.ndim == 1:  # of a normalisation
        weight.fill_(1.0)
    elif weight.ndim == 2 and weight.shape[0] == weight.shape[1]:
        nn.init.eye_(weight)
    else:
        raise UserError(
            f"reward model {path}: {name} of {type(model).__name__} is missing, and there is no start for its shape "
            f"{list(weight.shape)}; expected a square layer between body and head"
        )


def _with_published_head(
    path: str, config: PreTrainedConfig, dtype: Precision, published: PublishedHead
) -> PreTrainedModel:
    weight, bias, row = published.tensors(path)
    output = _output_layer(_empty(path, config), path)
    new = (f"{output}.weight", f"{output}.bias")
    model = load_model(AutoModelForSequenceClassification, path, dtype, new, num_labels=1)
    width = model.get_submodule(output).in_features
    if weight.shape[1] != width:
        raise UserError(
            f"reward model {path}: {published.head}.weight reads {weight.shape[1]} numbers, but "
            f"{type(model).__name__} gives it {width}; it is not the layer of the score"
        )
    _give_one_label(model, output, weight, bias, row)
    if output == "score":
        model.config.reward_pooling = LAST_TOKEN
    return model


def _keep_label(model: PreTrainedModel, row: int, path: str) -> None:
    output = _output_layer(model, path)
    layer = model.get_submodule(output)
    assert isinstance(layer, nn.Linear)
    _give_one_label(model, output, layer.weight.detach(), layer.bias, row)


def _give_one_label(model: PreTrainedModel, layer: str, weight: Tensor, bias: Tensor | None, row: int) -> None:
    """Put a row of weight [labels, D] and bias [labels] in the place of the output layer."""
    single = nn.Linear(weight.shape[1], 1, bias=bias is not None, device=model.device, dtype=model.dtype)
    with torch.no_grad():
        single.weight.copy_(weight[row : row + 1])
        if bias is not None:
            single.bias.copy_(bias[row : row + 1])
    model.set_submodule(layer, single)
    model.config.num_labels = 1


def _empty(path: str, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the classifier of a configuration, with one label and without weights."""
    config.num_labels = 1
    with loading(f"reward model {path}"), torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def _name_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Have the classifier know its padding token: decoders refuse batches where none is named."""
    config: Any = model.config.get_text_config()
    if config.pad_token_id is None:
        pad = tokenizer.pad_token_id
        model.config.pad_token_id = config.pad_token_id = tokenizer.eos_token_id if pad is None else pad
    if getattr(model, "score", None) is None or pools_last_token(model):
        return
    if config.pad_token_id is None:
        raise UserError(
            f"reward model {path}: neither a padding nor an end token is named, by which it finds the last token that "
            "it scores by; name one in its tokenizer_config.json (`pad_token`)"
        )
    if config.pad_token_id in end_tokens(tokenizer):
        _log.warning(
            f"reward model {path}: its end token is its padding token, too, so it scores a completion by the token "
            "before the end, whether or not it ended; one that is trained here from a causal LM reads the end"
        )

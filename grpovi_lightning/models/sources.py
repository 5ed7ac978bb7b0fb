"""Where a model comes from: a checkpoint, or a configuration with fresh weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpovi_lightning.errors import UserError
from grpovi_lightning.models.adapter_files import check_adapter, load_adapter
from grpovi_lightning.models.adapters import TRAINED, LoRA, has_adapters, trains_base_weights
from grpovi_lightning.models.chat import check_chat_template, set_chat_template
from grpovi_lightning.models.files import check_files, loading
from grpovi_lightning.models.gguf import check_gguf
from grpovi_lightning.models.hub import check_hub, looks_local
from grpovi_lightning.models.language_model import LanguageModel
from grpovi_lightning.models.quantization import Quantization
from grpovi_lightning.models.reference import SharedReference

Precision = Literal["float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]


class CausalLMSource(ABC):
    """A place to load `LanguageModel`s from, a fresh one at each call."""

    dtype: Precision = "float32"
    """Of the weights."""

    @abstractmethod
    def load(self) -> LanguageModel:
        """Load the model on the CPU."""

    @abstractmethod
    def check(self) -> None:
        """Raise `UserError` where it can be told without loading that loading would fail."""

    def load_reference(self, policy: LanguageModel) -> LanguageModel | SharedReference:
        """Return the initial policy, frozen, for a policy that this source loaded."""
        reference = self.load()
        reference.requires_grad_(False).eval()
        return reference


class PretrainedCausalLM(CausalLMSource):
    """A Hugging Face checkpoint: a local folder, or a hub name where there is a hub.

    Only safetensors and GGUF weights are read, and no code from the checkpoint is run.
    """

    def __init__(
        self,
        path: str,
        dtype: Precision = "float32",
        lora: LoRA | None = None,
        gradient_checkpointing: bool = False,
        chat_template: str | None = None,
        revision: str | None = None,
        gguf_file: str | None = None,
        attn_implementation: Attention | None = None,
        quantization: Quantization | None = None,
        adapter: str | None = None,
    ) -> None:
        """Name the checkpoint.

        Args:
            path: local folder, or a hub name.
            dtype: dtype of the weights, and of adapters.
            lora: adapters to train instead of the weights; the exported model has them merged in.
            gradient_checkpointing: whether activations are computed again in the backward pass instead of kept. Updates
                then run the prompt with each completion: `transformers` drops caches there.
            chat_template: Jinja file in place of the tokenizer's own template, or `plain` for the bare contents of the
                messages; the exported tokenizer has it, too.
            revision: branch, tag or commit of the repository at the hub.
            gguf_file: name of a GGUF file there to read, whose weights are turned into `dtype`.
            attn_implementation: how attention is computed; None: as `transformers` chooses.
            quantization: keeps the weights under the adapters in 4 or 8 bits; needs a GPU.
            adapter: an adapter that peft wrote, local folder or hub name, to train further in place of fresh ones. The
                initial policy, which is the reference, has it as it is there.
        """
        self.chat_template = chat_template
        self.path, self.lora, self.gradient_checkpointing = path, lora, gradient_checkpointing
        self.dtype: Precision = dtype
        self.revision, self.gguf_file, self.attn_implementation = revision, gguf_file, attn_implementation
        self.quantization, self.adapter = quantization, adapter
        if lora is not None and adapter is not None:
            raise UserError(f"lora: got it together with the adapter {adapter}, which has its own settings; drop one")
        if gguf_file is not None and quantization is not None:
            raise UserError(f"quantization: got it for the GGUF file {gguf_file}; use the weights it was made from")

    def check(self) -> None:
        check_chat_template(self.chat_template)
        if self.gguf_file is None:
            check_checkpoint(self.path, "policy", self.revision)
        else:
            check_gguf(self.path, self.gguf_file, self.revision)
        if self.lora is not None:
            self.lora.check()
        if self.adapter is not None:
            check_adapter(self.adapter)
        if self.quantization is not None:
            self.quantization.check(self.lora is not None or self.adapter is not None, self.dtype)

    def load(self) -> LanguageModel:
        """Load weights and tokenizer on the CPU, without dropout: sampling and training must see the same policy.

        Raises:
            UserError: they, or adapters, cannot be loaded.
        """
        self.check()
        where = {"revision": self.revision, "gguf_file": self.gguf_file}
        where = {name: value for name, value in where.items() if value is not None}
        model = load_model(AutoModelForCausalLM, self.path, self.dtype, where=where, how=self._how())
        self._adapt(model)
        if self.gradient_checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
            model.train()  # `transformers` loads in evaluation mode, but recomputes in training mode only
        return LanguageModel(model, load_tokenizer(self.path, self.chat_template, **where))

    def _how(self) -> dict[str, Any]:
        how: dict[str, Any] = {}
        if self.attn_implementation is not None:
            how["attn_implementation"] = self.attn_implementation
        if self.gguf_file is not None:
            how["quantization_config"] = GgufConfig(dequantize=True)
        if self.quantization is not None:
            how["quantization_config"] = self.quantization.config(getattr(torch, self.dtype))
        return how

    def _adapt(self, model: PreTrainedModel) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # so that all runs start with the same adapters
            if self.lora is not None:
                self.lora.add_to(model)
            elif self.adapter is not None:
                load_adapter(model, self.adapter)
        if has_adapters(model):
            model.peft_config[TRAINED].revision = self.revision  # type: ignore[index]  so that it is written with them
        if self.quantization is not None:
            self.quantization.check_adapters(model)

    def load_reference(self, policy: LanguageModel) -> LanguageModel | SharedReference:
        shares = has_adapters(policy.model) and not trains_base_weights(policy.model)
        return SharedReference(policy) if shares else super().load_reference(policy)


class NewCausalLM(CausalLMSource):
    """A causal LM with random weights from a `transformers` configuration.

    The vocabulary size and the special tokens come from the tokenizer.
    """

    def __init__(self, config: dict[str, Any], tokenizer: str, seed: int = 0) -> None:
        """Describe the model.

        Args:
            config: a `transformers` configuration with its `model_type`.
            tokenizer: folder of the tokenizer.
            seed: of the initial weights; the same seed gives the same weights.
        """
        if "model_type" not in config:
            raise UserError(f"model config: got keys {sorted(config)}, expected a `model_type` such as llama")
        self.config, self.tokenizer, self.seed = config, tokenizer, seed

    def check(self) -> None:
        if not (Path(self.tokenizer) / "tokenizer_config.json").is_file():
            raise UserError(
                f"tokenizer {self.tokenizer}: no tokenizer_config.json there; expected a tokenizer's folder"
            )

    def load(self) -> LanguageModel:
        tokenizer = load_tokenizer(self.tokenizer)
        settings = {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        } | {key: value for key, value in self.config.items() if key != "model_type"}
        with torch.random.fork_rng(devices=[]), loading("model config: the model"):
            torch.manual_seed(self.seed)
            config = _new_config(self.config["model_type"], settings)
            _without_dropout(config)
            model = AutoModelForCausalLM.from_config(config)
        return LanguageModel(model, tokenizer)


def check_checkpoint(path: str, role: str, revision: str | None = None) -> None:
    """Raise `UserError` for a local path that is no checkpoint folder, or a hub name that gives no checkpoint."""
    folder = Path(path)
    if not looks_local(path):
        check_hub(path, role, "config.json", revision)
        return
    if not (folder / "config.json").is_file():
        state = "a folder without config.json" if folder.is_dir() else "no such folder"
        remedy = "expected a Hugging Face checkpoint folder (config.json, model.safetensors)"
        if (folder / "adapter_config.json").is_file():
            state, remedy = "a folder with an adapter alone", "name the model under it here, and this folder as adapter"
        raise UserError(f"{role} {path}: {state}; {remedy}")
    if not list(folder.glob("*.safetensors")):
        raise UserError(f"{role} {path}: no *.safetensors in it; convert the weights, other formats can carry code")
    load_config(path)
    check_files(folder, role)


def load_config(path: str, **where: Any) -> PreTrainedConfig:
    """Load the model configuration with all dropout off; no code from the checkpoint is run.

    `where` in the repository it is: a `revision`, or a `gguf_file`.
    """
    with loading(f"model {path}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False, **where)
    _without_dropout(config)
    return config


def load_model(
    auto_class: Any,
    path: str,
    dtype: Precision,
    new: tuple[str, ...] = (),
    where: Mapping[str, Any] = MappingProxyType({}),
    how: Mapping[str, Any] = MappingProxyType({}),
    **settings: Any,
) -> PreTrainedModel:
    """Load a model by a `transformers` auto class, from weights in safetensors files at a folder or hub name.

    The checkpoint need not have the weights named in `new`. `where` is that of `load_config`, `how` are further
    arguments of `from_pretrained`, and `settings` replace those of the configuration.

    Raises:
        UserError: the class cannot hold the checkpoint, or the checkpoint lacks weights.
    """
    config = load_config(path, **where)
    for name, value in settings.items():
        setattr(config, name, value)
    with loading(f"model {path}"):
        model, report = auto_class.from_pretrained(
            path,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **where,
            **how,
        )
    # `transformers` would put random weights in their place.
    missing = sorted(set(report["missing_keys"]) - set(new))
    if missing:
        raise UserError(
            f"model {path}: {len(missing)} weights are missing, among them {missing[0]}; expected a checkpoint of a "
            f"{type(model).__name__}"
        )
    return model


def load_tokenizer(path: str, chat_template: str | None = None, **where: Any) -> PreTrainedTokenizerBase:
    """Load the tokenizer from a folder or by a hub name; `chat_template` takes the place of its own.

    `where` is that of `load_config`.
    """
    with loading(f"tokenizer {path}"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, **where)
    set_chat_template(tokenizer, chat_template)
    return tokenizer


def _new_config(model_type: str, settings: dict[str, Any]) -> PreTrainedConfig:
    """Return the configuration; raise `UserError` for a setting that the model type does not have."""
    if model_type not in CONFIG_MAPPING:
        raise UserError(f"model config: got model_type {model_type!r}, expected one of `transformers`, such as llama")
    config = AutoConfig.for_model(model_type, **settings)
    # `transformers` takes a misspelt setting without a word, and keeps it as an attribute that nothing reads.
    known = CONFIG_MAPPING[model_type]()
    unknown = [name for name in settings if hasattr(config, name) and not hasattr(known, name)]
    if unknown:
        raise UserError(f"model config: {type(config).__name__} has no setting {unknown[0]!r}; check its spelling")
    return config


def _without_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout to 0, also in the parts of a composite configuration."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _without_dropout(value)
        elif isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
            setattr(config, name, 0.0)

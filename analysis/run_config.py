"""What a run's config.yaml says, in the words of people: method, base model, data, rewards, settings."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from analysis.errors import ReportError
from grpovi_lightning.run_record.layout import CONFIG_FILE
from grpovi_lightning.run_record.publication import public

TABLES = ("train", "validation", "test")
DEFAULTS = {"adjustment": "IdentityAdjustment", "advantage": "GroupAdvantage", "loss": "GRPOLoss"}
"""What `GRPOModule` takes where its settings are null."""

_FILE = re.compile(r".*\.(jsonl|json|csv|parquet)(\.gz|\.zst)?", re.IGNORECASE)
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
_SETTINGS = {
    "steps": "trainer.max_steps",
    "prompts per step": "data.init_args.prompts_per_step",
    "rows per step": "data.init_args.batch_size",
    "completions per prompt (group size)": "model.init_args.group_size",
    "sampling": "model.init_args.sampling",
    "adjustment": "model.init_args.adjustment",
    "advantage": "model.init_args.advantage",
    "loss": "model.init_args.loss",
    "updates of a rollout": "model.init_args.updates",
    "resampling": "model.init_args.resampling",
    "selection of completions": "model.init_args.selection",
    "optimizer": "model.init_args.optimizer",
    "learning rate schedule": "model.init_args.lr_scheduler",
    "adapters (LoRA)": "model.init_args.policy.init_args.lora",
    "adapters of the reward model (LoRA)": "model.init_args.lora",
    "dtype of the weights": "model.init_args.policy.init_args.dtype",
    "dtype of the reward model": "model.init_args.dtype",
    "precision of the trainer": "trainer.precision",
    "seed": "seed_everything",
}


@dataclass(frozen=True)
class Component:
    """A reward that a run logged: what it is, and the weight with which the policy was trained on it."""

    what: str
    weight: float


@dataclass(frozen=True)
class Table:
    """A table that a run read: `train`, `validation`, ..., with the settings of its source and its hub name, if any."""

    name: str
    held_out_set: str
    source: dict[str, Any]
    hub_name: str | None


class RunConfig:
    """A run's config.yaml, as others may see it (`public`)."""

    def __init__(self, folder: Path) -> None:
        """Read it.

        Raises:
            ReportError: it is missing, or cannot be read.
        """
        file = folder / CONFIG_FILE
        if not file.is_file():
            raise ReportError(f"{folder}: no {CONFIG_FILE}; expected the folder of a run, as `grpovi fit` writes it")
        try:
            text = file.read_text(encoding="utf-8")
            content = yaml.safe_load(text)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ReportError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise ReportError(f"{file} cannot be read: expected a mapping of settings")
        self.folder = folder
        self.content: dict[str, Any] = public(content)
        self.is_shortened = self.content != content
        found = re.match(r"# \w[\w.]*==(\S+)", text)
        self.lightning = found[1] if found else None
        """Version of Lightning, from the first line."""
        self._as_written = content

    def get(self, key: str) -> Any:
        """Return the value under a dotted key; None where there is none."""
        return _at(self.content, key)

    @property
    def module(self) -> str:
        """Name of the class that was trained, without its module."""
        return class_name(self.get("model")) or "a module of its own"

    @property
    def base(self) -> str | None:
        """Path or hub name of the model that training began with."""
        return self._at_base("path")

    @property
    def origin(self) -> str:
        """What the model was made of where there is no `base`; "" where config.yaml does not say."""
        policy = self.get("model.init_args.policy")
        return "" if policy is None else described(policy)

    @property
    def merges_adapters(self) -> bool:
        """Whether adapters were trained, which a whole model has merged into its weights."""
        names = ("policy.init_args.lora", "policy.init_args.adapter", "lora")
        return any(self.get(f"model.init_args.{name}") is not None for name in names)

    @property
    def base_settings(self) -> dict[str, Any]:
        """What else was said of it: `revision`, `gguf_file`, `adapter`."""
        settings = {name: self._at_base(name) for name in ("revision", "gguf_file", "adapter")}
        return {name: value for name, value in settings.items() if value is not None}

    @property
    def hub_base(self) -> str | None:
        """The base where it is a name on the hub."""
        path = _at(self._as_written, "model.init_args.policy.init_args.path") or _at(
            self._as_written, "model.init_args.path"
        )
        is_name = isinstance(path, str) and path.count("/") == 1 and _HUB_NAME.fullmatch(path)
        return path if is_name and not self._is_here(path) else None

    def _at_base(self, name: str) -> Any:
        of_policy = self.get(f"model.init_args.policy.init_args.{name}")
        return self.get(f"model.init_args.{name}") if of_policy is None else of_policy

    def _is_here(self, path: str) -> bool:
        """Tell whether there is something at a relative path, seen from here or from a folder that the run lies in.

        The run may have been started elsewhere: `runs/base` is a folder there, and no name on the hub.
        """
        return any((folder / path).exists() for folder in (Path(), *self.folder.resolve().parents))

    def tables(self) -> list[Table]:
        """Return the tables that the run read, held-out sets one by one."""
        found = []
        for name in TABLES:
            source = _at(self._as_written, f"data.init_args.{name}")
            several = name == "validation" and isinstance(source, dict) and "path" not in source
            for held_out_set, each in source.items() if several else [("", source)]:
                settings = {"path": each} if isinstance(each, str) else each
                if isinstance(settings, dict) and isinstance(settings.get("path"), str):
                    kept = {key: value for key, value in settings.items() if value not in (None, False, {})}
                    found.append(Table(name, str(held_out_set), public(kept), self._hub_table(settings["path"])))
        return found

    def _hub_table(self, path: str) -> str | None:
        is_name = _HUB_NAME.fullmatch(path) and not _FILE.fullmatch(path)
        return path if is_name and not self._is_here(path) else None

    def rewards(self) -> list[Component]:
        """Return what completions were scored with, and the weights."""
        return list(_components(self.get("model.init_args.reward"), 1.0))

    def settings(self) -> list[tuple[str, str]]:
        """Return (name, value) of the settings that matter, in words; those that are not set are left out."""
        rows = []
        for name, key in _SETTINGS.items():
            value = self.get(key)
            if value is None and self.get("model.init_args.group_size") is not None:
                value = DEFAULTS.get(key.rpartition(".")[2])
            if value is not None:
                rows.append((name, described(value)))
        return rows

    def text(self) -> str:
        """Return the whole file."""
        return yaml.safe_dump(self.content, sort_keys=False, allow_unicode=True)


def class_name(node: Any) -> str | None:
    """Return the name of a class in a config, without its module; None for what is no class.

    >>> class_name({"class_path": "torch.optim.AdamW"}), class_name(None)
    ('AdamW', None)
    """
    path = node.get("class_path") if isinstance(node, dict) else None
    return path.rpartition(".")[2] if isinstance(path, str) else None


def described(value: Any) -> str:
    """Return a value of a config as one line: a class by its name, with its settings in parentheses.

    Settings that are off (null, false, empty) are left out.

    >>> described({"class_path": "my.Loss", "init_args": {"beta": 0.04, "delta": None, "kl": {"class_path": "my.K3"}}})
    'Loss (beta 0.04, kl K3)'
    >>> described({"temperature": 0.9, "top_k": 0})
    'temperature 0.9, top_k 0'
    """
    if isinstance(value, list):
        return "[" + ", ".join(map(described, value)) + "]"
    if not isinstance(value, dict):
        return str(value)
    name = class_name(value)
    if name is None:
        return _listed(value)
    inside = _listed(value.get("init_args") or value.get("dict_kwargs") or {})
    return f"{name} ({inside})" if inside else name


def _listed(settings: dict[Any, Any]) -> str:
    parts = []
    for key, item in settings.items():
        if item is None or item is False or item in ({}, [], ""):
            continue
        is_group = isinstance(item, dict) and class_name(item) is None
        parts.append(f"{key} ({described(item)})" if is_group else f"{key} {described(item)}")
    return ", ".join(parts)


def _components(node: Any, weight: float) -> Iterator[Component]:
    settings = node.get("init_args") or {} if isinstance(node, dict) else {}
    parts = settings.get("rewards")
    if isinstance(parts, list):
        weights = settings.get("reward_weights") or [1.0] * len(parts)
        for part, factor in zip(parts, weights, strict=False):
            yield from _components(part, weight * float(factor))
    elif node is not None:
        yield Component(described(node), weight)


def _at(content: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(content, dict):
            return None
        content = content.get(part)
    return content

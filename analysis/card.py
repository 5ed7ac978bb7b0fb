"""The model card of a run: what was trained, how, on what, and what came out of it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jinja2
from huggingface_hub import ModelCard, ModelCardData

from analysis.card_numbers import HeldOutRow, held_out, hub_results, study_part
from analysis.errors import ReportError
from analysis.markdown import code, plain
from analysis.run_config import DEFAULTS, RunConfig, class_name, described
from analysis.wording import number
from grpovi_lightning.run_record.layout import ADAPTER_FOLDER, MODEL_FOLDER, RecordError
from grpovi_lightning.run_record.publication import public
from grpovi_lightning.run_record.status import RunRecord, State, require_status

Trained = Literal["model", "adapter"]
"""What of a run is published: the whole model, or the adapter alone."""

TEMPLATE = "card.md.jinja"

_GRPO = "GRPO (group relative policy optimisation, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300))"
_GRPOVI = "GRPOVI, GRPO with reward variance increase ([arXiv 2505.23247](https://arxiv.org/abs/2505.23247))"
_OTHER_METHODS = {
    "SFTModule": ("sft", "A causal language model trained by supervised fine-tuning: it imitates demonstrations."),
    "RewardModelModule": ("reward-model", "A reward model trained on comparisons, by Bradley-Terry likelihood."),
}
_TASKS = {
    "ForCausalLM": ("text-generation", "AutoModelForCausalLM"),
    "ForSequenceClassification": ("text-classification", "AutoModelForSequenceClassification"),
}


def model_card(run: str | Path, trained: Trained, repo: str, revision: str | None = None) -> str:
    """Write the card of a run: metadata for the hub, and a page in Markdown.

    Nothing in it is asked of the hub. Folders of the machine are cut from paths and secrets hidden (`public`); every
    text from the run is escaped. No licence is named, for a run does not know one.

    Args:
        run: A run's folder; in a study, the study's verdicts on its arm are part of the card.
        trained: What is published: `model/` or `adapter/`.
        repo: Where, as `user/name`; checked by the caller.
        revision: The branch, where it is not the main one.

    Raises:
        ReportError: The run, or the study around it, cannot be read.
    """
    folder = Path(run)
    try:
        record = require_status(folder)
    except RecordError as error:
        raise ReportError(f"{folder} is no run: {error}") from error
    config = RunConfig(folder)
    rows, missing = held_out(folder, record)
    tag, method = _method(config)
    task, auto_class = _task(folder)
    name = repo.rpartition("/")[2]
    is_adapter = trained == ADAPTER_FOLDER
    page = _page(
        name=name,
        method=method,
        unfinished=_unfinished(record),
        is_adapter=is_adapter,
        merges_adapters=config.merges_adapters,
        origin=config.origin,
        base=config.base,
        hub_base=config.hub_base,
        base_settings=config.base_settings,
        tables=config.tables(),
        preparation=_preparation(config),
        rewards=config.rewards(),
        settings=config.settings(),
        config=config.text(),
        is_shortened=config.is_shortened,
        held_out=rows,
        missing=missing,
        study=study_part(folder),
        warnings=public(list(record.warnings)),
        load=_load(config, is_adapter, auto_class, repo, revision),
        versions=_versions(folder, record, config),
    )
    metadata = _metadata(config, rows, task, name, is_adapter=is_adapter, tag=tag)
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{page}"))


def _metadata(
    config: RunConfig, rows: list[HeldOutRow], task: str | None, name: str, *, is_adapter: bool, tag: str
) -> ModelCardData:
    # The class of the card makes a model index only where there is a result.
    results = hub_results(rows, config, task) or None
    return ModelCardData(
        base_model=config.hub_base,
        base_model_relation=(ADAPTER_FOLDER if is_adapter else "finetune") if config.hub_base else None,
        datasets=sorted({table.hub_name for table in config.tables() if table.hub_name}) or None,
        eval_results=results,
        library_name="peft" if is_adapter else "transformers",
        model_name=name if results else None,
        pipeline_tag=task,
        tags=["grpovi-lightning", tag, *(["lora"] if is_adapter else [])],
    )


def _method(config: RunConfig) -> tuple[str, str]:
    """Return a tag, and the sentences that say what was trained and how, in Markdown."""
    if config.module in _OTHER_METHODS:
        return _OTHER_METHODS[config.module]
    if config.module != "GRPOModule":
        return "lightning", f"A model trained by {code(config.module)}."
    parts = {name: class_name(config.get(f"model.init_args.{name}")) or default for name, default in DEFAULTS.items()}
    tag = "grpovi" if parts["adjustment"] == "VarianceIncrease" else "grpo"
    method = _GRPOVI if tag == "grpovi" else _GRPO
    if parts["adjustment"] not in ("VarianceIncrease", DEFAULTS["adjustment"]):
        method += f" with rewards adjusted by {code(parts['adjustment'])}"
    return tag, (
        f"A causal language model trained by {method}. Advantages are those of {code(parts['advantage'])}, the loss "
        f"is {code(parts['loss'])}."
    )


def _task(folder: Path) -> tuple[str | None, str]:
    """Return the hub's name of the model's task, if it is known, and the class that loads it."""
    architectures = _json(folder / MODEL_FOLDER / "config.json").get("architectures") or [""]
    for ending, found in _TASKS.items():
        if str(architectures[0]).endswith(ending):
            return found
    return None, "AutoModel"


def _unfinished(record: RunRecord) -> str:
    """Return how a run stands that did not finish, in a sentence; "" for one that did."""
    if record.state == State.FINISHED:
        return ""
    at = f"step {'?' if record.step is None else record.step} of {record.max_steps or '?'}"
    sentence = f"it was {record.state} at {at} when this card was written."
    if record.state == State.INTERRUPTED:
        return sentence
    return f"{sentence} A model is written when training ends, so that this one may be of an earlier step."


def _preparation(config: RunConfig) -> dict[str, Any]:
    """Return what was done to the rows, where anything was."""
    found = {}
    for name in ("preparation", "conversations"):
        settings = config.get(f"data.init_args.{name}")
        if isinstance(settings, dict) and any(settings.values()):
            found[name] = {key: value for key, value in settings.items() if value}
    return found


def _load(config: RunConfig, is_adapter: bool, auto_class: str, repo: str, revision: str | None) -> str:
    at = f", revision={json.dumps(revision)}" if revision else ""
    here = json.dumps(repo)
    if not is_adapter:
        return (
            f"from transformers import {auto_class}, AutoTokenizer\n\n"
            f"model = {auto_class}.from_pretrained({here}{at})\n"
            f"tokenizer = AutoTokenizer.from_pretrained({here}{at})"
        )
    base = json.dumps(config.base, ensure_ascii=False)
    of_base = config.base_settings.get("revision")
    base_at = f", revision={json.dumps(of_base)}" if of_base else ""
    return (
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"base = AutoModelForCausalLM.from_pretrained({base}{base_at})\n"
        f"model = PeftModel.from_pretrained(base, {here}{at})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({base}{base_at})"
    )


def _versions(folder: Path, record: RunRecord, config: RunConfig) -> dict[str, str]:
    """Return the versions of packages that the run left."""
    found = {
        "lightning": config.lightning,
        "torch": record.torch,
        "transformers": _json(folder / MODEL_FOLDER / "config.json").get("transformers_version"),
        "peft": _json(folder / ADAPTER_FOLDER / "adapter_config.json").get("peft_version"),
    }
    return {name: version for name, version in found.items() if version}


def _json(file: Path) -> Mapping[str, Any]:
    """Return the content of a file of a checkpoint; nothing where there is none."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{file} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _page(**facts: Any) -> str:
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,  # Markdown: the template escapes each text by `code` or `plain`
    )
    templates.filters |= {"code": code, "plain": plain, "described": described, "number": number}
    return templates.get_template(TEMPLATE).render(**facts).strip() + "\n"

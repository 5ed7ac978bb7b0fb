"""The model card, from runs whose numbers are known."""

import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from synthetic_runs import GOLD, INCREASE, line, run_folder, write_events, write_run, write_status, write_study

from analysis import ReportError
from analysis.card import model_card
from analysis.run_config import RunConfig
from analysis.study import analyse
from grpovi_lightning.run_record.publication import public

CONFIG = {
    "seed_everything": 1,
    "trainer": {"max_steps": 100},
    "model": {
        "class_path": "grpovi_lightning.modules.GRPOModule",
        "init_args": {
            "policy": {
                "class_path": "grpovi_lightning.models.PretrainedCausalLM",
                "init_args": {"path": "ada/chat-135M", "revision": "v1.0"},
            },
            "reward": {"class_path": "my.Reward", "init_args": {}},
            "group_size": 8,
            "adjustment": {"class_path": "grpovi_lightning.adjustment.VarianceIncrease"},
        },
    },
    "data": {
        "class_path": "grpovi_lightning.data.PromptDataModule",
        "init_args": {
            "train": {"path": "ada/sums", "name": "main", "split": "train[:90%]", "revision": None},
            "validation": {"path": "ada/sums", "name": "main", "split": "test"},
            "prompts_per_step": 8,
        },
    },
}


def with_config(folder: Path, **changes) -> Path:
    """Write config.yaml into a run, with `changes` to dotted keys whose dots are written as `__`; and a model."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    for key, value in changes.items():
        place = config
        *parents, last = key.split("__")
        for name in parents:
            place = place[name]
        place[last] = value
    (folder / "config.yaml").write_text("# lightning.pytorch==2.6.6\n" + yaml.safe_dump(config, sort_keys=False))
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    return folder


@pytest.fixture
def run(tmp_path):
    """A finished GRPOVI run of its own, whose gold reward rises from 0 to 0.5."""
    return with_config(write_run(tmp_path / "run", line(0, 0.5), seed=1, adjustment=INCREASE))


def card(run, what="model", repo="ada/tiny", revision=None):
    return ModelCard(model_card(run, what, repo, revision))


def seen(text: str) -> str:
    """The page as a browser shows it: the HTML that an independent Markdown parser makes of it."""
    return MarkdownIt("commonmark", {"html": True}).enable("table").render(text)


def test_the_metadata_names_what_the_hub_has_and_no_licence(run):
    data = card(run).data.to_dict()
    assert data["base_model"] == "ada/chat-135M" and data["base_model_relation"] == "finetune"
    assert data["datasets"] == ["ada/sums"] and data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "text-generation" and "license" not in data
    (result,) = data["model-index"][0]["results"]
    assert result["dataset"] == {"name": "ada/sums", "type": "ada/sums", "config": "main", "split": "test"}
    assert result["metrics"] == [{"type": GOLD, "value": 0.5, "name": GOLD}]
    adapter = card(run, "adapter").data
    assert (adapter.base_model_relation, adapter.library_name) == ("adapter", "peft")


def test_rows_that_are_held_out_of_the_training_data_are_a_result_on_that_data(run):
    with_config(run, data__init_args__validation=None, data__init_args__preparation={"held_out_fraction": 0.1})
    (result,) = card(run).data.eval_results
    assert result.dataset_split == "train[:90%]"


def test_without_held_out_rows_on_the_hub_there_is_no_result(run):
    with_config(run, data__init_args__validation="held_out.jsonl")
    assert card(run).data.eval_results is None
    with_config(run, data__init_args__validation={"easy": "ada/sums", "hard": "hard.jsonl"})
    write_events(run, {"eval/hard/reward": line(0, 1), "eval/easy/reward": line(0, 2)}, name="0000000002")
    assert [each.metric_type for each in card(run).data.eval_results] == [GOLD, "eval/easy/reward"]


def test_a_folder_is_no_name_on_the_hub_even_where_it_looks_like_one(run, tmp_path):
    (tmp_path / "runs" / "base").mkdir(parents=True)
    with_config(run, model__init_args__policy__init_args__path="runs/base", data__init_args__train="runs/base")
    data = card(run).data
    assert data.base_model is None and "base_model_relation" not in data and data.datasets == ["ada/sums"]
    assert "`runs/base`, a folder on the machine of the run" in card(run).text


@pytest.mark.parametrize(
    ("adjustment", "tag", "words"),
    [
        (None, "grpo", "GRPO (group relative policy optimisation"),
        ("grpovi_lightning.adjustment.IdentityAdjustment", "grpo", "GRPO (group relative policy optimisation"),
        ("grpovi_lightning.adjustment.VarianceIncrease", "grpovi", "GRPOVI, GRPO with reward variance increase"),
        ("my.Stretch", "grpo", "with rewards adjusted by `Stretch`"),
    ],
)
def test_the_method_is_told_by_the_adjustment(run, adjustment, tag, words):
    with_config(run, model__init_args__adjustment=adjustment and {"class_path": adjustment})
    found = card(run)
    assert tag in found.data.tags and words in found.text


def test_models_that_grpo_did_not_train_are_named_for_what_they_are(run):
    with_config(run, model={"class_path": "grpovi_lightning.modules.RewardModelModule", "init_args": {"path": "a/b"}})
    (run / "model" / "config.json").write_text('{"architectures": ["LlamaForSequenceClassification"]}')
    found = card(run)
    assert found.data.pipeline_tag == "text-classification" and found.data.base_model == "a/b"
    assert "A reward model trained on comparisons" in found.text and "AutoModelForSequenceClassification" in found.text
    with_config(run, model={"class_path": "grpovi_lightning.modules.SFTModule", "init_args": {}})
    assert "supervised fine-tuning" in card(run).text
    fresh = {"class_path": "grpovi_lightning.models.NewCausalLM", "init_args": {"config": {"model_type": "llama"}}}
    with_config(run, model={"class_path": "grpovi_lightning.modules.SFTModule", "init_args": {"policy": fresh}})
    assert "No checkpoint: `NewCausalLM (config (model_type llama))`" in card(run).text
    with_config(run, model={"class_path": "my.Own", "init_args": {}})
    assert "A model trained by `Own`." in card(run).text


def test_the_study_around_a_run_gives_its_verdict_with_the_number_of_seeds(tmp_path):
    arms = {"grpo": {seed: line(0, 1 + seed / 50) for seed in range(1, 7)}}
    arms["grpovi"] = {seed: line(0, 2 + seed / 60) for seed in range(1, 6)}
    root = write_study(tmp_path / "s", arms, {"grpovi": "grpo"})
    (verdict,) = analyse(root).verdicts
    for arm in arms:
        text = card(with_config(run_folder(root, arm, 2))).text
        assert f"**{verdict.headline}**" in text and "`grpo` 6, `grpovi` 5" in text
        assert f"arm `{arm}`, seed 2" in text
        page = re.sub(r"<[^>]+>", "", seen(text)).replace("&quot;", '"')
        assert all(sentence in page for sentence in verdict.sentences)


def test_a_run_that_did_not_finish_says_how_far_it_came(run):
    write_status(run, state="interrupted", step=40, adjustment=INCREASE)
    assert "**The run did not finish**: it was interrupted at step 40 of 100" in card(run).text
    write_status(run, state="running", step=40, adjustment=INCREASE)
    assert "this one may be of an earlier step" in card(run).text


def test_a_run_without_tensorboard_files_says_why_there_are_no_numbers(tmp_path):
    write_status(tmp_path / "run", loggers=["WandbLogger"])
    found = card(with_config(tmp_path / "run"))
    assert "No held-out values: the run has no TensorBoard or CSV log; it logged with WandbLogger." in found.text


def test_a_log_that_ends_inside_a_record_is_said_to(run):
    (log,) = run.glob("events.*")
    log.write_bytes(log.read_bytes()[:-3])
    assert "The log ends inside a record" in card(run).text


HOSTILE = "x` | </pre></code><script>alert(1)</script> ![a](http://b) **c** $d$\n\n# e"


def test_text_from_a_run_is_shown_as_text(run):
    with_config(
        run,
        model__init_args__reward={"class_path": "my.Reward", "init_args": {"name": HOSTILE}},
        model__init_args__policy__init_args__path=HOSTILE,
        model__init_args__loss={"class_path": f"my.{HOSTILE}"},
        data__init_args__train={"path": HOSTILE, "split": HOSTILE},
        data__init_args__conversations={"system_prompt": HOSTILE},
    )
    write_events(run, {f"eval/{HOSTILE}": line(0, 1)}, name="0000000002")
    write_status(run, adjustment=INCREASE, warnings=[HOSTILE])
    for what in ("model", "adapter"):
        text = card(run, what).text
        page = seen(text)
        assert "<script" not in page and "<img" not in page and "<strong>c" not in page
        assert page.count("<h1") == 1 and page.count("<pre>") == page.count("</pre>") == 2
        tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("| ")]
        assert len(tables) == page.count("<table>") == 4
        for rows in tables:  # a bar of the text would begin a cell
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
        assert page.count("alert(1)") >= 10


def test_folders_and_secrets_of_the_machine_are_not_in_the_card(run, tmp_path, monkeypatch):
    here, home = tmp_path / "here", tmp_path / "home" / "alice"
    for folder in (here, home):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    with_config(
        run,
        trainer={"max_steps": 100, "default_root_dir": str(here / "runs" / "x")},
        data__init_args__train=str(home / "secret-project" / "sets" / "train.jsonl"),
        model__init_args__reward={
            "class_path": "my.Judge",
            "init_args": {"kwargs": {"api_key": "abc-123-xyz", "command": f"judge --from {home}/keys.txt --fast"}},
        },
    )
    write_status(run, adjustment=INCREASE, warnings=[f"{home}/secret-project is slow"])
    text = str(card(run))
    assert str(tmp_path) not in text and "secret-project/sets" not in text and "abc-123" not in text
    assert "default_root_dir: runs/x" in text and "`train.jsonl` (local)" in text
    assert "judge --from keys.txt --fast" in text and "api_key: (hidden)" in text
    assert "Folders of the machine are cut from paths" in text


def test_settings_that_are_no_paths_and_no_secrets_stay_as_they_are():
    kept = {
        "system_prompt": "/no_think",
        "template": "a</s> <b>/x\n/y/z",
        "eos_token": "</s>",
        "max_tokens": 5,
        "token": None,
        "split": "train[:90%]",
        "path": "runs/a/b",
        "ratio": "1/2",
    }
    assert public(kept) == kept
    assert public({"token": "x", "hf_token": "y", "text": "use hf_abcdefghijklmnopqrst"}) == {
        "token": "(hidden)",
        "hf_token": "(hidden)",
        "text": "use (hidden)",
    }


def test_the_name_of_the_user_stays_out_wherever_the_command_runs(tmp_path, monkeypatch):
    home = tmp_path / "homes" / "alice"
    (home / "work").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    path = f"{home}/work/x.jsonl"
    for place, shown in {
        "/": "x.jsonl",
        home.parent: "x.jsonl",
        home: "work/x.jsonl",
        home / "work": "x.jsonl",
    }.items():
        monkeypatch.chdir(place)
        assert public(path) == shown and public(f"see {path}, {path}") == f"see {shown}, {shown}"
        assert public(str(home)) in ("~", ".")


def test_what_is_no_run_is_refused_in_one_line(run, tmp_path):
    with pytest.raises(ReportError, match=r"is no run: no status\.json"):
        model_card(tmp_path, "model", "ada/tiny")
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(ReportError, match=r"config\.yaml cannot be read"):
        RunConfig(run)
    (run / "config.yaml").write_text("- a")
    with pytest.raises(ReportError, match="expected a mapping of settings"):
        RunConfig(run)

"""Training on messages, from YAML alone: what models read, what reward functions get, what carries loss."""

import re

import pytest
import torch
import yaml
from helpers.chat import TEMPLATE, assistant, save_chat_policy, save_chat_reward_model, system, user, write_jsonl
from helpers.commands import refusal
from helpers.framed import framed_tokenizer
from helpers.tiny_checkpoints import save_reward_model
from modules.grpo_runs import completion_tokens, grpo, train
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from grpovi_lightning.adjustment import VarianceIncrease
from grpovi_lightning.cli import main
from grpovi_lightning.conversations import Conversation
from grpovi_lightning.data import PromptDataModule
from grpovi_lightning.models import PretrainedCausalLM
from grpovi_lightning.modules import SFTModule
from grpovi_lightning.rewards import CompositeReward, RewardModel

QUESTIONS = ["write about the red fox", "a sad cat", "the old house", "ten happy words"]
CONVERSATIONS = [[system("ten words"), user(text)] for text in QUESTIONS]
CONVERSATIONS[0] = [user("a dog"), assistant("sees"), user(QUESTIONS[0])]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A chat policy, a reward model that marks turns otherwise, and an encoder-like one without a template."""
    root = tmp_path_factory.mktemp("chat")
    save_chat_policy(root / "policy")
    save_chat_reward_model(root / "reward", TEMPLATE.replace("<|end|>", "<eos>"))
    framed_tokenizer("<s>", bos_token="<s>").save_pretrained(root / "bare_tokenizer")
    save_reward_model(root / "bare", root / "bare_tokenizer")
    return root


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": messages, "answer": str(i)} for i, messages in enumerate(CONVERSATIONS)]
    return PromptDataModule(write_jsonl(tmp_path / "prompts.jsonl", rows), prompts_per_step=2, seed=1)


class TestRollouts:
    calls: list  # of the reward function

    def brief(self, prompts, completions, completion_ids, answer, **columns):
        self.calls.append((prompts, completions, answer))
        return [-float(len(completion[0]["content"])) for completion in completions]

    @pytest.mark.parametrize("adjustment", [None, VarianceIncrease()], ids=["GRPO", "GRPOVI"])
    def test_the_policy_reads_the_template_once_and_a_function_gets_messages(
        self, folders, prompts, tmp_path, adjustment
    ):
        self.calls = []
        module = grpo(folders / "policy", self.brief, adjustment=adjustment)
        run = train(module, tmp_path / "run", 3, data=prompts)
        tokenizer = AutoTokenizer.from_pretrained(folders / "policy")
        for outcome, (given, completions, answers) in zip(run.outputs, self.calls, strict=True):
            rollout = outcome.rollout
            for p, number in enumerate(rollout.prompts.indices.tolist()):
                expected = tokenizer.apply_chat_template(
                    CONVERSATIONS[number], add_generation_prompt=True, return_dict=False
                )
                assert rollout.prompt_ids[p][rollout.prompt_mask[p]].tolist() == expected
                group = slice(p * module.group_size, (p + 1) * module.group_size)
                assert given[group] == [CONVERSATIONS[number]] * module.group_size
                assert answers[group] == [str(number)] * module.group_size
            assert completions == [[assistant(text)] for text in rollout.texts]

    def test_a_completion_ends_with_any_of_the_ends_and_with_the_turns_first(self, folders, prompts, tmp_path):
        self.calls = []
        run = train(grpo(folders / "policy", self.brief, group_size=16), tmp_path, 3, data=prompts)
        ends = {*AutoTokenizer.from_pretrained(folders / "policy").convert_tokens_to_ids(["<eos>", "<|end|>"])}
        seen = set()
        for outcome in run.outputs:
            for ids, cut in zip(completion_tokens(outcome), outcome.rollout.truncated.tolist(), strict=True):
                assert not ends & {*ids[:-1]} and (ids[-1] in ends) == (not cut)
                seen |= ends & {*ids}
        assert seen == ends, "too few completions to see each end"

    def test_reward_models_score_their_own_reading(self, folders, prompts, tmp_path):
        parts = [
            RewardModel(str(folders / "reward")),
            RewardModel(str(folders / "bare"), "bare", chat_template="plain"),
        ]
        run = train(grpo(folders / "policy", CompositeReward(parts)), tmp_path, 1, data=prompts)
        scored, rollout = run.outputs[0].scored, run.outputs[0].rollout
        for part in parts:
            tokenizer = AutoTokenizer.from_pretrained(part.path)
            model = AutoModelForSequenceClassification.from_pretrained(part.path)
            for i, (text, cut) in enumerate(zip(rollout.texts, rollout.truncated.tolist(), strict=True)):
                messages = rollout.prompts.contents[i // 4].messages
                if part.name == "bare":
                    words = " ".join([*(message["content"] for message in messages), text])
                    ids = tokenizer(f"{words}{'' if cut else ' <eos>'}")["input_ids"]
                else:
                    whole = tokenizer.apply_chat_template([*messages, assistant(text)], tokenize=False)
                    ids = tokenizer(whole.removesuffix(" <eos>") if cut else whole, add_special_tokens=False)[
                        "input_ids"
                    ]
                expected = model(torch.tensor([ids])).logits[0, 0]
                torch.testing.assert_close(scored.components[part.name][i], expected, atol=1e-5, rtol=1e-5)


ROWS = [
    {"messages": [user("a dog"), assistant("sees"), user("the fox"), assistant("runs")]},
    {"messages": [*CONVERSATIONS[1], assistant("it")]},
]


class TestFineTuning:
    @pytest.mark.parametrize("everything", [False, True])
    def test_the_loss_is_that_of_transformers_over_what_is_trained_on(self, folders, everything):
        module = SFTModule(PretrainedCausalLM(str(folders / "policy")), train_on_prompts=everything)
        module.configure_model()
        tokenizer = AutoTokenizer.from_pretrained(folders / "policy")
        model = AutoModelForCausalLM.from_pretrained(folders / "policy")
        total, count = 0.0, 0
        for row in ROWS:
            encoded = tokenizer.apply_chat_template(
                row["messages"], return_dict=True, return_assistant_tokens_mask=True
            )
            ids, said = torch.tensor([encoded["input_ids"]]), torch.tensor([encoded["assistant_masks"]])
            trained = 1 if everything else said
            labels = torch.where(torch.as_tensor(trained).bool(), ids, -100)
            number = int((labels[:, 1:] != -100).sum())
            total, count = total + model(ids, labels=labels).loss * number, count + number
        batch = {"prompt": [Conversation([])] * 2, "completion": [row["messages"] for row in ROWS]}
        found, tokens = module._loss(batch)
        assert int(tokens) == count
        torch.testing.assert_close(found, total, atol=1e-4, rtol=1e-5)


def run_config(folders, tmp_path, data, model):
    return {
        "seed_everything": 1,
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "accelerator": "cpu",
            "max_steps": 2,
            "val_check_interval": 2,
            "check_val_every_n_epoch": None,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
        },
        "model": model,
        "data": data,
    }


def described(name, **arguments):
    return {"class_path": f"grpovi_lightning.{name}", "init_args": arguments}


def fit(tmp_path, config):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["fit", "--config", str(file)]


def stages(folders, tmp_path):
    """Model and data of each kind of run, on rows of messages."""
    policy = described("models.PretrainedCausalLM", path=str(folders / "policy"))
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": messages} for messages in CONVERSATIONS])
    demonstrations = write_jsonl(tmp_path / "sft.jsonl", ROWS * 2)
    pairs = [
        {"chosen": [*messages, assistant("the fox")], "rejected": [*messages, assistant("a")]}
        for messages in CONVERSATIONS
    ]
    preferences = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    paired = {"train": preferences, "validation": preferences, "batch_size": 2}
    reward = described("rewards.RewardModel", path=str(folders / "reward"))
    short = {"max_completion_length": 6}
    return {
        "GRPO": (
            described("modules.GRPOModule", policy=policy, reward=reward, group_size=4, sampling=short),
            described("data.PromptDataModule", train=prompts, validation=prompts, prompts_per_step=2),
        ),
        "SFT": (
            described("modules.SFTModule", policy=policy),
            described("data.DemonstrationDataModule", train=demonstrations, batch_size=2),
        ),
        "reward model": (
            described("modules.RewardModelModule", path=str(folders / "bare"), chat_template="plain"),
            described("data.PreferenceDataModule", **paired),
        ),
        "one-pass reward": (
            described(
                "modules.OnePassRewardModule",
                features=described("rewards.online.FeatureModel", path=str(folders / "policy")),
            ),
            described("data.PreferenceDataModule", **paired),
        ),
    }


@pytest.mark.parametrize("kind", ["GRPO", "SFT", "reward model", "one-pass reward"])
def test_a_run_from_yaml_alone_exports_a_tokenizer_with_its_template(folders, tmp_path, kind):
    model, data = stages(folders, tmp_path)[kind]
    assert main(fit(tmp_path, run_config(folders, tmp_path, data, model))) == 0
    if kind != "one-pass reward":
        exported = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
        text = exported.apply_chat_template([user("a dog")], tokenize=False)
        assert text == ("a dog" if kind == "reward model" else "<s> <|user|> a dog <|end|>")


@pytest.mark.parametrize("kind", ["GRPO", "SFT", "reward model", "one-pass reward"])
def test_a_template_that_fails_is_told_with_the_row_before_anything_is_written(folders, tmp_path, capsys, kind):
    model, data = stages(folders, tmp_path)[kind]
    broken = tmp_path / "broken.jinja"
    broken.write_text(
        "{% if messages[-1]['content'] == 'a sad cat' or 'ten words' in messages[0]['content'] %}"
        "{{ raise_exception('too sad') }}{% endif %}<|user|>"
    )
    place = model["init_args"]
    for name in ("policy", "features"):
        place = place[name]["init_args"] if name in place else place
    place["chat_template"] = str(broken)
    told = refusal(capsys, *fit(tmp_path, run_config(folders, tmp_path, data, model)))
    assert re.search(r"train table, row 1: chat template of .* fails: .*too sad", told)
    assert not (tmp_path / "run" / "model").exists() and not list((tmp_path / "run").glob("**/*.ckpt"))


@pytest.mark.parametrize("kind", ["GRPO", "SFT", "one-pass reward"])
def test_a_held_out_set_with_the_name_of_a_scalar_is_refused(folders, tmp_path, capsys, kind):
    model, data = stages(folders, tmp_path)[kind]
    table = data["init_args"]["train"]
    data["init_args"]["validation"] = {"easy": table, "loss": table}
    told = refusal(capsys, *fit(tmp_path, run_config(folders, tmp_path, data, model)))
    assert "data.validation: got the name 'loss', expected a word" in told and not (tmp_path / "run").exists()

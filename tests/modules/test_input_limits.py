"""Rows that a model cannot read are refused by their number, before the first step."""

import json
import logging
import re

import pytest
import torch
from helpers.framed import framed_tokenizer
from helpers.tiny_checkpoints import WORDS
from models.tiny_models import language_model
from modules.grpo_runs import PROMPTS, graded, grpo, quiet, trainer
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    RobertaConfig,
    RobertaModel,
)

from grpovi_lightning.data import DemonstrationDataModule, PreferenceDataModule, Preparation, PromptDataModule
from grpovi_lightning.errors import UserError
from grpovi_lightning.models import NewCausalLM, PretrainedCausalLM
from grpovi_lightning.models.limits import position_limit
from grpovi_lightning.modules import OnePassRewardModule, RewardModelModule, SFTModule
from grpovi_lightning.rewards import CompositeReward, RewardFunction, RewardModel
from grpovi_lightning.rewards.online import FeatureModel, LinearReward

LONG = " ".join(["fox"] * 45)
SHORT = {"prompt": "write", "completion": "fox", "chosen": "a fox", "rejected": "the"}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def gpt2(tokenizer_folder, tmp_path_factory):
    """A folder of a model with 32 absolute positions."""
    folder = tmp_path_factory.mktemp("gpt2")
    language_model("gpt2", AutoTokenizer.from_pretrained(tokenizer_folder), n_positions=32).save_pretrained(folder)
    return str(folder)


def encoder(folder, positions=32, words=WORDS):
    """A BERT classifier with an encoder's tokenizer."""
    tokenizer = framed_tokenizer("[CLS]", "[SEP]", eos_token=None, cls_token="[CLS]", sep_token="[SEP]")
    config = BertConfig(vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=positions, **TINY)
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def table(folder, name, role, text):
    """A file of three short rows, and one with `text` in one column."""
    file = folder / f"{name}.jsonl"
    rows = [SHORT] * 3 + [SHORT | {role: text}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def never(*_, **__):
    pytest.fail("a step was made")


def refused(module, folder, data, match):
    module.training_step = module.validation_step = never
    with quiet(), pytest.raises(UserError, match=match) as raised:
        trainer(folder, 1, num_sanity_val_steps=0).fit(module, data)
    assert "\n" not in str(raised.value)


MODULES = {
    "sft": (DemonstrationDataModule, "completion", lambda folder: SFTModule(PretrainedCausalLM(folder))),
    "reward model": (PreferenceDataModule, "rejected", RewardModelModule),
    "one pass": (PreferenceDataModule, "chosen", lambda folder: OnePassRewardModule(FeatureModel(folder))),
    "grpo": (PromptDataModule, "prompt", lambda folder: grpo(folder)),
}


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("kind", MODULES)
def test_a_row_that_is_longer_than_the_models_positions_is_named(gpt2, tmp_path, kind, held_out):
    data_class, role, make = MODULES[kind]
    files = [table(tmp_path, "short", role, "fox"), table(tmp_path, "long", role, LONG)]
    data = data_class(*(files if held_out else files[::-1]), seed=1, **{_size(data_class): 2})
    name = "validation" if held_out else "train"
    refused(make(gpt2), tmp_path, data, rf"{name} table, row 3: got 4\d tokens.* has 32 positions; shorten or remove")


@pytest.mark.parametrize("kind", MODULES)
def test_rows_with_too_many_tokens_are_left_out_of_every_table(gpt2, tmp_path, kind, caplog):
    caplog.set_level(logging.INFO)
    data_class, role, make = MODULES[kind]
    long = table(tmp_path, "long", role, LONG)
    settings = {_size(data_class): 2, "preparation": Preparation(max_tokens=20)}
    data = data_class(long, validation={"a": table(tmp_path, "short", role, "fox"), "b": long}, seed=1, **settings)
    loaded(make(gpt2), tmp_path, data)
    assert {name: [row["_row"] for row in rows] for name, rows in data.tables.items()} == {
        "train": [0, 1, 2],
        "validation/a": [0, 1, 2, 3],
        "validation/b": [0, 1, 2],
    }
    said = [text for text in caplog.messages if "max_tokens" in text]
    assert len(said) == 3 and said[1].startswith("validation/a table: 0 of 4 rows left out")
    assert re.fullmatch(
        r"train table: 1 of 4 rows left out, of more than preparation.max_tokens 20 tokens; the longest has 4\d",
        said[0],
    )


@pytest.mark.parametrize("kind", MODULES)
def test_a_table_without_a_row_that_is_short_enough_is_refused(gpt2, tmp_path, kind):
    data_class, _, make = MODULES[kind]
    settings = {_size(data_class): 2, "preparation": Preparation(max_tokens=1)}
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps(dict.fromkeys(SHORT, "the fox") | {"rejected": "the fox ."}) + "\n")
    match = r"train table: none of its 1 rows has at most preparation.max_tokens 1 tokens, the shortest has \d; raise"
    refused(make(gpt2), tmp_path, data_class(str(file), seed=1, **settings), match)


def test_exactly_as_many_tokens_as_are_allowed_are_kept(policy_folder, tmp_path):
    module = grpo(policy_folder)
    module.policy = PretrainedCausalLM(str(policy_folder)).load()
    data = PromptDataModule(table(tmp_path, "t", "prompt", "the fox"), prompts_per_step=1, seed=1)
    longest = len(module.policy.prompt_tokens(["the fox"])[0])
    for limit, kept in ((longest, [0, 1, 2, 3]), (longest - 1, [0, 1, 2])):
        data = PromptDataModule(data.sources["train"], prompts_per_step=1, preparation=Preparation(max_tokens=limit))
        loaded(module, tmp_path, data)
        assert [row["_row"] for row in data.tables["train"]] == kept


def loaded(module, folder, data):
    """What a trainer does with module and data before the first step."""
    data.setup("fit")
    module._trainer = trainer(folder, 1)
    module._trainer.datamodule = data
    with quiet():
        module.configure_model()


def _size(data_class):
    return "prompts_per_step" if data_class is PromptDataModule else "batch_size"


def test_a_prompt_must_leave_room_for_the_completion(gpt2, tmp_path):
    prompt = " ".join(["fox"] * 25)
    data = PromptDataModule(table(tmp_path, "train", "prompt", prompt), prompts_per_step=2, seed=1)
    refused(grpo(gpt2), tmp_path, data, "row 3: got 25 tokens and 9 for the completion, .* or lower max_completion")


@pytest.mark.parametrize("kind", ["reward model", "features", "composite"])
def test_a_reward_that_cannot_read_a_prompt_is_refused_before_training(policy_folder, tmp_path, kind):
    folder = encoder(tmp_path / "encoder")
    features = LinearReward(FeatureModel(folder))
    parts = {"reward model": RewardModel(folder), "features": features}
    reward = parts.get(kind) or CompositeReward([features, RewardFunction(graded, name="gold")], [1.0, 0.0])
    data = PromptDataModule(table(tmp_path, "train", "prompt", LONG), prompts_per_step=2, seed=1)
    refused(
        grpo(policy_folder, reward), tmp_path, data, r"train table, row 3: got 46 tokens, but model .*encoder has 32"
    )


@pytest.mark.parametrize("make", [RewardModel, lambda folder: LinearReward(FeatureModel(folder))])
def test_a_completion_beyond_them_is_named_by_its_prompt(policy_folder, tmp_path, make):
    reward = make(encoder(tmp_path, positions=12))
    policy = PretrainedCausalLM(str(policy_folder)).load()
    reward.load(policy.tokenizer)
    module = grpo(policy_folder, reward)
    module.policy = policy
    from grpovi_lightning.structures import PromptBatch

    rollout = module.engine.generate(policy, PromptBatch(PROMPTS[:2], torch.arange(2), {}), 2, 1, 0)
    with pytest.raises(UserError, match=rf"completion of prompt '{PROMPTS[0]}': got 2\d tokens, .* has 12 positions"):
        reward.components(rollout)


def test_a_row_that_the_tables_do_not_show_is_named_too(gpt2):
    module = SFTModule(PretrainedCausalLM(gpt2))
    module.configure_model()
    with pytest.raises(UserError, match=r"prompt 'write' with its completion: got 47 tokens"):
        module.training_step({"prompt": ["write"], "completion": [LONG]}, 0)
    reward = RewardModelModule(gpt2)
    reward.configure_model()
    with pytest.raises(UserError, match=r"completion of prompt 'write': got 47 tokens"):
        reward.training_step({"prompt": ["write"], "chosen": ["fox"], "rejected": [LONG]}, 0)


def test_short_tables_are_not_tokenised(gpt2, tmp_path):
    module = SFTModule(PretrainedCausalLM(gpt2))
    module._rows = never
    data = DemonstrationDataModule(table(tmp_path, "train", "completion", "fox"), batch_size=2, seed=1)
    with quiet(), pytest.raises(pytest.fail.Exception):  # by the first step
        trainer(tmp_path, 1).fit(module, data)


def test_positions_that_start_behind_the_padding_token_are_fewer():
    config = RobertaConfig(vocab_size=20, max_position_embeddings=34, pad_token_id=1, **TINY)
    model = RobertaModel(config).eval()
    assert position_limit(model) == 32
    model(torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))


class TestTokensWithoutEmbedding:
    @pytest.fixture
    def padded(self, policy_folder, tmp_path):
        """The checkpoint with a padding token that was added to the tokenizer alone."""
        policy = PretrainedCausalLM(str(policy_folder)).load()
        policy.tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        policy.model.save_pretrained(tmp_path)
        policy.tokenizer.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text()) | {"pad_token_id": None}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    @pytest.mark.parametrize(
        "load",
        [
            lambda folder: PretrainedCausalLM(folder).load(),
            lambda folder: RewardModelModule(folder).configure_model(),
        ],
    )
    def test_padding_is_refused_with_its_name(self, padded, load):
        with pytest.raises(UserError, match=r"token '\[PAD\]' has the number 41, .* 0 to 40; resize them"):
            load(padded)

    def test_features_are_padded_otherwise(self, padded):
        features = FeatureModel(padded)
        features.load()
        assert features([[3, 4], [5]]).shape == (2, 32)

    def test_words_are_refused_and_special_tokens_where_a_text_names_them(self, policy_folder, tmp_path):
        policy = PretrainedCausalLM(str(policy_folder)).load()
        policy.tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
        policy.save_pretrained(tmp_path / "special")
        loaded = PretrainedCausalLM(str(tmp_path / "special")).load()
        with pytest.raises(UserError, match=r"prompt 'the <image>'.*: token '<image>' has the number 41"):
            loaded.encode_prompts(["the <image>"])

        policy.tokenizer.add_tokens(["giraffe"])
        policy.save_pretrained(tmp_path / "words")
        with pytest.raises(UserError, match=r"token 'giraffe' has the number 42"):
            PretrainedCausalLM(str(tmp_path / "words")).load()

    def test_a_tokenizer_smaller_than_the_embeddings_is_none_of_it(self, tokenizer_folder):
        llama = {"model_type": "llama", "vocab_size": 64, "num_key_value_heads": 2, **TINY}
        assert NewCausalLM(llama, str(tokenizer_folder)).load().limits.n_embeddings == 64

"""Reward models of many kinds: their heads found, replaced by new ones, or refused in one line."""

import json

import pytest
import torch
from helpers.tiny_checkpoints import save_reward_model
from models.tiny_classifiers import ENCODERS, bare_encoder, save_encoder
from models.tiny_models import language_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
)

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import load_classifier
from grpovi_lightning.models.classifiers import check_classifier, head_parameters, pools_last_token
from grpovi_lightning.models.published_heads import PublishedHead
from grpovi_lightning.rewards.models import classifier_scores

ROWS = [[3, 7, 8, 9, 4], [3, 10, 11, 4], [3, 12, 4]]


def edited(folder, file="config.json", **changes):
    content = json.loads((folder / file).read_text()) | changes
    (folder / file).write_text(json.dumps(content))
    return str(folder)


class TestANewHeadOnAnEncoder:
    @pytest.mark.parametrize("family", ENCODERS)
    def test_gives_every_text_the_reward_0_and_needs_no_seed(self, family, tmp_path):
        path = save_encoder(family, tmp_path)
        torch.manual_seed(1)
        first, _ = load_classifier(path, new_head=True)
        torch.manual_seed(2)
        second, _ = load_classifier(path, new_head=True)

        assert classifier_scores(first.eval(), ROWS).tolist() == [0.0] * 3
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())

    @pytest.mark.parametrize("family", ENCODERS)
    def test_takes_the_body_as_it_is(self, family, tmp_path):
        model, _ = load_classifier(save_encoder(family, tmp_path), new_head=True)
        body = {name: v for name, v in model.base_model.state_dict().items() if "pooler" not in name}
        loaded = AutoModel.from_pretrained(tmp_path).state_dict()
        assert body and all(torch.equal(value, loaded[name]) for name, value in body.items())

    @pytest.mark.parametrize("family", ENCODERS)
    def test_learns_to_tell_two_texts_apart(self, family, tmp_path):
        model, _ = load_classifier(save_encoder(family, tmp_path), new_head=True)
        optimizer = torch.optim.AdamW(head_parameters(model), lr=1e-2)
        for _ in range(5):
            optimizer.zero_grad()
            chosen, rejected = classifier_scores(model, ROWS[:2])
            (rejected - chosen).backward()
            optimizer.step()
        chosen, rejected = classifier_scores(model, ROWS[:2])
        assert float(chosen) > float(rejected) + 0.01

    def test_a_pooling_that_is_missing_starts_as_the_identity(self, tmp_path):
        model, _ = load_classifier(save_encoder("bert", tmp_path), new_head=True)
        states = model.bert(torch.tensor([ROWS[0]])).last_hidden_state
        pooled = model.bert(torch.tensor([ROWS[0]])).pooler_output
        torch.testing.assert_close(pooled, states[:, 0].tanh())

    def test_a_pooling_that_is_there_is_kept(self, tmp_path):
        model, _ = load_classifier(bare_encoder("bert", tmp_path), new_head=True)
        saved = AutoModel.from_pretrained(tmp_path).pooler.dense.weight
        assert torch.equal(model.bert.pooler.dense.weight, saved)
        assert not torch.equal(saved, torch.eye(32))

    def test_it_keeps_the_pooling_that_transformers_has(self, tmp_path):
        model, _ = load_classifier(save_encoder("bert", tmp_path), new_head=True)
        assert not pools_last_token(model)

    def test_encoders_with_a_decoder_are_refused(self, tiny_tokenizer, tmp_path):
        from transformers import BartConfig, BartModel

        config = BartConfig(
            vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16
        )
        BartModel(config).save_pretrained(tmp_path)
        tiny_tokenizer.save_pretrained(tmp_path)
        with pytest.raises(UserError, match="got an encoder with a decoder, expected a causal LM or an encoder"):
            load_classifier(str(tmp_path), new_head=True)

    def test_one_without_weights_of_the_body_is_still_refused(self, tmp_path):
        path = save_encoder("bert", tmp_path)
        weights = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if "layer.1" not in k}
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="weights are missing"):
            load_classifier(path, new_head=True)


class TestALabelOfSeveral:
    @pytest.fixture(params=["llama", "bert"])
    def three_labels(self, request, tokenizer_folder, tmp_path):
        names = {0: "NEGATIVE", 1: "NEUTRAL", 2: "POSITIVE"}
        labels = {"id2label": names, "label2id": {name: i for i, name in names.items()}}
        if request.param == "llama":
            return save_reward_model(tmp_path / "llama", tokenizer_folder, **labels)
        path = save_encoder("bert", tmp_path / "bert")
        config = BertConfig.from_pretrained(path, **labels)
        torch.manual_seed(5)
        BertForSequenceClassification(config).save_pretrained(path)
        return tmp_path / "bert"

    @staticmethod
    def three(folder):
        with torch.no_grad():
            model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
            return torch.cat([model(torch.tensor([row])).logits for row in ROWS])

    @pytest.fixture
    def folder(self, three_labels):
        if three_labels.name == "llama":  # the helper writes one label
            config = json.loads((three_labels / "config.json").read_text())
            weights = load_file(three_labels / "model.safetensors")
            weights["score.weight"] = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
            save_file(weights, three_labels / "model.safetensors", metadata={"format": "pt"})
            names = {"0": "NEGATIVE", "1": "NEUTRAL", "2": "POSITIVE"}
            config |= {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
            (three_labels / "config.json").write_text(json.dumps(config))
        return three_labels

    @pytest.mark.parametrize("label", [0, 1, "POSITIVE"])
    def test_by_number_or_name_its_logit_is_the_score(self, folder, label):
        model, _ = load_classifier(str(folder), published=PublishedHead(label=label))
        expected = self.three(folder)[:, 2 if label == "POSITIVE" else label]
        assert model.config.num_labels == 1 and expected.std() > 0.01
        torch.testing.assert_close(classifier_scores(model.eval(), ROWS).detach(), expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            (None, r"got 3 labels, expected 1; .* name one by RewardModel's `label`: NEGATIVE, NEUTRAL, POSITIVE"),
            ("GOOD", r"got label 'GOOD', expected one of NEGATIVE, NEUTRAL, POSITIVE"),
            (3, r"got label 3, expected one of NEGATIVE"),
            (-1, r"got label -1, expected one of NEGATIVE"),
        ],
    )
    def test_one_that_is_not_known_is_refused_before_loading(self, folder, label, message):
        with pytest.raises(UserError, match=message):
            check_classifier(str(folder), published=PublishedHead(label=label))

    def test_a_label_of_a_model_with_one_is_refused(self, reward_folder):
        with pytest.raises(UserError, match="got label 0 for a model with one label; leave it out"):
            check_classifier(str(reward_folder), published=PublishedHead(label=0))


class TestAHeadOfAnotherName:
    @pytest.fixture
    def value_head(self, policy_folder, tmp_path):
        """A checkpoint of a body with a layer `v_head.summary` of two outputs, each with a bias."""
        model = AutoModelForCausalLM.from_pretrained(policy_folder)
        weights = {f"model.{name}": value.clone() for name, value in model.model.state_dict().items()}
        generator = torch.Generator().manual_seed(3)
        weights["v_head.summary.weight"] = torch.randn(2, 32, generator=generator)
        weights["v_head.summary.bias"] = torch.tensor([0.5, -2.0])
        model.save_pretrained(tmp_path)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(policy_folder).save_pretrained(tmp_path)
        edited(tmp_path, architectures=["LlamaRewardModel"])
        return tmp_path

    @pytest.mark.parametrize("label", [0, 1])
    def test_scores_the_last_tokens_state_bias_included(self, value_head, label):
        model, _ = load_classifier(str(value_head), published=PublishedHead("v_head.summary", label))
        weights = load_file(value_head / "model.safetensors")
        body = AutoModel.from_pretrained(value_head)
        with torch.no_grad():
            states = torch.stack([body(torch.tensor([row])).last_hidden_state[0, -1] for row in ROWS])
        expected = states @ weights["v_head.summary.weight"][label] + weights["v_head.summary.bias"][label]
        torch.testing.assert_close(classifier_scores(model.eval(), ROWS).detach(), expected, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize(
        ("published", "message"),
        [
            (PublishedHead(), r"got LlamaRewardModel, expected a trained sequence classifier; .*: `head`"),
            (PublishedHead("score"), r"has no score\.weight; layers that may be it: v_head\.summary"),
            (PublishedHead("v_head.summary"), r"head v_head\.summary: got 2 labels, expected 1"),
            (PublishedHead("v_head.summary", "good"), r"got label 'good', expected one of 0 to 1"),
            (PublishedHead("model.norm"), r"model\.norm\.weight is no matrix"),
        ],
    )
    def test_one_that_cannot_be_read_is_refused_before_loading(self, value_head, published, message):
        with pytest.raises(UserError, match=message):
            check_classifier(str(value_head), published=published)

    def test_a_layer_of_another_width_is_refused(self, value_head):
        with pytest.raises(UserError, match=r"mlp.down_proj.weight reads 64 numbers, but .* gives it 32"):
            load_classifier(str(value_head), published=PublishedHead("model.layers.0.mlp.down_proj", 0))


class TestPadding:
    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_without_any_a_new_head_still_scores_batches(self, family, tiny_tokenizer, tmp_path):
        language_model(family, tiny_tokenizer).save_pretrained(tmp_path)
        edited(tmp_path, pad_token_id=None)
        edited(tmp_path, "tokenizer_config.json", pad_token=None)
        model, _ = load_classifier(str(tmp_path), new_head=True)
        torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(0))
        together = classifier_scores(model.eval(), ROWS)
        alone = torch.cat([classifier_scores(model, [row]) for row in ROWS])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)

    def test_neither_padding_nor_end_is_refused_for_a_published_decoder(self, tokenizer_folder, tmp_path):
        save_reward_model(tmp_path, tokenizer_folder)
        edited(tmp_path, pad_token_id=None, eos_token_id=None)
        edited(tmp_path, "tokenizer_config.json", pad_token=None, eos_token=None)
        with pytest.raises(UserError, match="neither a padding nor an end token is named"):
            load_classifier(str(tmp_path))

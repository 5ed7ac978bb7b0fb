import pytest
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from grpovi_lightning.errors import UserError
from grpovi_lightning.rollout import SamplingConfig


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("max_completion_length", 0, "at least 1"),
        ("temperature", 0.0, "a number above 0"),
        ("temperature", float("inf"), "a number above 0"),
        ("temperature", float("nan"), "a number above 0"),
        ("top_k", -1, "at least 0"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("min_p", 1.0, "at least 0 .* and below 1"),
        ("min_p", -0.1, "at least 0 .* and below 1"),
        ("repetition_penalty", 0.0, "a number above 0"),
        ("repetition_penalty", -1.0, "a number above 0"),
        ("repetition_penalty", float("inf"), "a number above 0"),
        ("repetition_penalty", float("nan"), "a number above 0"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_with_what_was_got_and_expected(name, value, expected):
    with pytest.raises(UserError, match=rf"sampling\.{name}: got {value}, expected {expected}"):
        SamplingConfig(**{name: value})


def test_settings_that_are_off_process_nothing():
    assert len(SamplingConfig().processors()) == 0


def test_processors_stand_in_the_order_of_transformers_own_generation():
    settings = {"repetition_penalty": 1.2, "temperature": 0.7, "top_k": 3, "top_p": 0.9, "min_p": 0.1}

    processors = SamplingConfig(**settings).processors()

    config = GenerationConfig(do_sample=True, **settings)
    own = GPT2LMHeadModel(GPT2Config(n_layer=0, n_embd=4, n_head=1, vocab_size=5))._get_logits_processor(config, 3)
    assert [type(processor) for processor in processors] == [type(processor) for processor in own]
    assert len(processors) == 5

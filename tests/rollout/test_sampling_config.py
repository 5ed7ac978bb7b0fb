import pytest

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
    ],
)
def test_a_setting_out_of_its_range_is_refused_with_what_was_got_and_expected(name, value, expected):
    with pytest.raises(UserError, match=rf"sampling\.{name}: got {value}, expected {expected}"):
        SamplingConfig(**{name: value})


def test_filters_that_are_off_do_not_exist():
    assert len(SamplingConfig().filters()) == 0
    assert len(SamplingConfig(top_k=3, top_p=0.9, min_p=0.1).filters()) == 3

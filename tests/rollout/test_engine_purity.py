import pytest
import torch
from helpers.threads import two_threads  # noqa: F401  applies to all tests here
from models.tiny_models import language_model

from grpovi_lightning.rollout import RolloutEngine, SamplingConfig
from grpovi_lightning.rollout.decoding import GroupDecoder
from grpovi_lightning.structures import PromptBatch

TEXTS = [
    "write about the red fox and the boat , happy , ten words",
    "the old house",
    "write about a dog",
    "sad",
    "the river runs near the small green tree and the cat sleeps in it",
    "a blue boat finds the fox",
]
ENGINE = RolloutEngine(SamplingConfig(max_completion_length=14))


def batch(numbers):
    return PromptBatch([TEXTS[i] for i in numbers], torch.tensor([100 + i for i in numbers]), {})


def completions(policy, numbers, group_size=4, seed=1, step=0, engine=ENGINE):
    """(prompt number, member) -> tokens, log-probabilities and whether it was cut."""
    rollout = engine.generate(policy, batch(numbers), group_size, seed, step)
    found = {}
    for row in range(len(numbers) * group_size):
        kept = rollout.completion_mask[row]
        tokens, logprobs = rollout.completion_ids[row][kept].tolist(), rollout.old_logprobs[row][kept]
        place = (numbers[row // group_size], row % group_size)
        found[place] = (tokens, logprobs, bool(rollout.truncated[row]), rollout.texts[row])
    return found


def assert_same(part, whole):
    for place, (tokens, logprobs, cut, text) in part.items():
        assert (tokens, cut, text) == (whole[place][0], *whole[place][2:]), place
        torch.testing.assert_close(logprobs, whole[place][1], atol=1e-5, rtol=0)


@pytest.fixture
def whole(policy):
    return completions(policy, range(6))


def test_the_completions_here_finish_at_many_different_lengths(whole):
    lengths = {len(tokens) for tokens, *_ in whole.values()}
    assert len(lengths) >= 5 and min(lengths) <= 2 and max(lengths) == 14


@pytest.mark.parametrize("number", range(6))
def test_a_prompt_alone_gets_the_completions_it_gets_in_a_batch(policy, whole, number):
    assert_same(completions(policy, [number]), whole)


@pytest.mark.parametrize("numbers", [[5, 3, 1], [4, 0, 2, 5, 1, 3], [0, 3]])
def test_other_neighbours_or_another_order_change_no_completion(policy, whole, numbers):
    assert_same(completions(policy, numbers), whole)


@pytest.mark.parametrize("group_size", [1, 2, 7])
def test_a_member_of_a_group_does_not_depend_on_the_size_of_the_group(policy, whole, group_size):
    other = completions(policy, range(6), group_size)

    assert_same({place: value for place, value in other.items() if place in whole}, whole)
    assert len(other) == 6 * group_size


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["dropped at once", "never dropped"])
def test_when_finished_rows_are_dropped_changes_nothing(policy, whole, share):
    engine = RolloutEngine(ENGINE.sampling, GroupDecoder(drop_share=share))

    assert_same(completions(policy, range(6), engine=engine), whole)


def test_a_longer_limit_only_continues_what_was_cut(policy, whole):
    longer = completions(policy, range(6), engine=RolloutEngine(SamplingConfig(max_completion_length=25)))

    for place, (tokens, _, cut, _) in whole.items():
        assert longer[place][0][: len(tokens)] == tokens
        assert cut or longer[place][0] == tokens


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma3_text"])
def test_other_architectures_are_as_independent_of_the_batch(family, tiny_tokenizer):
    policy = language_model(family, tiny_tokenizer)
    policy.end_token_ids = [1, 5, 11, 20, 33]

    assert_same(completions(policy, [3]), completions(policy, range(6)))


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 1}])
def test_another_seed_or_step_gives_other_completions(policy, whole, change):
    other = completions(policy, range(6), **change)

    same = [place for place in whole if other[place][0] == whole[place][0]]
    assert len(same) < len(whole) / 4


def test_the_same_text_under_another_number_gets_other_completions(policy):
    def tokens(number):
        prompts = PromptBatch([TEXTS[0]], torch.tensor([number]), {})
        return ENGINE.generate(policy, prompts, 8, 1, 0).completion_ids.tolist()

    drawn = [tokens(number) for number in (0, 1, 100, 101, 2**32 + 1)]
    assert all(drawn.count(one) == 1 for one in drawn)


def test_members_of_a_group_differ(whole):
    assert len({tuple(tokens) for (number, _), (tokens, *_) in whole.items() if number == 0}) == 4


def test_the_same_step_twice_gives_identical_bits(policy):
    first, second = (ENGINE.generate(policy, batch(range(6)), 4, 1, 0) for _ in range(2))

    for name in ("completion_ids", "completion_mask", "old_logprobs", "truncated"):
        assert torch.equal(getattr(first, name), getattr(second, name))


def test_sampling_neither_reads_nor_moves_the_global_generator(policy, whole):
    torch.manual_seed(77)
    before = torch.get_rng_state()

    assert_same(completions(policy, range(6)), whole)

    assert torch.equal(torch.get_rng_state(), before)

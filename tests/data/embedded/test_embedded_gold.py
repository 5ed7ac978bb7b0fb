import random
from dataclasses import fields
from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpovi_lightning.data.embedded import (
    GOLD_RANGE,
    GoldScore,
    TaskSize,
    gold_reward,
    parse,
    render,
    sample_instruction,
    score,
    write,
)
from grpovi_lightning.data.embedded.noise import NoisyWriter
from grpovi_lightning.data.embedded.samples import demonstrate
from grpovi_lightning.errors import UserError

PROMPT = "write about the red fox and the boat , happy , ten words :"
PERFECT = "the red fox sees a boat happily near the tree ."


def parts(completion: str, prompt: str = PROMPT) -> GoldScore:
    return score(parse(prompt), completion.split())


def reward(completion: str, prompt: str = PROMPT) -> float:
    return gold_reward([prompt], [completion])[0]


def test_a_text_that_does_all_that_is_asked_earns_one():
    assert reward(PERFECT) == pytest.approx(1.0)


def test_an_empty_text_earns_nothing():
    assert reward("") == 0.0


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("the red fox sees a boat .", 1.0),
        ("the fox sees a boat .", 0.75),  # half for the fox without its adjective
        ("the blue fox sees a red boat .", 0.75),  # the adjective must be right before its own noun
        ("the red tree sees a boat .", 0.5),
        ("the fox red sleeps .", 0.25),
        ("the tree sleeps .", 0.0),
    ],
)
def test_topics_count_whole_when_said_as_asked_and_half_without_their_adjective(completion: str, expected: float):
    assert parts(completion).topics == pytest.approx(expected)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("the fox sleeps happily .", 1.0),
        ("the fox sleeps .", 0.0),
        ("the fox sleeps sadly .", 0.0),
        ("the fox happily sleeps sadly .", 1 / 2),
        ("the fox happily sleeps sadly near the tree grimly .", 1 / 3),
    ],
)
def test_tone_wants_words_of_the_asked_tone_and_of_no_other(completion: str, expected: float):
    assert parts(completion).tone == pytest.approx(expected)


def test_long_texts_want_two_different_tone_words():
    prompt = "write about the fox , happy , sixteen words :"
    assert parts("the fox happily sleeps .", prompt).tone == pytest.approx(1 / 2)
    assert parts("the fox happily sleeps happily .", prompt).tone == pytest.approx(1 / 2)
    assert parts("the fox happily sleeps gladly .", prompt).tone == pytest.approx(1.0)


@pytest.mark.parametrize(("n_words", "distance"), [(10, 0), (9, 1), (11, 1), (5, 5), (20, 10)])
def test_length_falls_smoothly_with_the_distance_and_without_the_full_stop(n_words: int, distance: int):
    assert parts(" ".join(["the"] * n_words + ["."])).length == pytest.approx(exp(-distance / (2 + 10 / 8)))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("the fox sleeps .", 1.0),
        ("the fox happily sees a red boat gladly near the tree and a dog sleeps .", 1.0),
        ("the fox sleeps", 1.0),  # the missing full stop is the ending's business
        ("fox the sleeps .", 1 / 4),  # only the full stop after the verb stands where it may
        ("the fox and the boat .", 4 / 6),  # "and" and the full stop need a verb before them
        ("the fox sleeps sees a boat .", 6 / 7),  # one verb a clause: "sees" may not stand there
        ("the red blue fox sleeps .", 5 / 6),
        ("the fox sleeps happily gladly .", 5 / 6),
        ("the fox sleeps . the boat waits .", 6 / 8),  # nothing may follow a full stop; then "waits" is a second verb
        ("twenty about :", 0.0),
    ],
)
def test_grammar_is_the_share_of_tokens_that_may_stand_where_they_stand(completion: str, expected: float):
    assert parts(completion).grammar == pytest.approx(expected)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("the fox sleeps near the boat .", 1.0),  # articles, prepositions and conjunctions may be repeated
        # content: fox sleeps fox waits, 3 of 4 differ;
        # pairs: the-fox fox-sleeps sleeps-and the-fox fox-waits waits-stop, 5 of 6 differ
        ("the fox sleeps and the fox waits .", (3 / 4 * 5 / 6) ** 2),
        ("the fox sees a fox .", (2 / 3) ** 2),  # pairs: the-fox fox-sees sees-a a-fox fox-stop all differ
        ("the the the .", 0.0),
        ("fox fox fox fox", (1 / 4 * 1 / 3) ** 2),
    ],
)
def test_novelty_is_the_squared_share_of_different_content_words_and_pairs(completion: str, expected: float):
    assert parts(completion).novelty == pytest.approx(expected)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [("the fox sleeps .", 1.0), ("the fox sleeps", 0.0), ("the fox . sleeps .", 0.0), ("the fox . sleeps", 0.0)],
)
def test_the_ending_is_the_only_full_stop_at_the_end(completion: str, expected: float):
    assert parts(completion).ending == expected


def test_the_reward_is_content_times_form_by_the_documented_weights():
    found = parts("the fox sees a boat sadly")
    assert (found.topics, found.tone, found.grammar, found.novelty, found.ending) == (0.75, 0.0, 1.0, 1.0, 0.0)
    expected = (0.45 * 0.75 + 0.2 * 0.0 + 0.35 * exp(-4 / 3.25)) * (0.25 + 0.5)
    assert reward("the fox sees a boat sadly") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ("the red fox sees a lamp happily near the tree .", PERFECT),  # a missing topic is mentioned
        ("the blue fox sees a boat happily near the tree .", PERFECT),  # an asked adjective is put in its place
        ("the red fox sees a boat sadly near the tree .", PERFECT),  # the tone is mended
        ("the red fox sees a boat happily .", PERFECT),  # the length is mended
        ("the red fox sees a boat happily near the fox .", PERFECT),  # a repetition goes
        ("the red fox a sees boat happily near the tree .", PERFECT),  # the order of words is mended
        ("the red fox sees a boat happily near the tree", PERFECT),  # the full stop is set
        ("the red fox happily sees a boat sadly near the tree .", "the red fox happily sees a boat near the tree ."),
    ],
)
def test_mending_one_fault_raises_the_reward(worse: str, better: str):
    assert reward(worse) < reward(better)


def test_going_on_and_on_costs_more_and_more():
    texts = [PERFECT[:-2] + f"{' and a dog sleeps' * n} ." for n in range(5)]
    rewards = [reward(text) for text in texts]
    assert rewards == sorted(rewards, reverse=True) and len(set(rewards)) == 5


WORDS = (*TaskSize().lexicon().text_words(), "write", ":", "nonsense")


@given(st.lists(st.sampled_from(WORDS), max_size=40), st.integers(0, 10_000))
def test_every_part_and_the_reward_stay_in_their_range(words: list[str], seed: int):
    size = TaskSize()
    instruction = sample_instruction(size, size.lexicon(), random.Random(seed))
    found = score(instruction, words)
    assert all(0.0 <= getattr(found, field.name) <= 1.0 for field in fields(found))
    low, high = GOLD_RANGE
    assert low <= found.reward <= high + 1e-12
    assert gold_reward([render(instruction)], [" ".join(words)]) == [found.reward]


def test_the_reward_function_takes_what_trl_passes_and_reads_only_the_texts():
    plain = gold_reward([PROMPT, PROMPT], [PERFECT, "the fox ."])
    assert gold_reward(prompts=[PROMPT, PROMPT], completions=[PERFECT, "the fox ."], completion_ids=[[1], [2]],
                       tone=["sad", "sad"], topics=[[], []]) == plain  # fmt: skip


def test_unequal_numbers_of_prompts_and_completions_are_refused():
    with pytest.raises(UserError, match="got 2 prompts and 1 completions: expected one completion for each"):
        gold_reward([PROMPT, PROMPT], [PERFECT])


def test_the_rewards_of_eight_noisy_answers_to_one_prompt_hardly_tie():
    size, rng = TaskSize(), random.Random(0)
    lexicon = size.lexicon()
    writer, n_different = NoisyWriter(size, lexicon), []
    for _ in range(200):
        instruction = sample_instruction(size, lexicon, rng)
        n_different.append(len({round(demonstrate(instruction, writer, rng).gold.reward, 9) for _ in range(8)}))
    assert sum(n_different) / len(n_different) > 7.2


@pytest.mark.slow
def test_no_constant_completion_comes_near_what_reading_the_prompt_earns():
    size, rng = TaskSize(), random.Random(0)
    lexicon = size.lexicon()
    writer = NoisyWriter(size, lexicon)
    instructions = [sample_instruction(size, lexicon, rng) for _ in range(200)]

    def mean_reward(words: list[str]) -> float:
        return sum(score(instruction, words).reward for instruction in instructions) / len(instructions)

    candidates = [demonstrate(instruction, writer, rng).text.split() for instruction in instructions[:100]]
    candidates += [write(instruction, lexicon, rng) for instruction in instructions[:100]]
    best = max(candidates, key=mean_reward)
    start = highest = mean_reward(best)
    for _ in range(300):  # hill climbing over words and length
        words = list(best)
        place = rng.randrange(len(words))
        words[place : place + rng.randint(0, 2)] = rng.choices(lexicon.text_words(), k=rng.randint(0, 2))
        if words and (climbed := mean_reward(words)) > highest:
            best, highest = words, climbed
    answers = sorted(demonstrate(instruction, writer, rng).gold.reward for instruction in instructions)
    floor = answers[len(answers) // 20]
    reference = sum(score(i, write(i, lexicon, rng)).reward for i in instructions) / len(instructions)
    assert reference == pytest.approx(1.0)
    assert highest > start  # the search does search
    assert highest < floor + 0.3 * (reference - floor)
    assert highest < sum(answers) / len(answers)  # even noisy answers that read the prompt earn more

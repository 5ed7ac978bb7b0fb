import numpy as np
import pytest
import torch
from models.tiny_models import language_model
from transformers import Cache
from transformers.cache_utils import DynamicCache

from grpovi_lightning.models.passes import group_cache
from grpovi_lightning.models.passes.cache_layers import ExpandedLayer, PrefixLayer, UnsupportedAttentionError
from grpovi_lightning.models.passes.group_cache import GroupCache, attention_by_groups, group_attention

SCALE = 0.4


class Softmax:
    """Attention in float64 by its definition, one completion and one query head after the other."""

    def __init__(self, keys, values, mask, members):
        """Prompts: keys and values [P, K, S, D], mask [P, S]."""
        self.rows = []  # of (keys, values), each a list of [K, D], of real tokens only
        for prompt_keys, prompt_values, kept in zip(keys.double(), values.double(), mask, strict=True):
            history = [list(x[:, kept].transpose(0, 1).numpy()) for x in (prompt_keys, prompt_values)]
            self.rows += [([*history[0]], [*history[1]]) for _ in range(members)]

    def step(self, query, key, value, softcap=None, window=None):
        """[b, Q, 1, D], and [b, K, 1, D] of the newest token -> [b, 1, Q, D]."""
        found = []
        for (keys, values), q, k, v in zip(self.rows, query.double(), key.double(), value.double(), strict=True):
            keys.append(k[:, 0].numpy())
            values.append(v[:, 0].numpy())
            seen = slice(0 if window is None else max(0, len(keys) - window), None)
            found.append(
                [self._head(q[h, 0].numpy(), h, len(q), keys[seen], values[seen], softcap) for h in range(len(q))]
            )
        return np.array(found)[:, None]

    def _head(self, query, head, n_heads, keys, values, softcap):
        of = head // (n_heads // len(keys[0]))
        scores = np.array([SCALE * float(np.sum(query * key[of])) for key in keys])
        scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        return sum(w * value[of] for w, value in zip(weights / weights.sum(), values, strict=True))

    def keep(self, rows):
        self.rows = [([*self.rows[row][0]], [*self.rows[row][1]]) for row in rows]


class Decoding:
    """A cache of one layer and the reference, fed with the same random numbers."""

    def __init__(self, lengths=(3, 7, 5), members=4, heads=2, repeats=3, size=8, value_size=8, steps=12, static=False):
        self.generator = torch.Generator().manual_seed(5)
        self.heads, self.repeats, self.size, self.value_size = heads, repeats, size, value_size
        width = max(lengths)
        prompts = len(lengths)
        keys, values = self.normal(prompts, heads, width, size), self.normal(prompts, heads, width, value_size)
        self.mask = torch.tensor([[i >= width - length for i in range(width)] for length in lengths])
        self.prefix = PrefixLayer()
        # What a model leaves at padding is anything; here it would be seen from afar.
        self.prefix.update(*(torch.where(self.mask[:, None, :, None], x, 50.0) for x in (keys, values)))
        self.cache = GroupCache(Cache(layers=[self.prefix]), self.mask, members, steps, static=static)
        self.reference = Softmax(keys, values, self.mask, members)
        self.n_rows = prompts * members

    def normal(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def projected(self, heads, size):
        """[b, heads, 1, size] as a model hands it over: a part of one projection, with the axes swapped."""
        both = self.normal(self.n_rows, 1, 3 * heads * size)
        return both[..., : heads * size].view(self.n_rows, 1, heads, size).transpose(1, 2)

    def step(self, **settings):
        """Attention of the newest token, found and expected."""
        query = 2 * self.projected(self.heads * self.repeats, self.size)
        key, value = self.projected(self.heads, self.size), self.projected(self.heads, self.value_size)
        layer = self.cache.layers[0]
        passed, _ = layer.update(key, value)
        found = layer.attend(query, passed, self.cache.mask, SCALE, settings.get("softcap"), settings.get("window"))
        self.cache.advance()
        return found, self.reference.step(query, key, value, **settings)

    def keep(self, groups, members):
        """`members` [P', G'] of the groups; the places count what is there now."""
        size = self.n_rows // len(self.cache.layers[0].keys)
        self.cache.keep(torch.tensor(groups), torch.tensor(members))
        self.reference.keep(
            [group * size + member for group, row in zip(groups, members, strict=True) for member in row]
        )
        self.n_rows = len(groups) * len(members[0])


def assert_equal(found_and_expected):
    found, expected = found_and_expected
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.double().numpy(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("softcap", [None, 1.5], ids=["", "softcap"])
@pytest.mark.parametrize("window", [None, 1, 2, 5, 9, 100])
@pytest.mark.parametrize("lengths", [(3, 7, 5), (6, 6), (1, 1)], ids=["padded", "even", "one token"])
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_attention_by_groups_is_the_softmax_over_prompt_and_completion(static, lengths, window, softcap):
    decoding = Decoding(lengths, static=static)
    for _ in range(12):
        assert_equal(decoding.step(window=window, softcap=softcap))


@pytest.mark.parametrize(("heads", "repeats"), [(1, 4), (4, 1), (2, 2)], ids=["one key head", "no sharing", "grouped"])
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_query_heads_share_the_key_heads_in_the_order_of_transformers(static, heads, repeats):
    decoding = Decoding(heads=heads, repeats=repeats, static=static)
    for _ in range(3):
        assert_equal(decoding.step())


@pytest.mark.parametrize(("lengths", "members"), [((4, 2), 1), ((4,), 3), ((4,), 1)])
@pytest.mark.parametrize(("heads", "repeats"), [(4, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_one_group_or_one_member_is_enough(static, lengths, members, heads, repeats):
    decoding = Decoding(lengths, members=members, heads=heads, repeats=repeats, static=static)
    for _ in range(3):
        assert_equal(decoding.step())


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_values_may_be_of_another_size_than_keys(static):
    decoding = Decoding(value_size=6, static=static)
    for _ in range(3):
        assert_equal(decoding.step())


@pytest.mark.parametrize("window", [None, 6])
def test_what_is_kept_goes_on_with_its_own_history(window):
    decoding = Decoding(lengths=(3, 7, 5, 2), members=4)
    for _ in range(3):
        assert_equal(decoding.step(window=window))
    decoding.keep([0, 2, 3], [[2, 0, 1], [1, 3, 0], [3, 2, 1]])
    for _ in range(4):
        assert_equal(decoding.step(window=window))
    decoding.keep([1], [[2]])
    for _ in range(5):
        assert_equal(decoding.step(window=window))


def test_keeping_everything_changes_nothing():
    decoding, other = Decoding(), Decoding()
    for _ in range(2):
        decoding.step(), other.step()
    decoding.keep([0, 1, 2], [[0, 1, 2, 3]] * 3)
    for _ in range(2):
        assert torch.equal(decoding.step()[0], other.step()[0])


@pytest.mark.parametrize("static", [False, True], ids=["growing", "static"])
def test_prompts_are_never_copied_and_the_memory_of_completions_never_moves(static):
    decoding = Decoding(static=static)
    layer = decoding.cache.layers[0]
    storage = layer.keys.data_ptr()
    for _ in range(12):
        decoding.step()

    assert layer.prompt_keys.data_ptr() == decoding.prefix.keys.data_ptr()
    assert layer.prompt_values.data_ptr() == decoding.prefix.values.data_ptr()
    assert layer.keys.data_ptr() == storage
    assert static or layer.get_seq_length() == 7 + 12


def test_dropping_rows_frees_their_memory():
    decoding = Decoding(members=4)
    decoding.step()
    before = decoding.cache.layers[0].keys.numel()

    decoding.keep([1], [[0, 2]])

    assert decoding.cache.layers[0].keys.numel() * 6 == before


def test_half_precision_is_right_to_its_own_rounding():
    decoding = Decoding()
    layer = decoding.cache.layers[0]
    for name in ("keys", "values", "prompt_keys", "prompt_values"):
        setattr(layer, name, getattr(layer, name).bfloat16())
    key, value = decoding.normal(12, 2, 1, 8).bfloat16(), decoding.normal(12, 2, 1, 8).bfloat16()
    query = decoding.normal(12, 6, 1, 8).bfloat16()
    layer.update(key, value)

    found = layer.attend(query, key, decoding.cache.mask.bfloat16(), SCALE, None, None)

    assert found.dtype == torch.bfloat16
    expected = decoding.reference.step(query, key, value)
    np.testing.assert_allclose(found.double().numpy(), expected, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("times", [1, 3])
def test_an_expanded_layer_is_each_prompt_before_each_of_its_completions(times):
    generator = torch.Generator().manual_seed(1)
    prefix, library = PrefixLayer(), DynamicCache()
    prompts = [torch.randn(2, 3, 5, 4, generator=generator, requires_grad=True) for _ in range(2)]
    completions = [torch.randn(2 * times, 3, 6, 4, generator=generator) for _ in range(2)]
    prefix.update(*prompts)
    library.update(*(x.detach() for x in prompts), 0)
    library.batch_repeat_interleave(times)

    keys, values = ExpandedLayer(prefix, times).update(*completions)

    expected = library.update(*completions, 0)
    assert torch.equal(keys, expected[0]) and torch.equal(values, expected[1])
    (keys.sum() + 2 * values.sum()).backward()
    assert prompts[0].grad.unique().tolist() == [times] and prompts[1].grad.unique().tolist() == [2 * times]


class Module(torch.nn.Module):
    layer_idx = 0


class Model:
    """As much of a model as `attention_by_groups` touches."""

    class config:
        _attn_implementation = "sdpa"


def called(decoding, queries=1, **settings):
    key, value = decoding.normal(12, 2, queries, 8), decoding.normal(12, 2, queries, 8)
    query = decoding.normal(12, 6, queries, 8)
    if queries == 1:
        decoding.cache.layers[0].update(key, value)
    with attention_by_groups(Model, decoding.cache):
        return group_attention(Module(), query, key, value, settings.pop("mask", None), **settings)


def test_what_a_model_asks_beyond_scores_cap_and_window_is_refused():
    for settings in (
        {"mask": torch.zeros(1)},
        {"s_aux": torch.zeros(6)},
        {"dropout": 0.1},
        {"position_bias": torch.zeros(1)},
        {"queries": 2},
    ):
        with pytest.raises(UnsupportedAttentionError):
            called(Decoding(), **settings)
    output, weights = called(Decoding(), dropout=0.0, is_causal=True, position_ids=torch.zeros(1), s_aux=None)
    assert output.shape == (12, 1, 6, 8) and weights is None


def test_keys_that_are_changed_after_they_were_cached_are_noticed():
    decoding = Decoding()
    key = decoding.normal(12, 2, 1, 8)
    decoding.cache.layers[0].update(key, key)

    with pytest.raises(UnsupportedAttentionError, match="changes keys after"):
        decoding.cache.layers[0].attend(decoding.normal(12, 6, 1, 8), key * 1.0, None, SCALE, None, None)


def test_outside_of_group_decoding_the_attention_is_refused():
    with pytest.raises(UnsupportedAttentionError, match="outside of group decoding"):
        group_attention(Module(), *(torch.zeros(1, 1, 1, 1) for _ in range(3)), None)


def test_the_models_own_attention_is_back_after_an_error():
    with pytest.raises(UnsupportedAttentionError):
        called(Decoding(), dropout=0.5)

    assert Model.config._attn_implementation == "sdpa"
    with pytest.raises(UnsupportedAttentionError, match="outside"):
        group_attention(Module(), *(torch.zeros(1, 1, 1, 1) for _ in range(3)), None)


def test_a_cache_inside_another_ones_decoding_leaves_that_one_in_place():
    outer, inner = Decoding(), Decoding((4,), members=2)
    with attention_by_groups(Model, outer.cache):
        with attention_by_groups(Model, inner.cache):
            assert group_cache._active.cache is inner.cache
        assert group_cache._active.cache is outer.cache
        assert Model.config._attn_implementation == group_cache.GROUP_ATTENTION
        with pytest.raises(KeyboardInterrupt), attention_by_groups(Model, inner.cache):
            raise KeyboardInterrupt
        assert group_cache._active.cache is outer.cache
        assert Model.config._attn_implementation == group_cache.GROUP_ATTENTION

    assert group_cache._active.cache is None
    assert Model.config._attn_implementation == "sdpa"


def test_a_token_decoded_into_another_cache_in_the_middle_of_a_pass_changes_nothing(tiny_tokenizer):
    policy = language_model("llama", tiny_tokenizer)
    passes, ids, mask = policy.passes, torch.tensor([[5, 9, 7]]), torch.ones(1, 3, dtype=torch.bool)
    caches = [passes.start_groups(ids, mask, 2, 4)[1] for _ in range(4)]

    def logits(token, cache):
        return passes.next_logits(torch.full((2,), token), torch.full((2,), 3), cache)

    expected = [logits(4, caches[0]), logits(8, caches[1])]
    inner = []

    def interrupt(*_):
        hook.remove()
        inner.append(logits(8, caches[3]))

    hook = policy.model.model.layers[1].self_attn.register_forward_pre_hook(interrupt)
    found = logits(4, caches[2])

    assert torch.equal(found, expected[0]) and torch.equal(inner[0], expected[1])

"""Policies from a GGUF file: one that the package gguf writes here, of a random Llama."""

import importlib.util
import shutil
import sys

import pytest
import torch
from tiny_models import CONFIGS
from transformers import AutoConfig, AutoModelForCausalLM

from grpovi_lightning.errors import UserError
from grpovi_lightning.models import LoRA, PretrainedCausalLM

IDS = torch.arange(3, 21)[None]
FILE = "tiny.gguf"
HAS_GGUF = importlib.util.find_spec("gguf") is not None
written_file = pytest.mark.skipif(not HAS_GGUF, reason="the package gguf, which writes and reads the file, is missing")


def tokens():
    """256 bytes as GPT-2 writes them, a merge, and the end."""
    from tokenizers.pre_tokenizers import ByteLevel

    return [*sorted(ByteLevel.alphabet()), "th", "<|endoftext|>"]


def llama():
    config = AutoConfig.for_model("llama", vocab_size=len(tokens()), **CONFIGS["llama"] | {"bos_token_id": None})
    config.initializer_range = 0.2
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return AutoModelForCausalLM.from_config(config).eval()


def interleaved(weights, heads):
    """Rows in the order of llama.cpp, which turns neighbouring numbers of a head together."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    import gguf

    path = tmp_path_factory.mktemp("gguf") / FILE
    model, config = llama(), llama().config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens())
    writer.add_token_merges(["t h"])
    writer.add_token_types([1] * (len(tokens()) - 1) + [3])
    for add in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        add(len(tokens()) - 1)
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for name, ours in gguf_names(config.num_hidden_layers).items():
        weights = model.state_dict()[ours].numpy()
        kind = ours.rpartition("self_attn.")[2][0]
        writer.add_tensor(name, interleaved(weights, heads[kind]) if "self_attn" in ours and kind in heads else weights)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    return path


def gguf_names(layers):
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    parts |= {
        f"attn_{ours}": f"self_attn.{theirs}"
        for ours, theirs in zip("qkv", ("q_proj", "k_proj", "v_proj"), strict=True)
    }
    parts |= {"attn_output": "self_attn.o_proj"} | {
        f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")
    }
    names |= {f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for i in range(layers) for ours, theirs in parts.items()}
    return {f"{ours}.weight": f"{theirs}.weight" for ours, theirs in names.items()}


@written_file
def test_the_weights_are_those_of_the_model_that_was_written_in_the_dtype_asked_for(file):
    policy = PretrainedCausalLM(str(file.parent), gguf_file=FILE).load()
    with torch.no_grad():
        torch.testing.assert_close(policy.model(IDS).logits, llama()(IDS).logits, atol=1e-5, rtol=0)
    half = PretrainedCausalLM(str(file.parent), gguf_file=FILE, dtype="bfloat16").load()
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert policy.encode(["the"]) == [[tokens().index("th"), tokens().index("e")]]
    assert policy.end_token_ids == [len(tokens()) - 1]
    assert policy.limits.positions == 64


@written_file
@pytest.mark.parametrize("lora", [None, LoRA(r=4)], ids=["whole", "adapted"])
def test_a_trained_policy_is_written_as_a_plain_checkpoint(file, tmp_path, lora):
    policy = PretrainedCausalLM(str(file.parent), gguf_file=FILE, lora=lora).load()
    with torch.no_grad():
        for weights in policy.parameters():
            if weights.requires_grad:
                weights.add_(torch.linspace(-0.1, 0.1, weights.numel()).view_as(weights))
    policy.save_pretrained(tmp_path / "model")

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")

    assert not hasattr(plain.config, "quantization_config")
    with torch.no_grad():
        expected = policy.model(IDS).logits
        torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-4, rtol=0)
        assert not torch.allclose(expected, llama()(IDS).logits, atol=1e-2)
    assert PretrainedCausalLM(str(tmp_path / "model")).load().encode(["the"]) == policy.encode(["the"])


@written_file
@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("other.gguf", lambda f: None, r"no such file in .*; there is tiny\.gguf"),
        (FILE, lambda f: f.write_bytes(b"version https://git-lfs"), "not a GGUF file; expected one that begins with"),
        (FILE, lambda f: f.write_bytes(f.read_bytes()[:200]), "cannot be loaded"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(file, tmp_path, name, spoil, message):
    shutil.copy(file, tmp_path / FILE)
    spoil(tmp_path / FILE)
    with pytest.raises(UserError, match=message) as raised:
        PretrainedCausalLM(str(tmp_path), gguf_file=name).load()
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


def test_without_the_package_that_reads_it_a_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"gguf_file m\.gguf: the package gguf, .*; run pip install .*gguf"):
        PretrainedCausalLM(str(tmp_path), gguf_file="m.gguf").check()

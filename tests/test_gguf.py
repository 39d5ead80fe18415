"""The embedded GGUF file against transformers' reading of it, and broken files."""

import json
from pathlib import Path
from typing import Any

from afm_mlx.checkpoint import Checkpoint, load
from afm_mlx.errors import ModelError
from afm_mlx.gguf import GGUF
from afm_mlx.tokenizer import Message
from tests.conftest import number

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.generate import generate_step

REFERENCE: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "smollm2_reference.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def checkpoint(gguf_path: Path) -> Checkpoint:
    return load(str(gguf_path))


@pytest.mark.slow
def test_weights_equal_transformers(gguf_path: Path) -> None:
    weights = GGUF(gguf_path).weights()
    for name, expected in REFERENCE["weights"].items():
        found = weights[name]
        assert list(found.shape) == expected["shape"]
        assert found.sum(dtype=np.float64) == pytest.approx(expected["sum"], abs=1e-6)
        if expected["row100"]:  # the row permutation of q and k shows here
            np.testing.assert_array_equal(found[100, :8], np.float32(expected["row100"]))


@pytest.mark.slow
def test_logits_equal_transformers(checkpoint: Checkpoint) -> None:
    logits = checkpoint.model(mx.array([REFERENCE["logits"]["ids"]]))[0, -1].astype(mx.float32)
    for token, value, _ in REFERENCE["logits"]["top10"]:
        assert number(logits[token]) == pytest.approx(value, abs=2e-3)
    total = number(mx.logsumexp(logits))
    assert total == pytest.approx(REFERENCE["logits"]["logsumexp"], abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", [0, 2], ids=["capital", "summary"])
def test_greedy_answer_equals_transformers(checkpoint: Checkpoint, case: int) -> None:
    expected = REFERENCE["greedy"][case]
    steps = generate_step(
        mx.array(expected["prompt_ids"]),
        checkpoint.model,
        max_tokens=len(expected["output_ids"]),
    )
    assert [int(token) for token, _ in steps] == expected["output_ids"]


@pytest.mark.slow
def test_tokens_equal_llama_cpp(checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer
    for case in REFERENCE["tokens"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        with_special = tokenizer.backend.encode(case["text"], add_special_tokens=False).ids
        assert with_special == case["with_special"], case["text"]


@pytest.mark.slow
def test_chat_template_equals_transformers(checkpoint: Checkpoint) -> None:
    for case in REFERENCE["chat"]:
        messages = [Message(m["role"], m["content"]) for m in case["messages"]]
        found = checkpoint.tokenizer.chat(messages, generate=case["add_generation_prompt"])
        assert found == case["ids"]


def test_text_is_no_gguf(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_text("hello")
    with pytest.raises(ModelError, match="no readable GGUF file .*download it again"):
        load(str(file))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1000, 1_000_000, 50_000_000])
def test_cut_short(gguf_path: Path, tmp_path: Path, size: int) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_path.read_bytes()[:size])
    with pytest.raises(ModelError, match="download it again"):
        load(str(file))


def write_gguf(file: Path, architecture: str, **metadata: Any) -> None:
    mx.save_gguf(
        str(file),
        {"token_embd.weight": mx.zeros((4, 4))},
        {"general.architecture": architecture, **metadata},
    )


def test_another_architecture(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, "qwen3")
    with pytest.raises(ModelError, match="architecture 'qwen3': only llama can be read"):
        load(str(file))


def test_missing_metadata(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, "llama")
    with pytest.raises(ModelError, match="lacks the metadata llama.attention.head_count"):
        load(str(file))


def test_scaled_rope_is_refused(tmp_path: Path) -> None:
    # Llama 3 files carry rope_freqs; ignoring them would give wrong answers without a word.
    file = tmp_path / "model.gguf"
    write_gguf(
        file,
        "llama",
        **{
            "llama.attention.head_count": mx.array(1),
            "llama.embedding_length": mx.array(4),
            "llama.rope.scaling.type": "linear",
        },
    )
    with pytest.raises(ModelError, match="scales its RoPE"):
        load(str(file))

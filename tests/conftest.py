"""Small real models for the tests: random weights, a byte-level tokenizer, a chat template."""

import os
from collections.abc import Iterator
from pathlib import Path

import afm_mlx  # noqa: F401 - loads the BLAS before MLX
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.engine import Engine
from afm_mlx.errors import ModelError
from afm_mlx.hub import embedded
from afm_mlx.model import PRESETS, Model, named_weights
from afm_mlx.model_args import ModelArgs
from afm_mlx.tokenizer import Tokenizer

import mlx.core as mx
import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    """One token per byte, after three special tokens."""
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    return Tokenizer.from_backend(
        backend, template, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )


def number(x: mx.array) -> float:
    """The value of an array that holds one real number."""
    value = x.item()
    assert not isinstance(value, complex)
    return float(value)


def random_model(args: ModelArgs, seed: int = 0) -> Model:
    """A float32 model with random weights, strong enough in the layers that greedy answers
    vary (small ones would repeat the last token, which the tied embeddings favour)."""
    mx.random.seed(seed)
    model = Model(args)
    weights = named_weights(model)
    model.load_weights([(k, v * (4 if "proj" in k else 1)) for k, v in weights])
    model.eval()
    mx.eval(model.parameters())
    return model


@pytest.fixture
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture
def model() -> Model:
    return random_model(PRESETS["tiny"])


def tiny_checkpoint() -> Checkpoint:
    return Checkpoint("tiny", Path("tiny"), random_model(PRESETS["tiny"]), tiny_tokenizer())


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(tiny_checkpoint) as engine:
        yield engine


@pytest.fixture(scope="session")
def gguf_path() -> Path:
    """The embedded default's file; ``uv run pytest`` installs it."""
    try:
        return embedded()
    except ModelError as error:
        if os.environ.get("CI"):  # there its absence is a broken install
            raise
        pytest.skip(str(error))

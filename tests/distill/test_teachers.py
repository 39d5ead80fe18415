"""Teachers of several kinds give the same logits in parts as whole."""

from pathlib import Path
from typing import Any

from afm_mlx import checkpoint
from afm_mlx.data.packing import Batch, PackedCache
from afm_mlx.distill import teachers
from afm_mlx.errors import InputError, ModelError
from afm_mlx.model import PRESETS
from tests.conftest import random_model, tiny_tokenizer

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models import gemma2, llama, qwen3
from mlx_lm.utils import save_config, save_model


def batch() -> Batch:
    tokens = np.random.default_rng(0).integers(3, 259, (2, 12)).astype(np.int32)
    segments = np.array([[1] * 7 + [2] * 5, [1] * 10 + [0] * 2], np.int32)
    return Batch(tokens, segments, segments > 0, np.array([0, 1]))


def logits(teacher: teachers.Teacher) -> np.ndarray[Any, Any]:
    states = teacher.states(batch())
    return np.array(teacher.head(states.reshape(-1, states.shape[-1])))


def peer(kind: str) -> Any:
    """A tiny model of one of mlx-lm's own classes."""
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-5,
        "vocab_size": 259,
        "head_dim": 16,
    }
    mx.random.seed(1)
    if kind == "gemma2":  # caps its logits, so trunk and embeddings alone are not the model
        model: Any = gemma2.Model(gemma2.ModelArgs(model_type="gemma2", **common))
        model.model.embed_tokens.weight = model.model.embed_tokens.weight * 100
        return model
    if kind == "qwen3":
        more = {"max_position_embeddings": 99, "rope_theta": 1e4, "tie_word_embeddings": True}
        return qwen3.Model(qwen3.ModelArgs(model_type="qwen3", **common, **more))
    return llama.Model(
        llama.ModelArgs(model_type="llama", tie_word_embeddings=kind == "tied", **common)
    )


@pytest.mark.parametrize("kind", ["tied", "untied", "qwen3", "gemma2"])
def test_parts_equal_the_whole(kind: str) -> None:
    model = peer(kind)
    rows = [  # row by row: mlx-lm's gemma takes no mask that differs within a batch
        model(mx.array(batch().tokens[i : i + 1]), [PackedCache(batch().segments[i : i + 1])] * 2)
        for i in (0, 1)
    ]
    wanted = np.array(mx.concatenate(rows)).reshape(-1, 259)
    teacher = teachers.wrap(kind, model, tiny_tokenizer())
    assert np.allclose(logits(teacher), wanted, atol=1e-5)
    assert (teacher.trunk is model) == (kind == "gemma2")


def test_states_of_every_layer_are_seen() -> None:
    model = random_model(PRESETS["tiny"])
    teacher = teachers.wrap("tiny", model, tiny_tokenizer())
    theirs: list[mx.array] = []
    ours: list[mx.array] = []
    out = teacher.states(batch(), theirs)
    model.model(mx.array(batch().tokens), [PackedCache(batch().segments)] * 4, seen=ours)
    assert len(theirs) == len(ours) == 4
    assert all(mx.array_equal(a, b) for a, b in zip(theirs, ours, strict=True))
    assert mx.array_equal(out, teacher.states(batch()))  # nothing is left behind


def test_a_quantised_model_of_the_hub_teaches(tmp_path: Path) -> None:
    """mlx-lm's folder with a quantization entry: our own loader cannot read it."""
    model = peer("tied")
    nn.quantize(model, group_size=32, bits=4)
    save_model(tmp_path, model)
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "vocab_size": 259,
        "tie_word_embeddings": True,
        "quantization": {"group_size": 32, "bits": 4},
    }
    save_config(config, tmp_path / "config.json")
    tiny_tokenizer().save(tmp_path)
    teacher = teachers.load(str(tmp_path))
    cache: list[Any] = [PackedCache(batch().segments)] * 2
    wanted = model(mx.array(batch().tokens), cache)
    assert np.allclose(logits(teacher), np.array(wanted).reshape(-1, 259), atol=1e-4)


def test_our_own_folder_teaches(tmp_path: Path) -> None:
    model = random_model(PRESETS["tiny"])
    checkpoint.save(tmp_path / "tiny", model, tiny_tokenizer(), base="none")
    teacher = teachers.load(str(tmp_path / "tiny"))
    cache: list[Any] = [PackedCache(batch().segments)] * 4
    wanted = model(mx.array(batch().tokens), cache)
    assert np.allclose(logits(teacher), np.array(wanted).reshape(-1, 259), atol=1e-4)


def test_an_unreadable_teacher(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing-known"}')
    with pytest.raises(ModelError, match="choose another"):
        teachers.load(str(tmp_path))


def test_a_committee_mixes_probabilities() -> None:
    members = [
        teachers.wrap(str(i), random_model(PRESETS["tiny"], i), tiny_tokenizer()) for i in (0, 1)
    ]
    committee = teachers.Committee(tuple(members), (3.0, 1.0))
    found = np.exp(np.array(committee.log_probabilities(committee.states(batch()))))
    wanted = sum(
        w * np.array(mx.softmax(mx.array(logits(m)), -1))
        for w, m in zip((0.75, 0.25), members, strict=True)
    )
    assert np.allclose(found, wanted, atol=1e-5)
    alone = committee.heads_only()
    assert mx.array_equal(
        alone.log_probabilities(committee.states(batch())),
        committee.log_probabilities(committee.states(batch())),
    )


def test_a_committee_speaks_one_language() -> None:
    from tokenizers import AddedToken

    other = tiny_tokenizer()
    other.backend.add_tokens([AddedToken("zebra")])
    first = teachers.wrap("a", random_model(PRESETS["tiny"]), tiny_tokenizer())
    second = teachers.wrap("b", random_model(PRESETS["tiny"]), other)
    with pytest.raises(InputError, match="different vocabularies"):
        teachers.Committee((first, second))
    with pytest.raises(InputError, match="one weight"):
        teachers.Committee((first,), (1.0, 2.0))

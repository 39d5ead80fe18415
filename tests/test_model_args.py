"""Shapes read from a ``config.json``, and those that are refused."""

from typing import Any

from afm_mlx.errors import ModelError
from afm_mlx.model import PRESETS
from afm_mlx.model_args import ModelArgs

import pytest

TINY = PRESETS["tiny"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "use a divisor"),
        ({"num_kv_reuse_layers": 4}, "at least one regular layer"),
        ({"intermediate_size": [1, 2]}, "one width per layer"),
        ({"attention_bias": True}, "biases are not supported"),
        ({"num_attention_heads": 0}, "num_attention_heads must be a number above 0"),
        ({"hidden_size": "128"}, "hidden_size must be a number above 0"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object"),
    ],
)
def test_bad_shapes_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        ModelArgs.from_dict({**TINY.to_dict(), **config})


def test_missing_shape_is_named() -> None:
    with pytest.raises(ModelError, match="lacks .*hidden_size"):
        ModelArgs.from_dict({"num_attention_heads": 4})


def test_transformers_5_rope_parameters_are_read() -> None:
    config = TINY.to_dict()
    del config["rope_theta"]
    config["rope_parameters"] = {"rope_theta": 12345.0, "rope_type": "default"}
    args = ModelArgs.from_dict(config)
    assert (args.rope_theta, args.rope_scaling) == (12345.0, None)

"""Shapes and sizes of students."""

from dataclasses import replace

from afm_mlx.distill.shape import PruneOptions, choose_shape, parse_size
from afm_mlx.errors import InputError
from afm_mlx.model import PRESETS, Model, named_weights
from afm_mlx.model_args import ModelArgs

import pytest

SMALL = PRESETS["smollm2-135m"]


@pytest.mark.parametrize(
    "args",
    [
        PRESETS["tiny"],
        replace(PRESETS["tiny"], qk_norm=True, num_kv_reuse_layers=2),
        replace(PRESETS["tiny"], intermediate_size=(32, 64, 96, 128), tie_word_embeddings=False),
    ],
)
def test_count_is_that_of_the_model(args: ModelArgs) -> None:
    assert args.num_parameters == sum(v.size for _, v in named_weights(Model(args)))


def test_the_default_is_half_the_ffn() -> None:
    shape = choose_shape(SMALL, PruneOptions())
    assert shape == replace(SMALL, intermediate_size=768)
    assert shape.num_parameters == 94_701_888


@pytest.mark.parametrize("target", ["120M", "95M", "75M", "60M", "45M"])
def test_target_is_met_within_two_percent(target: str) -> None:
    shape = choose_shape(SMALL, PruneOptions(target_params=target))
    assert abs(shape.num_parameters / parse_size(target) - 1) <= 0.02
    assert (
        shape.hidden_size % 32 == 0 and shape.num_attention_heads % shape.num_key_value_heads == 0
    )


def test_mild_targets_touch_the_ffn_alone() -> None:
    shape = choose_shape(SMALL, PruneOptions(target_params="95M"))
    assert (shape.num_hidden_layers, shape.hidden_size) == (30, 576)


@pytest.mark.parametrize(
    "options, says",
    [
        (PruneOptions(ffn=1.0), "nothing would be pruned"),
        (PruneOptions(layers=31), "more than the teacher's 30"),
        (PruneOptions(target_params="200M"), "not below"),
        (PruneOptions(target_params="3M"), "no shape"),
    ],
)
def test_impossible_shapes(options: PruneOptions, says: str) -> None:
    with pytest.raises(InputError, match=says):
        choose_shape(SMALL, options)


@pytest.mark.parametrize("text", ["", "60X", "1.2.3M", "-5M", "0"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(InputError, match="write 60M"):
        parse_size(text)


def test_sizes() -> None:
    assert [parse_size(s) for s in ("60M", "1.1B", "500k", "42")] == [60e6, 1.1e9, 500e3, 42]


@pytest.mark.parametrize(
    "wrong",
    [{"ffn": 0.0}, {"ffn": 1.5}, {"layers": -1}, {"calibration": 0}, {"target_params": "x"}],
)
def test_ranges(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        PruneOptions(**wrong)  # type: ignore[arg-type]

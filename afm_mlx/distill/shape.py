"""The shape of a student: what is pruned from the teacher, and how many parameters stay."""

import itertools
import math
import re
from dataclasses import dataclass, replace

from afm_mlx.errors import InputError
from afm_mlx.model_args import ModelArgs

MULTIPLE = 32
"""FFN and model widths are multiples of this, so that quantised groups fit."""
LEAST_FFN = 0.25
LEAST_DEPTH = 0.4
LEAST_WIDTH = 0.5
# How much a dimension hurts when it shrinks: FFN least, width most (arXiv 2407.14679, table 2
# and section 4.2: width of FFN and attention before depth before the residual stream).
_COSTS = {"ffn": 1.0, "heads": 2.0, "depth": 3.0, "width": 4.0}


@dataclass(frozen=True)
class PruneOptions:
    """How the student is cut out of the teacher."""

    ffn: float = 0.5
    """Share of the FFN's hidden dimensions that stays."""
    kv_heads: int = 0
    """Key-value heads that stay, each with its query heads; 0 keeps all."""
    layers: int = 0
    """Layers that stay; 0 keeps all."""
    hidden: int = 0
    """Width of the residual stream that stays; 0 keeps all."""
    target_params: str = ""
    """Size such as 60M in place of the four above: the mildest shape near it is chosen."""
    learned_masks: int = 0
    """Steps to learn the FFN's masks by soft top-k before cutting; 0 cuts by activation
    importance at once."""
    mask_learning_rate: float = 0.1
    """Learning rate of the masks' scores."""
    refit: bool = True
    """Fit what is left of each layer to what the whole layer gave, by least squares."""
    calibration: int = 32
    """Windows that importance and fit are measured on, the first of those trained on."""

    def __post_init__(self) -> None:
        if not 0 < self.ffn <= 1:
            raise InputError(f"ffn is a share above 0 up to 1, not {self.ffn}")
        if min(self.kv_heads, self.layers, self.hidden, self.learned_masks) < 0:
            raise InputError("numbers of heads, layers, width and steps must not be below 0")
        if self.calibration < 1:
            raise InputError("calibration needs at least 1 window")
        if self.target_params:
            parse_size(self.target_params)


def parse_size(text: str) -> int:
    """Number of parameters from ``60M``, ``1.1B`` or ``60000000``."""
    match = re.fullmatch(r"([\d.]+)\s*([kKmMbBgG]?)", text.strip())
    try:
        size = float(match[1]) if match else 0.0
    except ValueError:
        size = 0.0
    if not match or size <= 0:
        raise InputError(f"{text!r} is no number of parameters: write 60M or 1.1B")
    return round(size * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}[match[2].lower()])


def needed_layers(args: ModelArgs) -> set[int]:
    """Layers that are never dropped.

    The first and the last two are needed to get in and out (arXiv 2407.14679, section 4.2),
    the last regular one has the keys and values of those that reuse them, which all stay.
    """
    last, regular = args.num_hidden_layers - 1, args.num_hidden_layers - args.num_kv_reuse_layers
    return {0, max(last - 1, 0), last, regular - 1, *range(regular, last + 1)}


def choose_shape(args: ModelArgs, options: PruneOptions) -> ModelArgs:
    """Shape of the student.

    Raises:
        InputError: nothing is pruned, or a number does not fit the teacher.
    """
    if options.target_params:
        return _nearest(args, parse_size(options.target_params))
    kv = options.kv_heads or args.num_key_value_heads
    layers = options.layers or args.num_hidden_layers
    hidden = options.hidden or args.hidden_size
    for name, value, most in (
        ("kv_heads", kv, args.num_key_value_heads),
        ("layers", layers, args.num_hidden_layers),
        ("hidden", hidden, args.hidden_size),
    ):
        if value > most:
            raise InputError(f"{name}={value} is more than the teacher's {most}: choose fewer")
    least = len(needed_layers(args))
    if layers < least:
        raise InputError(f"layers={layers} are too few: at least {least} are needed")
    shape = _resized(args, options.ffn, kv, layers, hidden)
    if shape == args:
        raise InputError("nothing would be pruned: lower ffn, or give target_params")
    return shape


def _resized(args: ModelArgs, ffn: float, kv: int, layers: int, hidden: int) -> ModelArgs:
    def narrowed(size: int) -> int:
        return min(max(round(size * ffn / MULTIPLE), 1) * MULTIPLE, size)

    widths = args.intermediate_size
    if isinstance(widths, tuple):
        if layers < args.num_hidden_layers and len(set(widths)) > 1:
            raise InputError("layers of different FFN widths cannot be dropped: prune the rest")
        widths = tuple(narrowed(w) for w in widths[:layers])
    else:
        widths = narrowed(widths)
    return replace(
        args,
        intermediate_size=widths,
        num_key_value_heads=kv,
        num_attention_heads=args.num_attention_heads // args.num_key_value_heads * kv,
        num_hidden_layers=layers,
        hidden_size=hidden,
        # A norm over fewer channels sees a larger mean square than one over zeros among them.
        rms_norm_eps=args.rms_norm_eps * args.hidden_size / hidden,
    )


def _nearest(args: ModelArgs, target: int) -> ModelArgs:
    """The mildest shape within 2 % of ``target`` parameters, or the nearest one."""
    if target >= args.num_parameters:
        raise InputError(f"target_params={target} is not below the teacher's {args.num_parameters}")
    deep, wide, kv = args.num_hidden_layers, args.hidden_size, args.num_key_value_heads
    varied = isinstance(args.intermediate_size, tuple)
    shares = [i / 48 for i in range(round(48 * LEAST_FFN), 49)]
    depths = (
        [deep]
        if varied
        else range(max(math.ceil(deep * LEAST_DEPTH), len(needed_layers(args))), deep + 1)
    )
    widths = [w for w in range(wide, 0, -MULTIPLE) if w >= wide * LEAST_WIDTH]
    groups = range(math.ceil(kv / 2), kv + 1)
    best: tuple[tuple[float, float], ModelArgs] | None = None
    for share, depth, width, group in itertools.product(shares, depths, widths, groups):
        shape = _resized(args, share, group, depth, width)
        miss = abs(shape.num_parameters / target - 1)
        cost = sum(
            _COSTS[name] * -math.log(ratio)
            for name, ratio in (
                ("ffn", share),
                ("heads", group / kv),
                ("depth", depth / deep),
                ("width", width / wide),
            )
        )
        rank = (max(miss - 0.02, 0.0), cost)
        if best is None or rank < best[0]:
            best = rank, shape
    assert best is not None
    if best[0][0] > 0.05:
        raise InputError(
            f"no shape cut from this teacher has about {target} parameters: the nearest has"
            f" {best[1].num_parameters}"
        )
    return best[1]

"""The shape of a decoder, read from a ``config.json`` and written as one."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from afm_mlx.errors import ModelError

_COUNTS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "max_position_embeddings",
)


@dataclass(frozen=True)
class ModelArgs:
    """Shape of a decoder; field names are those of Hugging Face llama configurations.

    Attributes:
        intermediate_size: FFN width, one number or one per layer.
        qk_norm: RMSNorm over each head of the rotated queries and keys.
        num_kv_reuse_layers: how many of the last layers own no keys and values.
    """

    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int | tuple[int, ...]
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    head_dim: int = 0
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_traditional: bool = False
    rope_scaling: dict[str, Any] | None = None
    max_position_embeddings: int = 8192
    tie_word_embeddings: bool = True
    qk_norm: bool = False
    num_kv_reuse_layers: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.intermediate_size, list):
            object.__setattr__(self, "intermediate_size", tuple(self.intermediate_size))
        widths = self.intermediate_size
        for name, value in {
            **{n: getattr(self, n) for n in _COUNTS},
            "intermediate_size": min(widths, default=0) if isinstance(widths, tuple) else widths,
        }.items():
            if not isinstance(value, int) or value < 1:
                raise ModelError(f"{name} must be a number above 0, not {value!r}")
        if self.rope_scaling is not None and not isinstance(self.rope_scaling, dict):
            raise ModelError(f"rope_scaling must be an object, not {self.rope_scaling!r}")
        if not self.head_dim:
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"{self.num_attention_heads} query heads cannot share"
                f" {self.num_key_value_heads} key-value heads: use a divisor"
            )
        if not 0 <= self.num_kv_reuse_layers < self.num_hidden_layers:
            raise ModelError("num_kv_reuse_layers must leave at least one regular layer")
        if len(self.ffn_sizes) != self.num_hidden_layers:
            raise ModelError(
                f"intermediate_size lists {len(self.ffn_sizes)} layers,"
                f" the model has {self.num_hidden_layers}: give one width per layer"
            )

    @property
    def ffn_sizes(self) -> tuple[int, ...]:
        """FFN width of every layer."""
        if isinstance(self.intermediate_size, int):
            return (self.intermediate_size,) * self.num_hidden_layers
        return self.intermediate_size

    @property
    def is_llama(self) -> bool:
        """Whether mlx-lm's and transformers' llama compute the same function."""
        return not (
            self.qk_norm
            or self.num_kv_reuse_layers
            or self.rope_traditional
            or len(set(self.ffn_sizes)) > 1
        )

    @property
    def num_parameters(self) -> int:
        """Number of weights of a model of this shape; tied embeddings count once."""
        heads, kv, dim = self.num_attention_heads, self.num_key_value_heads, self.hidden_size
        regular = self.num_hidden_layers - self.num_kv_reuse_layers
        attention = 2 * dim * heads * self.head_dim * self.num_hidden_layers
        attention += 2 * dim * kv * self.head_dim * regular
        if self.qk_norm:
            attention += self.head_dim * (self.num_hidden_layers + regular)
        ffn = 3 * dim * sum(self.ffn_sizes)
        norms = dim * (2 * self.num_hidden_layers + 1)
        embeddings = self.vocab_size * dim * (1 if self.tie_word_embeddings else 2)
        return attention + ffn + norms + embeddings

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ModelArgs":
        """Read a ``config.json`` of type ``llama`` or ``afm``; unknown keys are ignored."""
        config = dict(config)
        rope = config.pop("rope_parameters", None)  # transformers 5 keeps RoPE in one place
        if isinstance(rope, dict):
            config["rope_theta"] = rope.get("rope_theta", cls.rope_theta)
            if rope.get("rope_type", "default") != "default":
                config["rope_scaling"] = rope
        if config.get("num_key_value_heads") is None:
            config["num_key_value_heads"] = config.get("num_attention_heads")
        if config.get("attention_bias") or config.get("mlp_bias"):
            raise ModelError("models with biases are not supported: choose one without")
        known = {f.name for f in fields(cls)}
        given = {k: v for k, v in config.items() if k in known and v is not None}
        try:
            return cls(**given)
        except TypeError as error:
            missing = str(error).partition("argument")[2].lstrip("s: ")
            raise ModelError(f"config.json lacks {missing}: is it a llama model?") from error

    def to_dict(self) -> dict[str, Any]:
        """The ``config.json`` of this shape: ``model_type`` llama where that is exact."""
        config = asdict(self)
        if self.is_llama:
            for name in ("qk_norm", "num_kv_reuse_layers", "rope_traditional"):
                del config[name]
            config["intermediate_size"] = self.ffn_sizes[0]
            return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **config}
        return {"model_type": "afm", **config}

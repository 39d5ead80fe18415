"""Read llama models from GGUF files: shape, weights and tokenizer.

Format: the GGUF specification of ggml-org. ``mx.load`` returns Q4_0, Q4_1 and Q8_0 tensors as
groups of 32 ``weight``/``scales``/``biases`` and everything else as 16- or 32-bit floats.
llama.cpp stores the rows of the query and key projections in the order of its interleaved
RoPE; Hugging Face models (and ours) rotate half against half, so the order is undone here.
"""

from pathlib import Path
from typing import Any

from afm_mlx.errors import ModelError, first_line
from afm_mlx.model_args import ModelArgs

import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

GROUP_SIZE = 32
ARCHITECTURES = ("llama",)

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Values of tokenizer.ggml.token_type
_CONTROL, _USER_DEFINED = 3, 4

# Pre-tokenizers by tokenizer.ggml.pre: GPT-2's regular expression splits inside ByteLevel.
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PRE_TOKENIZERS: dict[str, list[Any]] = {
    "smollm": [pre_tokenizers.Digits(individual_digits=True), _GPT2],
    "gpt-2": [_GPT2],
    "llama-bpe": [
        pre_tokenizers.Split(Regex(_LLAMA3), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ],
}


class GGUF:
    """One opened GGUF file: ``args``, ``weights()`` and ``tokenizer()``.

    Raises:
        ModelError: not a GGUF file, cut short, or of another architecture.
    """

    def __init__(self, path: Path) -> None:
        try:
            loaded: Any = mx.load(str(path), format="gguf", return_metadata=True)
        except (RuntimeError, ValueError) as error:
            reason = first_line(error).removeprefix("[load_gguf] ")
            raise ModelError(
                f"{path} is no readable GGUF file ({reason}): download it again"
            ) from error
        self.path = path
        self._arrays: dict[str, mx.array] = loaded[0]
        self.metadata: dict[str, Any] = loaded[1]
        architecture = self.metadata.get("general.architecture", "unknown")
        if architecture not in ARCHITECTURES:
            raise ModelError(
                f"{path} holds a model of architecture {architecture!r}:"
                f" only {', '.join(ARCHITECTURES)} can be read"
            )
        try:
            self.args = self._read_args()
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ModelError(
                f"{path} has unusable metadata ({first_line(error)}): download it again"
            ) from error

    def _number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self.path} lacks the metadata {key}: download it again")
            return default
        return float(value)

    def _read_args(self) -> ModelArgs:
        heads = int(self._number("llama.attention.head_count"))
        hidden = int(self._number("llama.embedding_length"))
        if "rope_freqs.weight" in self._arrays or "llama.rope.scaling.type" in self.metadata:
            raise ModelError(
                f"{self.path} scales its RoPE frequencies, which is not read from GGUF:"
                " use the model's safetensors repository"
            )
        return ModelArgs(
            hidden_size=hidden,
            num_hidden_layers=int(self._number("llama.block_count")),
            intermediate_size=int(self._number("llama.feed_forward_length")),
            num_attention_heads=heads,
            num_key_value_heads=int(self._number("llama.attention.head_count_kv", heads)),
            head_dim=int(self._number("llama.rope.dimension_count", hidden // heads)),
            vocab_size=len(self.metadata["tokenizer.ggml.tokens"]),
            # Written as float32: 1e-5 comes back as 9.99999975e-06.
            rms_norm_eps=float(
                f"{self._number('llama.attention.layer_norm_rms_epsilon', 1e-5):.6g}"
            ),
            rope_theta=self._number("llama.rope.freq_base", 10_000.0),
            max_position_embeddings=int(self._number("llama.context_length")),
            tie_word_embeddings="output.weight" not in self._arrays,
        )

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """All weights under the model's own names, dequantised to float32.

        ``q * scale + bias`` is computed in float32 as two rounded operations, so that every
        machine gets the same bits (a fused multiply-add would not).
        """
        out = {}
        for name in list(self._arrays):
            base, _, kind = name.rpartition(".")
            if kind == "bias":
                raise ModelError(f"{self.path} has biases, which are not supported: use another")
            if kind == "weight":
                out[self._rename(base) + ".weight"] = self._dequantise(base)
        self._arrays.clear()
        return out

    def _rename(self, base: str) -> str:
        prefix = ""
        if base.startswith("blk."):
            _, layer, base = base.split(".", 2)
            prefix = f"model.layers.{layer}."
        if base not in _NAMES:
            raise ModelError(f"{self.path} holds an unknown tensor {base}: use another file")
        return prefix + _NAMES[base]

    def _dequantise(self, base: str) -> np.ndarray[Any, Any]:
        weight = self._arrays.pop(f"{base}.weight")
        scales = self._arrays.pop(f"{base}.scales", None)
        if scales is None:
            out = np.array(weight.astype(mx.float32))
        else:
            rows, groups = scales.shape
            bits = weight.shape[1] * 32 // (groups * GROUP_SIZE)
            packed = np.array(weight).view(np.uint8).reshape(rows, groups, -1)
            out = np.empty((rows, groups, GROUP_SIZE), dtype=np.float32)
            if bits == 4:  # little endian: the low half byte comes first
                out[..., 0::2] = packed & 15
                out[..., 1::2] = packed >> 4
            else:
                out[...] = packed
            out *= np.array(scales, dtype=np.float32)[..., None]
            biases = self._arrays.pop(f"{base}.biases")
            out += np.array(biases, dtype=np.float32)[..., None]
            out = out.reshape(rows, groups * GROUP_SIZE)
        if base.endswith(("attn_q", "attn_k")):
            half = self.args.head_dim // 2
            rows, columns = out.shape
            out = out.reshape(-1, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        return out

    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE tokenizer that the metadata describes."""
        meta = self.metadata
        kind, pre = meta.get("tokenizer.ggml.model"), meta.get("tokenizer.ggml.pre", "gpt-2")
        if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
            raise ModelError(
                f"{self.path} has a tokenizer of kind {kind}/{pre}, which is not read from"
                " GGUF: use the model's safetensors repository"
            )
        for key in ("tokens", "merges", "token_type"):
            if f"tokenizer.ggml.{key}" not in meta:
                raise ModelError(f"{self.path} lacks tokenizer.ggml.{key}: download it again")
        tokens = meta["tokenizer.ggml.tokens"]
        merges = [tuple(m.split(" ", 1)) for m in meta["tokenizer.ggml.merges"]]
        model = models.BPE(
            vocab={t: i for i, t in enumerate(tokens)},
            merges=merges,
            ignore_merges=pre == "llama-bpe",  # as Llama 3's own tokenizer does
        )
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(_PRE_TOKENIZERS[pre])
        tokenizer.decoder = decoders.ByteLevel()
        for token, kind in zip(tokens, meta["tokenizer.ggml.token_type"].tolist(), strict=True):
            if kind in (_CONTROL, _USER_DEFINED):
                tokenizer.add_tokens(
                    [AddedToken(token, special=kind == _CONTROL, normalized=False)]
                )
        return tokenizer

    def special_token(self, name: str) -> str | None:
        """The text of the ``bos``, ``eos``, ``unknown`` or ``padding`` token, if declared."""
        index = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        return None if index is None else self.metadata["tokenizer.ggml.tokens"][index.item()]

    @property
    def chat_template(self) -> str | None:
        return self.metadata.get("tokenizer.chat_template")

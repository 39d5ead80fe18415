"""A second vocabulary for tests."""

from afm_mlx.tokenizer import Tokenizer
from tests.conftest import TEMPLATE

from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend


def pair_tokenizer(text: str, size: int = 300) -> Tokenizer:
    """Byte-level BPE trained on ``text``, with special tokens of its own."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<pad>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(s, special=True, normalized=False) for s in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text] * 3, trainer)
    return Tokenizer.from_backend(
        backend, TEMPLATE, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )

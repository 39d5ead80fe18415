"""Training data: files to samples, samples to tokens, tokens to packed batches.

One path serves distillation, recovery and LoRA: :mod:`~afm_mlx.data.sources` reads,
:mod:`~afm_mlx.data.tokens` tokenises once and maps the result, and
:mod:`~afm_mlx.data.packing` fills fixed windows and deals them out.
"""

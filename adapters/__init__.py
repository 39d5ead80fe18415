"""LoRA adapters on any ``mlx.nn.Module``, imported as ``afm_mlx.adapters``."""

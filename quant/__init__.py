"""Palettised and calibrated low-bit weights, imported as ``afm_mlx.quant``."""

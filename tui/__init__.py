"""The Textual app, imported as ``afm_mlx.tui``; nothing else may import Textual."""

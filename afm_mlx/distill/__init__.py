"""Prune a student out of a teacher and distil it: ``python -m afm_mlx.distill``.

The way of Apple's on-device model (arXiv 2407.21075): take a trained model, cut its FFN to a
share, and let the whole model teach what is left. :func:`distill` runs a :class:`Recipe` and
yields what happens.
"""

from afm_mlx.distill.recipe import Recipe
from afm_mlx.distill.run import distill

__all__ = ["Recipe", "distill"]

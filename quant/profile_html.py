"""A profile as one HTML file that needs nothing else: table, plots, graph, what-if.

The page is ``text/profile.html``. It gets the figures as JSON and the model's name as escaped
text; a security policy in it forbids any request.
"""

import html
import json
import re
from pathlib import Path

from afm_mlx.files import write_bytes
from afm_mlx.quant.profile import Profile

PAGE = Path(__file__).parent / "text" / "profile.html"


def to_html(profile: Profile) -> str:
    """The page; names in it cannot become markup or end the script."""
    figures = json.dumps(profile.report(), ensure_ascii=True, allow_nan=False)
    values = {"model": html.escape(profile.model), "data": figures.replace("<", "\\u003c")}
    return re.sub(r"\{\{(\w+)\}\}", lambda m: values[m[1]], PAGE.read_text(encoding="utf-8"))


def write(profile: Profile, path: Path) -> None:
    """Write the page.

    Raises:
        InputError: the folder cannot be written.
    """
    write_bytes(path, to_html(profile).encode())

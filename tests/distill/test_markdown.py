"""Text from models is shown as it is; settings and names survive TOML and Markdown."""

import html
import math
import random
import re
import tomllib
from pathlib import Path

from afm_mlx.distill.markdown import (
    amount,
    duration,
    fenced,
    inline,
    lowered,
    number,
    percent,
    quote,
    table,
    toml,
)

import numpy as np
import pytest
from markdown_it import MarkdownIt

NASTY = "ab 1.#*_`[]()<>&$|~\\!+-=:/^{}\"'\n\t é界😀" + "\x00\x1b\x7f\u2028"
WORDS = ["<script>", "```", "~~~", "---", "===", "1. ", "2) ", "# ", "- ", "> ", "&amp;", "![x](y)"]
WORDS += [
    "http://x.y",
    "www.x.y",
    "\n\n",
    "\n    ",
    "| a | b |\n|---|---|",
    "$$x$$",
    "\\\\(x",
    "  \n",
]


def hostile(seed: int) -> str:
    rng = random.Random(seed)
    return "".join(
        rng.choice(WORDS) if rng.random() < 0.3 else rng.choice(NASTY) for _ in range(60)
    )


def rendered(text: str) -> str:
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


@pytest.mark.parametrize("seed", range(50))
def test_quoted_text_is_shown_as_it_is(seed: int) -> None:
    """Model output once closed a table, became a heading, and could have run a script."""
    text = hostile(seed)
    page = rendered(quote(text))
    assert set(re.findall(r"<(\w+)", page)) <= {"blockquote", "p", "br"}
    shown = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert shown.split() == re.sub(r"[\x00\x1b\x7f]", "\ufffd", text).split()


def test_quoted_text_keeps_its_lines() -> None:
    page = rendered(quote("one\ntwo\n\n  three <four>\n"))
    indented = "<p>\xa0\xa0three &lt;four&gt;</p>"
    assert page == f"<blockquote>\n<p>one<br />\ntwo</p>\n{indented}\n</blockquote>\n"
    assert quote("") == "> *(empty)*" and quote(None) == "> *not measured*"


@pytest.mark.parametrize("seed", range(50))
def test_a_cell_and_a_heading_hold_any_text(seed: int) -> None:
    text = hostile(seed)
    expected = re.sub(r"[\x00\x1b\x7f]", "\ufffd", " ".join(text.split())).split()
    page = rendered(table(["", "b"], [[inline(text), "x"]]))
    assert page.count("<td>") == 2
    cell = page.partition("<td>")[2].partition("</td>")[0]
    assert "<" not in cell and html.unescape(cell).split() == expected
    heading = rendered(f"# {inline(text)}")
    assert html.unescape(heading.removeprefix("<h1>").removesuffix("</h1>\n")).split() == expected


def test_a_heading_keeps_the_marks_at_its_end() -> None:
    assert rendered(f"# {inline('C #')}") == "<h1>C #</h1>\n"


def test_no_formula_and_no_link_is_left() -> None:
    """GitHub and the Hub look for these in the source, before and beside Markdown."""
    out = quote("$x$ $$y$$ \\\\(z\\\\) \\(z\\) http://a.b HTTPS://a.b www.a.b")
    assert not re.search(r"\$|\\\(|://|www\.", out, re.IGNORECASE)


def test_fence_is_longer_than_those_inside() -> None:
    text = "a\n````\n<b>\n```\n"
    assert rendered(fenced(text)).startswith("<pre><code>a\n````\n&lt;b&gt;\n```\n</code></pre>")


def test_headings_go_below_their_section() -> None:
    text = "# A\n```sh\n# comment\n```\n## B\n#tag"
    assert lowered(text, 3) == "### A\n```sh\n# comment\n```\n#### B\n#tag"
    assert lowered("#### A", 3) == "#### A" and lowered("", 3) == ""


@pytest.mark.parametrize("seed", range(50))
def test_toml_round_trip(seed: int) -> None:
    rng = random.Random(seed)
    text = "".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(300)])) for _ in range(50))
    settings = {
        "text": text,
        "dotted.key": hostile(seed),
        "": 0,
        "numbers": [rng.random() * 10 ** rng.randrange(-30, 30), 1e16, -0.0, math.inf, 5],
        "numpy": np.float64(0.1),
        "many": (True, False),
        "none": None,
        "folder": Path("a b/c"),
        "inner": {"empty": [], "deep er": {"x": "😀"}, "nothing": {}},
        "last": "after a table in the dictionary, before it in the file",
    }
    expected = {k: v for k, v in settings.items() if v is not None}
    expected |= {"many": [True, False], "folder": "a b/c", "numpy": 0.1}
    assert tomllib.loads(toml(settings)) == expected
    assert "many = [true, false]" in toml(settings)  # 1 and 0 would be equal to these


def test_toml_refuses_what_it_cannot_say() -> None:
    with pytest.raises(TypeError, match="not <object"):
        toml({"a": object()})


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(None), "not measured"),
        (number(17.0234), "17.02"),
        (number(0.31274), "0.3127"),
        (number(1234.56), "1,235"),
        (number(1e-5), "1.00e-05"),
        (number(math.nan), "nan"),
        (percent(0.7412), "74.1 %"),
        (amount(98_123_456), "98.1 M"),
        (amount(999_960_000), "1 B"),
        (amount(512), "512"),
        (amount(3_456_000_000, "B"), "3.46 GB"),
        (duration(12.34), "12.3 s"),
        (duration(59.97), "60.0 s"),
        (duration(250), "4 min 10 s"),
        (duration(4320), "1 h 12 min"),
        (duration(7199), "2 h"),
        (duration(273_600), "3 d 4 h"),
    ],
)
def test_figures(shown: str, expected: str) -> None:
    assert shown == expected

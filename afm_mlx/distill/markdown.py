"""Markdown, TOML and YAML for reports: tables, quotes of model output, settings, figures.

Text that a model or a person wrote is data: :func:`inline` and :func:`quote` escape whatever
Markdown, HTML, a link finder or the formula readers of GitHub and the Hub would act on.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

MISSING = "not measured"

_ACTIVE = re.compile(r"[\\`*_\[\]<>&$~|^]|:(?=//)|(?<=www)\.|#(?=#*$)", re.IGNORECASE)
_BLOCK = re.compile(r"[#+=-]|\d+[.)]")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")
_NAMED = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_HEADING = re.compile(r"#{1,6}\s")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def _escape(text: str) -> str:
    def entity(match: re.Match[str]) -> str:
        # Not all take a backslash: the Hub reads \\( as the start of a formula.
        if match[0] in "`*_[]~^#":
            return f"\\{match[0]}"
        return _NAMED.get(match[0], f"&#{ord(match[0])};")

    return _ACTIVE.sub(entity, _CONTROL.sub("\ufffd", text))


def inline(text: str) -> str:
    """``text`` on one line, for a heading, a sentence or a table cell."""
    return _escape(" ".join(text.split()))


def quote(text: str | None) -> str:
    """``text`` as a block quote that keeps its lines; nothing in it is Markdown."""
    if text is None:
        return f"> *{MISSING}*"
    lines = [_quoted_line(line.rstrip()) for line in text.strip().splitlines()]
    if not lines:
        return "> *(empty)*"
    follows = [*lines[1:], ""]
    # A backslash at the end of a line breaks it there.
    ends = ["\\" if line and after else "" for line, after in zip(lines, follows, strict=True)]
    return "\n".join(f"> {line}{end}".rstrip() for line, end in zip(lines, ends, strict=True))


def _quoted_line(line: str) -> str:
    body = line.lstrip()
    indent = "&nbsp;" * len(line[: len(line) - len(body)].expandtabs(4))
    escaped = _escape(body)
    if block := _BLOCK.match(escaped):  # heading, list, rule: only at the start of a line
        escaped = f"{escaped[: block.end() - 1]}\\{escaped[block.end() - 1 :]}"
    return indent + escaped


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any run of backticks in ``text``."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def lowered(markdown: str, level: int) -> str:
    """``markdown`` with its headings moved down, so that the highest is of ``level``."""
    lines, headings, fence = markdown.strip().splitlines(), [], ""
    for i, line in enumerate(lines):
        mark = _FENCE.match(line)
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        elif mark:
            fence = mark[1]
        elif _HEADING.match(line):
            headings.append(i)
    highest = min((len(lines[i].split()[0]) for i in headings), default=level)
    for i in headings:
        lines[i] = "#" * (level - highest) + lines[i]
    return "\n".join(lines)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A Markdown table of cells that are Markdown; ``numbers`` aligns all but the first right."""
    rule = ["---"] + (["---:"] if numbers else ["---"]) * (len(head) - 1)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def quoted(text: str) -> str:
    """A double-quoted string, the same in TOML and YAML."""

    def plain(c: str) -> str:
        if c in '"\\':
            return f"\\{c}"
        if "\ud800" <= c <= "\udfff":  # half a pair: no text
            c = "\ufffd"
        return c if c.isprintable() else f"\\U{ord(c):08x}"

    return f'"{"".join(map(plain, text))}"'


def toml(settings: Mapping[str, Any]) -> str:
    """``settings`` as TOML: text, paths, numbers, booleans, lists of them, and sections.

    ``None`` has no form in TOML and is left out.

    Raises:
        TypeError: a value of another type.
    """
    return "\n".join(_section(settings, ())).strip() + "\n"


def _section(settings: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    given = {k: v for k, v in settings.items() if v is not None}
    sections = {k: v for k, v in given.items() if isinstance(v, Mapping)}
    lines = ["", f"[{'.'.join(map(_key, path))}]"] if path else []
    lines += [f"{_key(k)} = {_value(v)}" for k, v in given.items() if k not in sections]
    for name, section in sections.items():
        lines += _section(section, (*path, name))
    return lines


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else quoted(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(int(value))
        case float():
            return repr(float(value))
        case str() | Path():
            return quoted(str(value))
        case list() | tuple():
            return f"[{', '.join(map(_value, value))}]"
    raise TypeError(f"a recipe holds text, numbers, booleans and lists, not {value!r}")


def number(value: float | None) -> str:
    """Four digits that count, as of a perplexity or a loss."""
    if value is None:
        return MISSING
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if abs(value) < 1e-3 or abs(value) >= 1e9:
        return f"{value:.2e}"
    decimals = 3 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(decimals, 0), 4)}f}"


def percent(share: float | None) -> str:
    """A share between 0 and 1."""
    return MISSING if share is None else f"{share * 100:.1f} %"


def amount(count: float | None, unit: str = "") -> str:
    """A large count in three digits: ``98.1 M``; ``unit`` is put after it."""
    if count is None:
        return MISSING
    for factor, prefix in ((1e12, "T"), (1e9, "G" if unit else "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= factor * 0.9995:
            return f"{count / factor:.3g} {prefix}{unit}"
    return f"{count:.3g} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """``3 d 4 h``, ``1 h 12 min``, ``4 min 10 s`` or ``12.3 s``."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    units = ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s"))
    large, small, name, rest = next(u for u in units if seconds >= u[0])
    whole, left = divmod(round(seconds / small), large // small)
    return f"{whole} {name} {left} {rest}" if left else f"{whole} {name}"

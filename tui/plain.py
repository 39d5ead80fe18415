"""Text of anybody's making, shown as it is: no markup, and nothing that acts on the terminal."""

from typing import Any

from rich.text import Text

_PICTURES = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    0x7F: 0x2421,
}


def visible(text: str) -> str:
    """``text`` with pictures in the place of control characters; as long as before."""
    return text.translate(_PICTURES)


def plain(text: str, **options: Any) -> Text:
    """``text`` to show; the options are those of :class:`rich.text.Text`."""
    return Text(visible(text), **options)

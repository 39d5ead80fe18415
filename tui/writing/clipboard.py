"""Whether what is copied reaches other programs: the terminal's part in it (OSC 52).

Programs cannot ask a terminal whether it takes it, and cannot read its clipboard.
"""

from collections.abc import Mapping

MOST_BYTES = 75_000
"""Of a text that all terminals with a clipboard take, in base 64 (tmux and xterm: 100,000)."""


def outcome(text: str, environment: Mapping[str, str], saves: bool = True) -> tuple[str, bool]:
    """What to tell a person who copied ``text``, and whether it reaches other programs.

    Args:
        saves: whether there is a key that saves it.
    """
    said = f"Copied {len(text):,} characters"
    terminal = environment.get("TERM_PROGRAM", "")
    if environment.get("TERM", "dumb") in ("linux", "dumb") or terminal == "Apple_Terminal":
        return (
            f"{said} for this app alone: this terminal has no clipboard for programs."
            f" {'Save the text with F9, or select' if saves else 'Select'} it with the mouse and"
            " Shift (Mac: Fn)",
            False,
        )
    if len(text.encode("utf-8", "replace")) > MOST_BYTES:
        remedy = "save them with F9" if saves else "copy less"
        return f"{said}: your terminal may refuse that many, then {remedy}", False
    return f"{said} to the terminal's clipboard", True


NOTHING_TO_PASTE = (
    "Nothing was copied here. Paste from other programs with the terminal's own key:"
    " Ctrl+Shift+V, on a Mac Cmd+V"
)

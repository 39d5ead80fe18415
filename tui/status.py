"""The line on top of every screen: the model, and what the last request cost."""

from afm_mlx.tui.plain import visible
from afm_mlx.tui.services import Services, Status

from rich.text import Text
from textual.events import Mount, Resize, Unmount
from textual.widgets import Static

_SEPARATOR = " · "


def line(status: Status, width: int) -> Text:
    """What there is to say in ``width`` columns, the most important first."""
    left, right = _identity(status), _cost(status)
    while right and _length(left) + _length(right) + 4 > width:
        right.pop()
    while len(left) > 1 and _length(left) + 1 > width:
        left.pop()
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(" " + _SEPARATOR.join(left), style="bold")
    if right:
        end = _SEPARATOR.join(right)
        text.append(" " * max(width - text.cell_len - Text(end).cell_len - 1, 1))
        text.append(end)
    return text


def _identity(status: Status) -> list[str]:
    name = visible(status.model) or "no model"
    match status.state:
        case "loading":
            return [f"… loading {visible(status.model) or 'the model'}"]
        case "failed":
            return [f"✗ {name} cannot be used, F6 chooses another"]
    parts = [name]
    if status.busy:
        parts.append(f"⧗ {status.busy}")
    if status.adapter:
        parts.append(f"◆ {status.adapter}")
    if status.bits is not None:
        parts.append(f"{status.bits:.1f} bits")
    if status.memory:
        parts.append(f"{status.memory / 1e6:.0f} MB")
    return parts


def _cost(status: Status) -> list[str]:
    """Figures of the last request, those that can be left out last."""
    parts = []
    if status.first_token is not None:
        parts.append(f"first token {_time(status.first_token)}")
    if status.tokens_per_second:
        parts.append(f"{status.tokens_per_second:.0f} tok/s")
    if status.swap is not None:
        parts.append(f"swap {_time(status.swap)}")
    if status.tokens is not None:
        parts.append(f"{status.tokens} tok")
    return parts


def _time(seconds: float) -> str:
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _length(parts: list[str]) -> int:
    return Text(_SEPARATOR.join(parts)).cell_len


class StatusLine(Static):
    """Shows :class:`afm_mlx.tui.services.Status`, and follows it."""

    DEFAULT_CSS = """
    StatusLine { height: 1; background: $panel; color: $foreground; }
    """

    def __init__(self, services: Services) -> None:
        super().__init__(markup=False)
        self.services = services

    def _on_mount(self, event: Mount) -> None:
        super()._on_mount(event)
        self._forget = self.services.on_change(self.show)

    def on_unmount(self, event: Unmount) -> None:
        self._forget()

    def on_resize(self, event: Resize) -> None:
        self.show()

    def show(self) -> None:
        """Draw the status of now."""
        self.update(line(self.services.status, self.size.width))

"""The command palette: screens, adapters, models, themes, and what the open screens offer."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

from afm_mlx.hub import Installed as Model
from afm_mlx.tui.models import listed
from afm_mlx.tui.screen import Command
from afm_mlx.tui.settings import AUTO, Choice
from afm_mlx.tui.shelf import Installed

from rich.text import Text
from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.markup import escape

if TYPE_CHECKING:
    from afm_mlx.tui.app import AfmApp


class Commands(Provider):
    """Finds commands by parts of their titles."""

    async def startup(self) -> None:
        self.adapters = await self.afm.services.installed()
        self.models: list[Model] = []
        try:
            self.models = await asyncio.to_thread(listed, self.afm.services.models)
        except OSError as error:  # the other commands are there all the same
            self.afm.report(error)

    @property
    def afm(self) -> "AfmApp":
        """The app."""
        return cast("AfmApp", self.app)

    async def discover(self) -> Hits:
        for title, about, call in self._commands():
            yield DiscoveryHit(Text(title), call, title, escape(about))

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for title, about, call in self._commands():
            score = matcher.match(title)
            if score > 0:  # what is highlighted is read as markup first
                shown = Text(title) if "[" in title else matcher.highlight(title)
                yield Hit(score, shown, call, title, escape(about))

    def _commands(self) -> Iterator[Command]:
        yield from self.afm.screen_commands()
        yield from self.afm.go_to_commands()
        yield from adapter_commands(self.adapters, self.afm.choose_adapter)
        yield from model_commands(self.models, self.afm.open_model, self.afm.action_models)
        yield from theme_commands(list(self.afm.available_themes), self.afm.use_theme)
        yield "Keys", "All keys of all screens", self.afm.action_keys
        yield "Details", "All that is known of what went wrong", self.afm.action_details
        yield "Quit", "End the app; running work keeps its best", self.afm.action_quit


def adapter_commands(
    found: list[Installed], choose: Callable[[Choice], object]
) -> Iterator[Command]:
    """Swaps of the adapter for all features."""
    yield "Adapter: automatic", "The adapter that each feature has", partial(choose, AUTO)
    yield "Adapter: none", "The model itself, with examples", partial(choose, None)
    for adapter in found:
        about = adapter.problem or f"For {adapter.about.feature or 'any feature'}"
        yield f"Adapter: {adapter.name}", about, partial(choose, str(adapter.folder))


def model_commands(
    found: list[Model], open_model: Callable[[str | None], object], choose: Callable[[], object]
) -> Iterator[Command]:
    """Swaps of the model."""
    for model in found:
        about = f"{model.kind}, {model.size / 1e6:.0f} MB"
        yield f"Model: {model.name}", about, partial(open_model, model.name)
    yield "Model: another…", "Choose a folder, a file or a repository of the Hub", choose


def theme_commands(names: list[str], use: Callable[[str], object]) -> Iterator[Command]:
    """Swaps of the colours."""
    for name in sorted(names):
        yield f"Theme: {name}", "Use these colours", partial(use, name)

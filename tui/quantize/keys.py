"""Keys and commands of this screen."""

from typing import Any

from textual.binding import Binding, BindingType

BUDGET = Binding.Group("Budget", compact=True)


def _binding(key: str, action: str, title: str, tip: str, **more: Any) -> Binding:
    name = title.lower().replace(" ", "-")
    return Binding(key, action, title, id=f"quantize.{name}", tooltip=tip, **more)


BINDINGS: list[BindingType] = [
    _binding("left_square_bracket", "budget(-1)", "Smaller", "Smaller budget", group=BUDGET),
    _binding("right_square_bracket", "budget(1)", "Larger", "Larger budget", group=BUDGET),
    _binding("s", "sort", "Sort", "Sort by the next column"),
    _binding("p", "measure", "Measure", "Measure the model, and work out its widths"),
    _binding("a", "apply", "Apply", "Write a model with these bits"),
    _binding("escape", "stop", "Stop", "Stop what runs; what is done is kept"),
    _binding("slash", "filter", "Filter", "Show rows with some words", show=False),
    _binding("r", "release", "Release", "Let the budget choose for this row", show=False),
    _binding("u", "undo", "Undo", "Take the last change back", show=False),
    _binding("b", "set_budget", "Budget", "Type the budget", show=False),
    _binding("o", "open", "Open", "Open a profile", show=False),
    _binding("w", "save_profile", "Save", "Save the profile to a file", show=False),
    _binding("e", "save_plan", "Save plan", "Save the plan under a name", show=False),
    _binding("l", "open_plan", "Open plan", "Open a plan that was saved", show=False),
]
OF_ROWS = ("budget", "sort", "filter", "release", "undo")
"""Actions that have no sense before there are rows."""
COMMANDS = (
    ("Measure the model", "Times, bytes and energy, then all widths", "measure"),
    ("Open profile…", "A file that afm profile or this screen saved", "open"),
    ("Save profile…", "As a file for afm profile --open-saved", "save_profile"),
    ("Save plan…", "The bits of every matrix, under a name", "save_plan"),
    ("Open plan…", "One that was saved, or a plan.toml", "open_plan"),
    ("Set budget…", "Bits a weight of the linear layers", "set_budget"),
    ("Apply plan…", "Write a model with these bits", "apply"),
)
"""Of the command palette: title, what it does, action."""

"""The writing screen with scripted answers: every tool, and what a person does with them."""

import threading
from collections.abc import Mapping

from afm_mlx.errors import InputError, ModelError
from afm_mlx.features import FEATURES
from afm_mlx.generation import SamplingMode
from afm_mlx.tui.help import Keys
from afm_mlx.tui.writing.screen import WritingScreen
from afm_mlx.tui.writing.sheet import Reader
from afm_mlx.tui.writing.tools import TOOLS
from afm_mlx.tui.writing.work import Written
from tests.tui.pictures import THEMES, picture
from tests.tui.support import (
    SIZES,
    in_app,
    screen_text,
    snapshot,
)
from tests.tui.writer import Person, at_the_desk

import pytest
from textual.app import App, ComposeResult
from textual.document._document import EditResult
from textual.document._edit import Edit
from textual.pilot import Pilot
from textual.widgets import DataTable, OptionList


def test_every_tool_asks_for_its_own_feature() -> None:
    answers = {
        "friendly": "Hi Ana, the bus is late!",
        "professional": "Dear Ana, the bus is late.",
        "concise": "Bus late, Ana.",
        "rewrite": "Ana, the bus is late.",
        "summary": "The bus is late.",
        "key-points": "- The bus is late",
        "list": "- Ana\n- The bus is late",
    }
    said = {FEATURES[name].instructions: answer for name, answer in answers.items()}

    async def test(person: Person) -> None:
        person.write("ana the bus is late")
        for name, answer in answers.items():
            await person.use(name)
            assert FEATURES[name].instructions in person.engine.prompts[-1]
            assert person.engine.prompts[-1].rfind("ana the bus is late") > 0
            assert person.shown.strip() == answer
            assert person.screen.pane.border_title == FEATURES[name].title
        await person.press("ctrl+s")
        assert person.text == answers["list"]
        assert len(person.screen.history.past) == 2 + len(answers)

    at_the_desk(test, said)


BEFORE, AFTER = "Their are too keys hear, ok", "There are two keys here, OK"


def test_proofreading_one_change_at_a_time() -> None:
    async def test(person: Person) -> None:
        person.write(BEFORE)
        await person.use("proofread")
        assert person.shown == "[-Their-+There+] are -too-+two+ keys -hear,-+here,+ -ok-+OK+"
        assert person.remarks.startswith("1/4 -Their- +There+ · spelling or form · 4 open")
        await person.press("y")
        assert person.text == "There are too keys hear, ok"
        await person.press("n")
        await person.drawn()
        assert person.text == "There are too keys hear, ok"
        assert person.shown == "+There+ are too keys [-hear,-+here,+] -ok-+OK+"
        await person.press("space", "y")
        assert person.text == "There are too keys hear, OK"
        # Every decision is a step of its own.
        await person.press("ctrl+z")
        assert person.text == "There are too keys hear, ok"
        await person.press("ctrl+z", "ctrl+z")
        assert person.text == BEFORE
        await person.press("ctrl+y")
        assert person.text == "There are too keys hear, ok"
        await person.press("a")
        assert person.text == AFTER
        await person.press("x")
        assert person.text == BEFORE
        await person.drawn()
        assert "undone · all decided" in person.remarks
        # Accepting keeps what is open.
        await person.use("proofread")
        await person.press("n", "ctrl+s")
        assert person.text == "Their are two keys here, OK"
        # Keys of the review must not act while a person types.
        await person.press("ctrl+n")
        person.screen.editor.move_cursor(person.screen.editor.document.end)
        await person.press("x", "a")
        assert person.text == "Their are two keys here, OKxa"

    at_the_desk(test, AFTER)


class Paced(threading.Event):
    """Lets some words through, and the others when it is set."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.words = words

    def wait(self, timeout: float | None = None) -> bool:
        self.words -= 1
        return self.words >= 0 or super().wait(timeout)


def test_streaming_stopping_and_writing_it_again() -> None:
    async def test(person: Person) -> None:
        person.write("one two three")
        person.engine.go_on = Paced(2)
        person.screen.use(TOOLS[1])
        await person.until(lambda: "alpha beta" in person.shown)
        assert person.screen.pane.border_subtitle == "writing"
        await person.until(lambda: "Stop" in screen_text(person.app))
        await person.press("ctrl+s")  # there is nothing whole to accept yet
        assert person.text == "one two three"
        await person.press("escape")
        assert person.screen.running is None
        person.engine.go_on.set()
        await person.drawn()
        assert person.shown.split() == ["alpha", "beta"]
        assert "stopped" in str(person.screen.pane.border_subtitle)
        await person.until(lambda: "Stop" not in screen_text(person.app))
        await person.press("ctrl+s")
        assert "not whole" in person.told
        assert person.text == "one two three"
        await person.press("ctrl+r")
        await person.until(lambda: person.screen.desk.result)
        assert person.result.text == "alpha beta gamma delta"
        assert person.engine.requests[-1].options == person.engine.requests[0].options

    at_the_desk(test, "alpha beta gamma delta")


def test_what_an_older_run_writes_is_dropped() -> None:
    # Messages of the run before came into the sheet of the new one.
    answers = {FEATURES["rewrite"].instructions: "old old old", "": "new"}

    async def test(person: Person) -> None:
        person.write("one two three")
        person.engine.go_on = Paced(1)
        person.screen.use(TOOLS[1])
        await person.until(lambda: "old" in person.shown)
        number = person.screen._number
        person.screen.use(TOOLS[2])
        person.screen.post_message(WritingScreen.Came(number, Written((0, 1), "old old")))
        person.screen.post_message(WritingScreen.Failed(number, InputError("old trouble")))
        person.engine.go_on.set()
        await person.until(lambda: person.screen.desk.result)
        await person.drawn()
        assert person.shown == "new"
        assert person.result.job.tool.name == "friendly"
        assert "old trouble" not in person.told
        assert len(person.screen.history.past) == 2

    at_the_desk(test, lambda prompt: answers[_known(prompt, answers)])


def _known(prompt: str, answers: Mapping[str, str]) -> str:
    return next(part for part in answers if part in prompt)


def test_the_sheet_gets_additions_only() -> None:
    # The whole text anew for each token makes long answers slower and slower.
    class Counting(Reader):
        def __init__(self) -> None:
            super().__init__()
            self.sizes: list[int] = []

        def edit(self, edit: Edit) -> EditResult:
            self.sizes.append(len(edit.text))
            return super().edit(edit)

    class Sheets(App[None]):
        def compose(self) -> ComposeResult:
            yield Counting()

    async def test(pilot: Pilot[None]) -> None:
        sheet = pilot.app.query_one(Counting)
        sheet.begin()
        words = "All of these words come one by one".split()
        for count in range(1, len(words) + 1):
            sheet.stream((0, 1), " ".join(words[:count]))
        assert sheet.text == " ".join(words)
        assert max(sheet.sizes) <= len(" these")
        sheet.stream((0, 2), "Next")
        sheet.stream((0, 2), "Another attempt")
        assert sheet.text == " ".join(words) + "\nAnother attempt"
        sheet.begin()
        assert sheet.text == ""

    in_app(Sheets(), test, (40, 12))


def test_another_answer_is_sampled() -> None:
    async def test(person: Person) -> None:
        person.write("hey ana")
        await person.use("friendly")
        for attempt in (1, 2):
            await person.done(person.pilot.press("ctrl+r"))
            options = person.engine.requests[-1].options
            assert options.sampling == SamplingMode.random(seed=attempt)
            assert options.temperature > 0
        await person.drawn()
        assert "answer 3" in person.remarks
        assert person.engine.requests[0].options.sampling == SamplingMode.greedy()
        # The answer before comes back by undoing.
        await person.press("ctrl+z")
        assert person.result.job.attempt == 1

    at_the_desk(test, "Hello Ana!")


def test_original_and_changes_are_a_key_away() -> None:
    async def test(person: Person) -> None:
        person.write("hey ana, late")
        await person.use("friendly")
        await person.press("ctrl+o")
        await person.drawn()
        assert person.shown == "hey ana, late"
        assert "Friendly · original" in screen_text(person.app)
        await person.press("ctrl+o")
        await person.drawn()
        assert person.shown == "Hi Ana, late"
        await person.press("ctrl+b")
        await person.drawn()
        assert person.shown == "-hey ana,-+Hi Ana,+ late"
        await person.press("ctrl+s", "ctrl+o")
        await person.drawn()
        assert person.text == "Hi Ana, late"
        assert person.shown == "hey ana, late"  # of before it was accepted

    at_the_desk(test, "Hi Ana, late")


def test_a_described_change_and_a_follow_up() -> None:
    answers = {"Change: shorter": "Bus late.", "Change: as a question": "Is the bus late?"}

    async def test(person: Person) -> None:
        person.write("the bus is late")
        await person.describe("shorter")
        assert "Change: shorter\nText: the bus is late" in person.engine.prompts[-1]
        await person.describe("as a question")
        assert "Change: as a question\nText: Bus late." in person.engine.prompts[-1]
        assert person.shown == "Is the bus late?"
        assert person.remarks == "asked for: 1 shorter → 2 as a question"
        await person.press("ctrl+z")
        await person.drawn()
        assert person.shown == "Bus late."
        await person.press("ctrl+y", "ctrl+s")
        assert person.text == "Is the bus late?"
        before = len(person.engine.prompts)
        await person.press("ctrl+g", "enter")  # nothing described: nothing asked
        assert len(person.engine.prompts) == before

    at_the_desk(test, answers)


def test_replies_go_into_the_conversation() -> None:
    async def test(person: Person) -> None:
        person.write("hello there")
        person.screen.use(TOOLS[-1])
        await person.until(lambda: "no name" in person.told)
        person.write("me: Tea?\nAna: Yes! At 4?\nin the yard")
        await person.use("smart-reply")
        assert "Ana: Yes! At 4? in the yard" in person.engine.prompts[-1]
        options = person.screen.query_one(OptionList)
        assert [str(o.prompt) for o in options.options] == ["Yes, see you!", "Sorry, not at 4."]
        assert options.has_focus
        await person.press("down", "enter")
        assert person.text.endswith("in the yard\nme: Sorry, not at 4.")
        await person.press("ctrl+z")
        assert person.text.endswith("in the yard")

    at_the_desk(test, "Yes, see you!\nSorry, not at 4.")


def test_a_table_is_a_table() -> None:
    async def test(person: Person) -> None:
        person.write("Eco 4, Full [b]9[/b]")
        await person.use("table")
        table = person.screen.query_one(DataTable)
        assert table.has_focus
        assert [str(c.label) for c in table.columns.values()] == ["Mode", "Litres"]
        rows = [[str(cell) for cell in table.get_row_at(i)] for i in range(table.row_count)]
        assert rows == [["Eco", "4"], ["Full", "[b]9[/b]"]]
        await person.press("ctrl+s")
        assert person.text.splitlines()[0] == "| Mode | Litres |"

    at_the_desk(test, "| Mode | Litres |\n|---|---|\n| Eco | 4 |\n| Full | [b]9[/b] |")


def test_a_selection_alone_is_worked_on() -> None:
    async def test(person: Person) -> None:
        person.write("Dear Ana,\nthe bus is late\nBye")
        person.select((1, 0), (1, 15))
        await person.use("friendly")
        assert "Dear Ana" not in person.engine.prompts[-1]
        assert "Friendly · selection" in screen_text(person.app)
        await person.press("ctrl+s")
        assert person.text == "Dear Ana,\nOh no, late!\nBye"

    at_the_desk(test, "Oh no, late!")


def test_what_is_protected_stays() -> None:
    source = "Hey.\n```\nx=1\n```\nOpen https://a.org/x now.\n> was quoted\n"

    def answer(prompt: str) -> str:
        return "Please open the page now!" if "Open" in prompt.rpartition("user")[2] else "Hello!"

    async def test(person: Person) -> None:
        person.write(source)
        await person.use("friendly")
        assert len(person.engine.prompts) == 2
        assert not any("x=1" in p or "was quoted" in p for p in person.engine.prompts)
        shown = screen_text(person.app)
        assert "! lost: https://a.org/x (link)" in shown
        assert "Keep the original sentence" in shown
        await person.press("k", "ctrl+s")
        assert person.text == source.replace("Hey.", "Hello!")
        assert not person.result.lost

    at_the_desk(test, answer)


def test_errors_leave_the_screen_in_order() -> None:
    async def test(person: Person) -> None:
        person.write("> quoted\n")
        person.screen.use(TOOLS[1])
        await person.until(lambda: "your own words" in person.told)
        person.write("   ")
        person.screen.use(TOOLS[1])
        await person.until(lambda: "the text is empty" in person.told)
        assert person.engine.prompts == []
        assert person.screen.running is None

        def broken(prompt: str) -> str:
            raise ModelError("the model is gone: open another one")

        person.write("hey")
        person.engine.answers = broken
        person.screen.use(TOOLS[1])
        await person.until(lambda: "the model is gone" in person.told)
        assert person.screen.running is None
        person.engine.answers = "Hello!"
        await person.press("ctrl+r")
        await person.until(lambda: person.screen.desk.result)

    at_the_desk(test)


ODD = "[bold]x[/] <|im_end|> 👩‍👩‍👧 שלום \x1b[31mred\x07 ok"


def test_text_is_shown_and_sent_as_it_is() -> None:
    # Markup vanished, an escape sequence coloured the terminal, a special token ended the prompt.
    async def test(person: Person) -> None:
        person.write(ODD)
        await person.use("rewrite")
        assert ODD in person.engine.prompts[-1]
        tokens = list(person.engine.requests[-1].tokens)
        assert tokens.count(2) == person.engine.prompts[-1].count("<|im_end|>") - 1
        await person.press("ctrl+s")
        assert person.text == ODD
        shown = screen_text(person.app)
        assert "[bold]x[/] <|im_end|>" in shown and "␛[31mred␇" in shown
        assert "\x1b" not in shown
        await person.press("ctrl+b")
        await person.drawn()
        assert person.shown == ODD

    at_the_desk(test, ODD)


def test_keys_alone_and_undoing_typing_and_steps_in_their_order() -> None:
    async def test(person: Person) -> None:
        person.write("")
        await person.press("h", "i", "ctrl+t", "right", "right", "enter")
        await person.until(lambda: person.screen.desk.result)
        assert person.result.job.tool.name == "friendly"
        assert person.screen.pane.has_focus_within
        await person.press("ctrl+s", "ctrl+n")
        assert person.screen.editor.has_focus
        person.screen.editor.move_cursor(person.screen.editor.document.end)
        await person.press("x")
        assert person.text == "Hello!x"
        await person.press("ctrl+z")
        assert person.text == "Hello!"
        await person.press("ctrl+y")
        assert person.text == "Hello!x"
        await person.press("ctrl+z", "ctrl+z")
        assert person.text == "hi"
        await person.press("ctrl+z", "ctrl+z")  # the result, then the typing
        assert (person.text, person.screen.desk.result) == ("", None)
        await person.press("ctrl+z")
        assert "no step" in person.told
        person.screen.editor.focus()
        await person.press("f7")  # a text area has a use of its own for it
        await person.until(lambda: isinstance(person.app.screen, Keys))

    at_the_desk(test, "Hello!")


def test_little_room() -> None:
    async def test(person: Person) -> None:
        person.write(BEFORE)
        await person.use("proofread")
        shown = screen_text(person.app)
        assert "[-Their-+There+]" in shown and "Keep y" in shown
        assert "Describe the next change" in shown and "Proofread" in shown
        assert not person.screen.editor.display
        await person.press("a", "ctrl+n")
        await person.pilot.pause()
        assert AFTER[:20] in screen_text(person.app)
        assert not person.screen.pane.display
        await person.press("ctrl+g", "z", "e", "b", "r", "a")
        await person.until(lambda: "zebra" in screen_text(person.app))

    at_the_desk(test, AFTER, (40, 12))


@pytest.mark.parametrize("size", SIZES)
def test_looks(size: tuple[int, int]) -> None:
    answers = {
        FEATURES["proofread"].instructions: "I think they're going to ship it tomorrow.",
        FEATURES["table"].instructions: "| What | When |\n|---|---|\n| They ship it | tomorrow |",
    }

    async def test(person: Person) -> None:
        await person.drawn()
        await snapshot(person.pilot, "writing-empty")
        person.write("i think their going to ship it tomorow.")
        await person.use("proofread")
        for theme in THEMES:
            person.app.theme = theme
            await picture(person.pilot, "writing")
        await person.use("table")
        await snapshot(person.pilot, "writing-table")

    at_the_desk(test, answers, size)

"""Undo and redo, and the steps of the writing desk that they go through."""

from dataclasses import replace

from afm_mlx.errors import InputError
from afm_mlx.tui.writing.desk import Desk, locate
from afm_mlx.tui.writing.history import History
from afm_mlx.tui.writing.review import Correction, Review
from afm_mlx.tui.writing.tools import BY_NAME
from afm_mlx.tui.writing.work import Job, Result

import pytest

TEXT = "Dear Ana,\nteh bus is late.\nBye\n"


def test_undo_and_redo_go_through_all_states() -> None:
    history = History("a").step("b", "ab").step("c", "abc")
    assert (history.undoes, history.redoes) == ("c", "")
    back = history.undo().undo()
    assert (back.present, back.undoes, back.redoes) == ("a", "", "b")
    assert back.undo() is back
    assert back.redo().redo() == history
    assert history.redo() is history


def test_a_step_after_undo_forgets_what_was_undone() -> None:
    history = History("a").step("b", "ab").undo().step("x", "ax")
    assert history.redo() is history
    assert history.undo().present == "a"


def test_nothing_changed_is_no_step() -> None:
    # Ctrl+Z that shows no effect makes a person press it again, one step too far.
    history = History("a").step("b", "ab").undo()
    assert history.step("same", "a").redo().present == "ab"


def test_the_past_is_limited() -> None:
    history = History(0, limit=3)
    for i in range(1, 9):
        history = history.step(str(i), i)
    states = []
    while history.past:
        history = history.undo()
        states.append(history.present)
    assert states == [7, 6, 5]
    assert history.redo().redo().redo().present == 8


def result_of(tool: str, start: int, end: int, new: str, text: str = TEXT) -> Result:
    return Result(Job.on(BY_NAME[tool], text, start, end), new)


def test_a_result_takes_the_place_of_its_selection_alone() -> None:
    desk = Desk(TEXT, result_of("friendly", 10, 26, "Sorry, the bus is late!")).accept()
    assert desk.text == "Dear Ana,\nSorry, the bus is late!\nBye\n"
    assert desk.result is not None and desk.result.taken
    assert desk.accept().text == desk.text  # once more changes nothing


def test_a_result_finds_its_place_after_typing_before_it() -> None:
    desk = Desk("Hello!\n" + TEXT, result_of("friendly", 10, 26, "Late."))
    assert desk.accept().text == "Hello!\nDear Ana,\nLate.\nBye\n"


def test_a_result_is_refused_where_its_text_was_changed() -> None:
    # It replaced whatever stood at the old offsets.
    desk = Desk(TEXT.replace("bus", "tram"), result_of("friendly", 10, 26, "Late."))
    with pytest.raises(InputError, match="run the tool again"):
        desk.accept()
    with pytest.raises(InputError, match="choose a tool"):
        Desk(TEXT).accept()


def test_a_place_that_is_not_certain_is_none() -> None:
    assert locate("ab ab", "ab", 3) == 3
    assert locate("ab ab", "ab", 1) is None
    assert locate("xab", "ab", 0) == 1
    assert locate("xx", "ab", 0) is None


def reviewing() -> Desk:
    """Three corrections of the second line."""
    job = Job.on(BY_NAME["proofread"], TEXT, 10, 26)
    proposed = (
        Correction(0, 3, "teh", "The", "spelling"),
        Correction(4, 7, "bus", "coach", "wording"),
        Correction(11, 16, "late.", "late!", "punctuation"),
    )
    review = Review.of(job.base, proposed)
    return Desk(TEXT, Result(job, review.proposed, review=review))


def test_each_decision_is_in_the_text_at_once() -> None:
    desk = reviewing()
    kept = desk.decide("kept")
    assert kept.text == TEXT.replace("teh", "The")
    undone = kept.decide("undone").decide("kept")
    assert undone.text == "Dear Ana,\nThe bus is late!\nBye\n"
    assert undone.result is not None and undone.result.taken
    assert not (kept.result and kept.result.taken)


def test_a_decision_can_be_taken_back() -> None:
    history = History(reviewing())
    for decision in ("kept", "undone"):
        history = history.step(decision, history.present.decide(decision))
    again = history.undo()
    review = again.present.result and again.present.result.review
    assert review and [c.decision for c in review.corrections] == ["kept", "open", "open"]
    assert again.undo().present == reviewing()


def test_all_none_and_the_rest() -> None:
    desk = reviewing()
    whole = "Dear Ana,\nThe coach is late!\nBye\n"
    assert desk.decide("kept", every=True).text == whole
    assert desk.decide("kept", every=True).decide("undone", every=True).text == TEXT
    assert desk.decide("undone").accept().text == whole.replace("The", "teh")


def test_a_review_survives_no_typing_inside_it() -> None:
    desk = replace(reviewing(), text=TEXT.replace("late", "early"))
    with pytest.raises(InputError, match="changed"):
        desk.decide("kept")


def test_a_reply_follows_the_conversation() -> None:
    text = "Ana: Lunch at 12?\n"
    result = replace(result_of("smart-reply", 0, 0, "", text), replies=("Yes!", "No."))
    desk = Desk(text, result)
    assert desk.reply(1).text == "Ana: Lunch at 12?\nme: No.\n"
    assert desk.reply(7) is desk
    with pytest.raises(InputError, match="choose a reply"):
        desk.accept()


def test_a_follow_up_works_on_the_result_and_remembers_what_was_asked() -> None:
    first = Desk(TEXT).follow_up("shorter", 10, 26)
    assert (first.base, first.instructions) == ("teh bus is late.", ("shorter",))
    desk = Desk(TEXT, Result(first, "Bus late."))
    second = desk.follow_up("as a question", 0, 0)
    assert (second.base, second.source) == ("Bus late.", "teh bus is late.")
    assert second.instructions == ("shorter", "as a question")
    assert second.original == "teh bus is late."
    # That the selection is still there makes it no other one.
    assert desk.follow_up("as a question", 10, 26) == second
    # Another selection begins anew.
    assert desk.follow_up("louder", 0, 9).instructions == ("louder",)
    # And so does a text that the result is not of any more.
    assert Desk("Other", desk.result).follow_up("louder", 0, 0).base == "Other"


def test_a_follow_up_of_an_accepted_result_replaces_it() -> None:
    job = Desk(TEXT).follow_up("shorter", 10, 26)
    desk = Desk(TEXT, Result(job, "Bus late.")).accept()
    job = desk.follow_up("as a question", 0, 0)
    asked = Desk(desk.text, Result(job, "Is the bus late?")).accept()
    assert asked.text == "Dear Ana,\nIs the bus late?\nBye\n"

"""What lies on the desk: the text and the last result, and the steps from one state to the next.

All steps are pure; :class:`afm_mlx.tui.writing.history.History` keeps what they lead to.
"""

from dataclasses import dataclass, replace

from afm_mlx.errors import InputError
from afm_mlx.tui.writing import thread
from afm_mlx.tui.writing.review import Decision, Review
from afm_mlx.tui.writing.tools import CHANGING
from afm_mlx.tui.writing.work import Job, Result, keep_original


@dataclass(frozen=True)
class Desk:
    """The text, and what a tool made of it or of a part of it."""

    text: str = ""
    result: Result | None = None

    def put(self, new: str, result: Result) -> "Desk":
        """``new`` in the place of the source of ``result``, which knows of it.

        Raises:
            InputError: what it was made of does not stand in the text any more.
        """
        job = result.job
        at = locate(self.text, job.source, job.start)
        if at is None:
            raise InputError(
                "the text has changed where this belongs: run the tool again, or undo your changes"
            )
        text = self.text[:at] + new + self.text[at + len(job.source) :]
        return Desk(text, replace(result, job=replace(job, source=new, start=at)))

    def accept(self) -> "Desk":
        """The result in its place in the text; of a review, what is still open is kept.

        Raises:
            InputError: there is nothing to accept.
        """
        result = self.result
        if result is None:
            raise InputError("there is no result to accept: choose a tool first, F9 saves the text")
        if result.replies:
            raise InputError("choose a reply first: Enter on it puts it into the text")
        if result.review is not None:
            return self.review(result.review.decide_all("kept", only_open=True))
        return self.put(result.text, replace(result, taken=True))

    def decide(self, decision: Decision, every: bool = False) -> "Desk":
        """Keep or undo the current correction, or every one; the text follows at once."""
        if self.result is None or self.result.review is None:
            return self
        review = self.result.review
        return self.review(review.decide_all(decision) if every else review.decide(decision))

    def review(self, review: Review) -> "Desk":
        """The text as ``review`` has it now."""
        assert self.result is not None  # a review is of a result
        done = all(c.decision != "open" for c in review.corrections)
        result = replace(self.result, review=review, text=review.proposed, taken=done)
        return self.put(review.decided, result)

    def reply(self, number: int) -> "Desk":
        """A reply as the person's next message."""
        result = self.result
        if result is None or number >= len(result.replies):
            return self
        new = thread.with_reply(result.job.source, result.replies[number])
        return self.put(new, replace(result, taken=True))

    def keep_original(self) -> "Desk":
        """The result with the original sentence of what it lost.

        Where the result stands in the text already, it is put there anew.
        """
        if self.result is None:
            return self
        result = keep_original(self.result)
        return self.put(result.text, result) if result.taken else replace(self, result=result)

    def follow_up(self, instruction: str, start: int, end: int) -> Job:
        """A described change: of the last result, where nothing else is selected now.

        A review is followed up as it is proposed.
        """
        result = self.result
        if result is not None and not result.replies:
            job = result.job
            at = locate(self.text, job.source, job.start)
            if at is not None and (start == end or (start, end) == (at, at + len(job.source))):
                told = (*job.instructions, instruction)
                return replace(
                    job, tool=CHANGING, base=result.text, instructions=told, start=at, attempt=0
                )
        return Job.on(CHANGING, self.text, start, end, instruction)

    def again(self, job: Job, start: int, end: int) -> Job:
        """``job`` once more; on the text as it is now where what it was for is there no more."""
        grown = job.whole and job.base == job.source != self.text
        if not grown and locate(self.text, job.source, job.start) is not None:
            return job
        now = Job.on(job.tool, self.text, start, end, *job.instructions[-1:])
        return replace(now, attempt=job.attempt)


def locate(text: str, part: str, near: int) -> int | None:
    """Where ``part`` stands in ``text``: ``near``, or the one other place that has it."""
    if text.startswith(part, near):
        return near
    first = text.find(part)
    if first < 0 or not part or text.find(part, first + 1) >= 0:
        return None
    return first

"""What a feature is: instructions, how input becomes a prompt, how the answer is read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from afm_mlx.errors import InputError
from afm_mlx.facts import Kind
from afm_mlx.features.inputs import Input
from afm_mlx.tokenizer import Message

InputT = TypeVar("InputT", bound=Input)


@dataclass(frozen=True)
class Reading:
    """What an answer means.

    Attributes:
        value: the result: a line, a list, a table as rows, a bool, a corrected text.
        note: why the model's words were not used as they are, if so.
        cut: whether words over the limit were left out.
    """

    value: Any
    note: str | None = None
    cut: bool = False


@dataclass(frozen=True)
class Feature(Generic[InputT]):
    """One thing the model does for a person.

    Attributes:
        instructions: system message; kept as a cached prefix between requests.
        input: class of the input.
        render: the user message for an input.
        read: reads the model's text; gets the input too, to check against it.
        examples: worked user messages and answers that stand before the real one.
        answer_tokens: most tokens the answer may take, given the tokens of the input.
        part_tokens: input above this is worked on in parts.
        long: how parts come together: ``join`` the answers, or summarise the earlier ones
            and go on (``condense``).
        choices: if given, the model picks one of these words.
        favours: nats by which an adapter's choice of each is favoured.
        lines: the answer ends with that many; 0 is no limit.
        facts: kinds of facts that the answer may only take from the input.
        grounded: names and numbers are held to the input while the model writes.
        keeps: nats by which a change of the text must be likelier than none.
        best_of: where the first answer of an adapter has faults, others are sampled up to that
            many; the bare model has too many for that.
        lacks: counts what an answer lacks beside what it invents, as faults.
    """

    name: str
    title: str
    instructions: str
    input: type[InputT]
    render: Callable[[InputT], str]
    read: Callable[[str, InputT], Reading]
    examples: tuple[tuple[str, str], ...] = ()
    answer_tokens: Callable[[int], int] = lambda n: n + n // 4 + 16
    part_tokens: int = 768
    long: Literal["join", "condense"] = "condense"
    choices: tuple[str, ...] = ()
    favours: tuple[float, ...] = ()
    stop: tuple[str, ...] = ()
    lines: int = 0
    facts: tuple[Kind, ...] = ()
    grounded: bool = False
    keeps: float = 0.0
    best_of: int = 1
    lacks: Callable[[str, InputT], int] = lambda answer, value: 0

    def messages(self, value: InputT, examples: bool = True) -> list[Message]:
        """The conversation that asks for ``value``; all but the last message is fixed.

        An adapter was taught without ``examples``, and is asked without.
        """
        if not isinstance(value, self.input):
            raise InputError(f"{self.name} works on {self.input.__name__}, see its help")
        turns = [Message("system", self.instructions)]
        for question, answer in self.examples if examples else ():
            turns += [Message("user", question), Message("assistant", answer)]
        return [*turns, Message("user", self.render(value))]

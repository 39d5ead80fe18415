"""What can be typed after ``afm``: one dataclass per command, whose fields are its options.

Nothing heavy is imported before a command runs, so that ``afm --help`` answers at once.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from afm_mlx.errors import InputError
from afm_mlx.text import MAX_CHARACTERS

from tyro.conf import Positional

Format = Literal["auto", "text", "json"]
Tone = Literal["plain", "friendly", "professional", "concise"]
Shape = Literal["points", "list", "table"]


@dataclass(frozen=True)
class Common:
    """Options that all commands with a model share."""

    model: str | None = None
    """Model folder, .gguf file or hub repository; the embedded default if left out."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    json: bool = False
    """Print one JSON object per answer, for programs."""
    temperature: float = 0.0
    """0 always takes the likeliest token; higher values vary more."""
    seed: int | None = None
    """Makes a temperature above 0 repeatable."""
    kv: Literal["16", "8", "8/4"] = "16"
    """Bits of the KV cache; 8/4 is 8 for keys and 4 for values. Fewer take less memory."""


@dataclass(frozen=True)
class Input(Common):
    """Options of commands that read texts."""

    files: Positional[tuple[Path, ...]] = ()
    """Files to read; standard input if none is given."""
    format: Format = "auto"
    """Treat the input as plain text or JSON; auto looks at its name and beginning."""
    max_characters: int = MAX_CHARACTERS
    """Refuse input that is longer than this."""
    adapter: bool = True
    """Use the adapter of the feature, if there is one for the model."""
    best_of: int | None = None
    """Where an answer has faults that checks can see, write others up to that many and take the
    best. Left out, an adapter has 4 for notifications, tones, changes and replies."""

    def read(self) -> list[Any]:
        """The texts and JSON values handed to the command; read before anything heavy."""
        from afm_mlx.cli.reading import read_items

        return read_items(self.files, self.format)


@dataclass(frozen=True)
class Summarize(Input):
    """Summarize notifications, message threads or a text.

    Text gives a summary of at most 3 sentences. JSON with "notifications" gives one line a
    stack, marked if it is urgent:

      {"app": "Mail", "group": "Ana", "notifications": [{"title": "Ana", "body": "..."}]}

    One object, a list, or one object a line. Examples:

      afm summarize letter.txt
      pbpaste | afm summarize
      afm summarize inbox.jsonl --json
    """

    priority: bool = True
    """Also say whether a notification stack is urgent."""

    def run(self) -> int:
        items = self.read()
        from afm_mlx.cli import work

        return work.summarize(self, items)


@dataclass(frozen=True)
class Proofread(Input):
    """Correct spelling, grammar and punctuation, and list every change.

    echo "its a nice day" | afm proofread
    afm proofread letter.txt --json | jq .value.edits
    """

    def run(self) -> int:
        items = self.read()
        from afm_mlx.cli import work

        return work.proofread(self, items)


@dataclass(frozen=True)
class Rewrite(Input):
    """Rewrite a text, in another tone if you name one.

    afm rewrite --tone friendly mail.txt
    pbpaste | afm rewrite --tone concise | pbcopy
    """

    tone: Tone = "plain"
    """How the new text should sound."""

    def run(self) -> int:
        items = self.read()
        from afm_mlx.cli import work

        return work.rewrite(self, items)


@dataclass(frozen=True)
class KeyPoints(Input):
    """Give the 3 to 6 key points of a text, or turn it into a list or table.

    afm key-points minutes.txt
    afm key-points --shape table prices.txt
    """

    shape: Shape = "points"
    """points: the most important ones; list and table: everything."""

    def run(self) -> int:
        items = self.read()
        from afm_mlx.cli import work

        return work.key_points(self, items)


@dataclass(frozen=True)
class Reply(Input):
    """Suggest two short replies to a message.

    Text counts as the message itself; JSON gives the thread, the last message to be answered:

      {"messages": [{"from": "me", "text": "..."}, {"from": "Ana", "text": "..."}]}

      echo "Are you coming on Saturday?" | afm reply
    """

    def run(self) -> int:
        items = self.read()
        from afm_mlx.cli import work

        return work.reply(self, items)


@dataclass(frozen=True)
class Change(Input):
    """Change a text as you describe.

      afm change --instruction "move it to Thursday" invitation.txt

    JSON may carry its own: {"text": "...", "instruction": "..."}
    """

    instruction: str | None = None
    """What to change."""

    def run(self) -> int:
        items = self.read()
        from afm_mlx.cli import work

        return work.change(self, items)


@dataclass(frozen=True)
class Demo(Common):
    """Summarize a small inbox and try some writing tools.

    Loads the embedded model (or --model) and shows its answers as they are written, with
    timings. Nothing leaves this machine.
    """

    adapter: bool = True
    """Use the adapters of the features, if there are any for the model."""

    def run(self) -> int:
        from afm_mlx.cli import demo

        return demo.run(self)


@dataclass(frozen=True)
class App:
    """Open the app: notifications, writing tools, adapters, quantising, distilling.

    It has the terminal to itself; Ctrl-Q ends it, F7 shows all keys. `afm` alone opens it too.

      afm app --model quantized
      afm --serve
    """

    model: str | None = None
    """Model folder, .gguf file or hub repository; the one used last if left out."""
    inbox: Path | None = None
    """File with notifications; those that come along if left out."""
    serve: bool = False
    """Show it in a browser on this machine instead; needs the package textual-serve."""
    port: int = 0
    """Port of that; 0 takes a free one."""

    def run(self) -> int:
        inbox = str(self.inbox.absolute()) if self.inbox else None
        # By name: the command line works without Textual.
        if self.serve:
            return int(import_module("afm_mlx.tui.serve").main(self.model, inbox, self.port))
        return int(import_module("afm_mlx.tui.app").main(self.model, inbox))


@dataclass(frozen=True)
class Chat(Common):
    """Talk to the model. Each line is one message; /new starts over, Ctrl-D ends.

    Ctrl-C stops an answer. In a pipe, every input line is answered in turn:

      echo "Name three rivers." | afm chat
    """

    instructions: str | None = None
    """How the model should behave."""
    max_tokens: int = 512
    """Longest answer, in tokens."""

    def run(self) -> int:
        from afm_mlx.cli import chat

        return chat.run(self)


@dataclass(frozen=True)
class Distill:
    """Prune a student out of a teacher and distil it: see `afm distill --help`."""


@dataclass(frozen=True)
class Quantize:
    """Palettise a model to about 3.5 bits a weight: see `afm quantize --help`."""


@dataclass(frozen=True)
class Profile:
    """Measure each operation of a model: see `afm profile --help`."""


@dataclass(frozen=True)
class EvaluateFeatures:
    """Measure how well the features do: see `afm eval features --help`."""

    def run(self) -> int:
        raise InputError("say what to evaluate: afm eval features DATA")


@dataclass(frozen=True)
class ListModels:
    """Show the embedded model and all readable models in the hub cache."""

    json: bool = False
    """Print one JSON object per model."""

    def run(self) -> int:
        from afm_mlx.cli import models

        return models.show(self)


@dataclass(frozen=True)
class Download:
    """Download a llama-family model from the Hugging Face Hub; goes on where it stopped.

    afm models download HuggingFaceTB/SmolLM2-360M-Instruct
    """

    name: Positional[str]
    """Repository, owner/name."""
    revision: str | None = None
    """Branch, tag or commit; the newest if left out."""

    def run(self) -> int:
        from afm_mlx.cli import models

        return models.download(self)


@dataclass(frozen=True)
class Remove:
    """Delete a model from the hub cache."""

    name: Positional[str]
    """Repository, owner/name."""

    def run(self) -> int:
        from afm_mlx.cli import models

        return models.remove(self)


@dataclass(frozen=True)
class Doctor:
    """Check this machine: device, memory, BLAS, compiler, models, versions.

    Says what to do about each problem; exits with 1 if there is one.
    """

    kernels: bool = False
    """Compare the kernels of palettes with plain MLX on this machine's GPU instead."""
    json: bool = False
    """Print the checks as one JSON object."""

    def run(self) -> int:
        from afm_mlx.cli import doctor

        return doctor.run(self)


@dataclass(frozen=True)
class Bench:
    """Measure prefill, decoding and time to first token beside mlx-lm on the same weights.

    On Linux also beside mlx-lm with the BLAS that the MLX wheel carries. All in one run, so
    the ratios hold even where the machine is busy.
    """

    model: str | None = None
    """Model folder, .gguf file or hub repository; the embedded default if left out."""
    prompt_tokens: int = 512
    """Length of the prompt."""
    generate_tokens: int = 48
    """Tokens to decode."""
    repeats: int = 3
    """Runs of each measurement; the median counts."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        from afm_mlx.cli import bench

        return bench.run(self)

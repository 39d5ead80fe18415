"""Make the calibration text that comes with the package.

uv run python tests/bench/calibration_text.py FEATURES WIKITEXT_VALID

A third of it each: requests of the features with their reference answers (training files only),
chats whose answers the embedded model gives itself, and encyclopedia text.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from afm_mlx import load
from afm_mlx.features import FEATURES
from afm_mlx.files import write_bytes
from afm_mlx.quant.calibration import SHIPPED
from afm_mlx.tokenizer import Message

import mlx.core as mx
import tyro
from mlx_lm.generate import generate_step
from perplexity import clean
from tyro.conf import Positional

EACH = 60  # requests of each kind of feature
ANSWER = 128  # tokens of a chat's answer
CHARACTERS = 90_000  # of encyclopedia text

QUESTIONS = """\
How do I keep basil alive on a windowsill?
Explain to a child why the moon changes its shape.
Write a polite note asking a neighbour to turn the music down.
What is the difference between a virus and a bacterium?
Give me three ideas for a rainy Sunday with two small children.
My bicycle chain keeps slipping. What could be wrong?
Write a haiku about the first snow.
Plan a simple dinner for four people without meat.
What does inflation mean, in two sentences?
Translate "Where is the nearest pharmacy?" into Spanish and French.
Write a Python function that removes duplicates from a list but keeps the order.
How far is the sun from the earth, and how long does its light take?
I have a job interview tomorrow and I am nervous. Any advice?
List the pros and cons of working from home.
Who painted the ceiling of the Sistine Chapel, and when?
Write the opening paragraph of a detective story set in a bakery.
What should I check before I buy a used car?
Convert 68 degrees Fahrenheit to Celsius and show the steps.
Suggest a name for a small shop that repairs old radios.
Why do leaves turn red in autumn?
Give me a packing list for three days of hiking.
Summarize the plot of Romeo and Juliet in four sentences.
What is a good way to remember people's names?
Explain recursion with an everyday example.
Write a short thank-you message to a teacher at the end of the year.
How do vaccines work?
What is 17 times 24? Show how you get there.
Describe the taste of an orange to someone who never had one.
Which is larger, the Pacific or the Atlantic Ocean, and by how much?
Write an e-mail to my landlord about a broken heater.
What are the rules of tic-tac-toe?
Give five synonyms for "happy" and use each in a sentence.
How can a small town reduce the noise of traffic?
Tell me an interesting fact about octopuses.
What is the capital of Australia, and why is it not Sydney?
Make a table of the planets with their number of moons.
Explain the difference between weather and climate.
How do I politely decline an invitation to a wedding?
Write a riddle whose answer is "a shadow".
What should be in a first-aid kit at home?
""".splitlines()


@dataclass(frozen=True)
class Options:
    features: Positional[Path]
    """Folder of the feature data; only its ``*.train.jsonl`` files are read."""
    text: Positional[Path]
    out: Path = SHIPPED


def lines(folder: Path, name: str, draw: random.Random) -> list[dict[str, Any]]:
    """Some samples of a kind."""
    found = []
    for file in sorted(folder.glob(f"{name}*.train.jsonl")):
        found += [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return draw.sample(found, min(EACH, len(found)))


def conversations(folder: Path, draw: random.Random) -> Iterator[list[Message]]:
    """Requests as the features make them, without worked examples, and reference answers."""

    def asked(name: str, item: Any, answer: str) -> list[Message]:
        feature: Any = FEATURES[name]
        request = feature.messages(feature.input.from_json(item))
        return [request[0], request[-1], Message("assistant", answer)]

    for item in lines(folder, "notifications", draw):
        yield asked("notification-summary", item, item["summary"])
    for item in lines(folder, "proofread", draw):
        yield asked("proofread", item, item["corrected"])
    for item in lines(folder, "rewrite", draw):
        tone = draw.choice(["friendly", "professional", "concise"])
        yield asked(tone, item, item[tone])
    for item in lines(folder, "texts", draw)[: EACH // 2]:
        yield asked("summary", item, item["summary"])
    for item in lines(folder, "texts", draw)[: EACH // 3]:
        yield asked("key-points", item, "\n".join(f"- {p}" for p in item["key_points"]))
    for item in lines(folder, "changes", draw):
        yield asked("change", item, item["output"])
    for item in lines(folder, "replies", draw):
        yield asked("smart-reply", item, "\n".join(item["replies"]))


def chats() -> Iterator[list[Message]]:
    """Questions, and what the embedded model says."""
    checkpoint = load()
    tokenizer = checkpoint.tokenizer
    for question in QUESTIONS:
        asked = [Message("user", question)]
        said: list[int] = []
        prompt = mx.array(tokenizer.chat(asked))
        for token, _ in generate_step(prompt, checkpoint.model, max_tokens=ANSWER):
            if token in tokenizer.eos_token_ids:
                break
            said.append(token)
        print(question, flush=True)
        yield [*asked, Message("assistant", tokenizer.decode(said))]


def main(options: Options) -> None:
    draw = random.Random(0)
    samples: list[dict[str, Any]] = []
    for messages in [*conversations(options.features, draw), *chats()]:
        samples.append({"messages": [{"role": m.role, "content": m.content} for m in messages]})
    articles = clean(options.text.read_text("utf-8")).split("\n = ")
    draw.shuffle(articles)
    taken = 0
    for article in articles:
        piece = article[:4000].strip()
        if len(piece) > 500 and taken < CHARACTERS:
            samples.append({"text": piece})
            taken += len(piece)
    rows = "\n".join(json.dumps(s, ensure_ascii=False) for s in samples)
    write_bytes(options.out, (rows + "\n").encode())


if __name__ == "__main__":
    main(tyro.cli(Options))

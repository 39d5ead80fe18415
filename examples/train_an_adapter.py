"""Teach a model to name the mood of a message, and compare its answers before and after.

uv run python examples/train_an_adapter.py [FOLDER] [STEPS]

The samples stand in this file. Another run with more STEPS goes on where this one ended.
"""

import json
import sys
from pathlib import Path

from afm_mlx import load
from afm_mlx.adapters import formats, lora
from afm_mlx.adapters.train import AdapterSteps, AdapterTraining, Finished, train_adapter
from afm_mlx.checkpoint import Checkpoint
from afm_mlx.errors import AFMError
from afm_mlx.generation import GenerationOptions, Request, generate
from afm_mlx.tokenizer import Message
from afm_mlx.training import Evaluated, Step

MOODS = {
    "happy": ["We won the cup!", "She said yes!", "Best concert ever.", "The sun is out again."],
    "angry": ["Who ate my lunch?", "Stop calling me.", "That bill is a joke.", "Late once more!"],
    "sad": ["Our cat is gone.", "I miss the old house.", "Nobody came.", "He moved away today."],
    "calm": ["Tea is ready.", "See you at six.", "The train is on time.", "Book is on the desk."],
}
QUESTION = "In one word, what is the mood of this message? "
NEW = "They cancelled my flight and nobody told me!"


def main(folder: str = "mood", steps: str = "24") -> None:
    data = Path(folder).with_suffix(".jsonl")
    samples = [
        {"prompt": QUESTION + text, "completion": f"mood: {mood}"}
        for texts in zip(*MOODS.values(), strict=True)
        for mood, text in zip(MOODS, texts, strict=True)
    ]
    data.write_text("".join(json.dumps(s) + "\n" for s in samples), encoding="utf-8")

    base = load()
    print(f"before: {answer(base)}")
    schedule = AdapterSteps(steps=int(steps), epochs=1000, evaluate_every=8)
    for event in train_adapter(
        base, [str(data)], AdapterTraining("mood", out=folder, training=schedule)
    ):
        match event:
            case Step():
                speed = f"{event.tokens_per_second:.0f} tok/s"
                print(f"step {event.step}: loss {event.loss:.3f}, {speed}")
            case Evaluated():
                print(f"held out: {event.metrics}")
            case Finished():
                lora.put(base.model, formats.read(event.folder))
    print(f"after: {answer(base)}")


def answer(base: Checkpoint) -> str:
    prompt = base.tokenizer.chat([Message("user", QUESTION + NEW)])
    request = Request(prompt, GenerationOptions(maximum_response_tokens=16))
    *_, last = generate(base.model, base.tokenizer, request)
    return last.text


if __name__ == "__main__":
    try:
        main(*sys.argv[1:3])
    except AFMError as error:
        sys.exit(f"train_an_adapter: {error}")

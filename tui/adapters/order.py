"""What a person fills in to train an adapter, as options of the trainer; and its plan in words."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from afm_mlx.adapters.adapter import LoRAOptions
from afm_mlx.adapters.train import AdapterSteps, AdapterTraining, Planned
from afm_mlx.distill.markdown import amount, duration
from afm_mlx.errors import InputError
from afm_mlx.tokenizer import Message
from afm_mlx.tui.adapters.training import Order
from afm_mlx.tui.settings import expanded

Number = TypeVar("Number", int, float)

FIELDS = ("data", "name", "rank", "epochs", "rate", "prompt")
LISTED = 12
"""Samples that cannot be used, one line each."""


def defaults() -> dict[str, str]:
    """What the fields hold at first."""
    steps = AdapterSteps()
    return {
        "rank": str(LoRAOptions().rank),
        "epochs": f"{steps.epochs:g}",
        "rate": f"{steps.learning_rate:g}",
    }


def order(values: Mapping[str, str], feature: str, home: Path) -> Order:
    """The run that the fields ask for.

    Raises:
        InputError: a field is empty or holds what it cannot.
    """
    data = paths(values["data"])
    if not data:
        raise InputError("there is nothing to learn from: name a JSONL file, e.g. chat.jsonl")
    if not values["name"]:
        raise InputError("the adapter has no name: give it one, e.g. mail")
    options = AdapterTraining(
        values["name"],
        feature,
        out=str(home / values["name"]),
        lora=LoRAOptions(rank=_number("rank", values["rank"], int)),
        training=AdapterSteps(
            epochs=_number("epochs", values["epochs"], float),
            learning_rate=_number("the learning rate", values["rate"], float),
        ),
    )
    prompt = (Message("user", values["prompt"]),) if values["prompt"] else ()
    return Order(data, options, prompt)


def paths(text: str) -> tuple[str, ...]:
    """Paths with spaces between them; quotation marks hold one with spaces together.

    Raises:
        InputError: a quotation mark is open.
    """
    try:
        return tuple(str(expanded(part)) for part in shlex.split(text))
    except ValueError as error:
        raise InputError(f"a quotation mark in {text} is open: close it") from error


def _number(name: str, text: str, kind: type[Number]) -> Number:
    try:
        return kind(text)
    except ValueError as error:
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"{name} must be {wanted}, not {text!r}: correct it") from error


def plan_lines(plan: Planned, base: str) -> list[str]:
    """What the run takes, and what of the data it leaves out."""
    data, memory = plan.data, plan.memory
    left = f", {plan.done} of them done" if plan.done else ""
    learnt = data.learnt / max(data.tokens, 1)
    lines = [
        f"rows    {data.rows + len(data.bad)}: {data.samples} to learn, {data.held_out} held out,"
        f" {len(data.bad)} bad" + (f", {data.too_long} too long" if data.too_long else ""),
        f"tokens  {amount(data.tokens)}, {learnt:.0%} of them learnt; longest {data.longest}",
        f"steps   {plan.steps}{left}; {plan.epochs:.1f} times through; {amount(plan.parameters)}"
        f" numbers learn for {base}",
        f"memory  {memory.needed / 1e9:.2f} of {memory.available / 1e9:.2f} GB: {memory.verdict}"
        + (f"; {memory.advice}" if memory.advice else ""),
        f"time    about {duration(plan.seconds)}",
    ]
    if data.too_long:
        lines.append(f"! {data.too_long} conversations are longer than the window, left out")
    lines += [f"✗ {line}" for line in data.bad[:LISTED]]
    if len(data.bad) > LISTED:
        lines.append(f"✗ {len(data.bad) - LISTED} more that cannot be used")
    return lines

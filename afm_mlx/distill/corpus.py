"""What a run learns from: teachers' answers, filtered, tokenised and packed, some held out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from afm_mlx.data import filters
from afm_mlx.data.packing import Windows, join
from afm_mlx.data.quality import QualityFilter
from afm_mlx.data.sources import Sample, Source, read
from afm_mlx.data.tokens import TokenStore, cache_key, tokenize
from afm_mlx.distill.answers import LocalRespondent, Respondent
from afm_mlx.distill.endpoint import Endpoint
from afm_mlx.distill.files import digest
from afm_mlx.distill.prompts import read_prompts
from afm_mlx.distill.recipe import Recipe
from afm_mlx.distill.rewards import Reward
from afm_mlx.distill.sequence import ANSWERS, Answered, SequenceReport, answer_prompts
from afm_mlx.distill.teachers import Committee
from afm_mlx.errors import InputError
from afm_mlx.files import write_bytes
from afm_mlx.tokenizer import Tokenizer

import numpy as np


@dataclass(frozen=True)
class Corpus:
    """Packed text.

    Attributes:
        key: names all of it, its tokens and how they are packed.
        sources: where it came from, and ``tokens`` of each.
        windows: all of it; ``train`` and ``held_out`` are its parts.
        notes: what a person should know, a line each.
        filters: what the filters removed, Markdown.
    """

    key: str
    sources: tuple[Source, ...]
    tokens: tuple[int, ...]
    windows: Windows
    train: Windows
    held_out: Windows
    notes: tuple[str, ...]
    filters: str

    @property
    def conversations(self) -> TokenStore:
        """The samples of the only source without those that are held out."""
        if len(self.windows.stores) != 1:
            raise InputError("on_policy takes its prompts from one source: give a single one")
        store, packing = self.windows.stores[0], self.windows.packings[0]
        held: list[int] = []
        for number in self.held_out.numbers[0].tolist():
            held += packing.sample[packing.first[number] : packing.first[number + 1]].tolist()
        stay = np.setdiff1d(np.arange(len(store)), held)
        lengths = store.lengths[stay]
        parts = [np.arange(store.offsets[i], store.offsets[i + 1]) for i in stay]
        at = np.concatenate(parts) if parts else np.arange(0)
        return TokenStore(
            store.tokens[at],
            store.learn[at],
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            store.splittable[stay],
        )


def build(recipe: Recipe, sources: Sequence[Source], tokenizer: Tokenizer) -> Corpus:
    """Read, filter, tokenise and pack ``sources``; what is in the run's folder is used again.

    Raises:
        InputError: a file, a line or a setting cannot be used.
    """
    data, out = recipe.data, Path(recipe.out)
    notes: list[str] = []
    quality = digest(Path(data.quality)) if data.quality else ""
    report = filters.FilterReport()

    def samples(source: Source) -> Iterator[Sample]:
        steps = filters.named(data.filters)
        if data.quality:
            steps.append(QualityFilter(Path(data.quality)))
        skipped: list[str] = []
        yield from filters.run(read(source, data.skip_bad, skipped), steps, report)
        notes.extend(skipped)

    parts, tokens, keys = [], [], [str(data.window)]
    for source in sources:
        key = cache_key(tokenizer, [source], {"filters": data.filters, "quality": quality})
        store = tokenize(samples(source), tokenizer, out / "tokens", key)
        keys.append(key)
        parts.append(Windows.of(store, data.window))
        tokens.append(store.num_tokens)
        truncated = parts[-1].reports[0].truncated
        if truncated:
            notes.append(
                f"{source.path}: {truncated} conversations are longer than a window of"
                f" {data.window} tokens and lose their end"
            )
    windows = join(parts)
    train, held_out = windows.split(data.held_out)
    path = out / "filters.md"
    if report.steps:
        write_bytes(path, report.to_markdown().encode())
    filtered = path.read_text(encoding="utf-8") if path.exists() else ""
    return Corpus(
        " ".join(keys),
        tuple(sources),
        tuple(tokens),
        windows,
        train,
        held_out,
        tuple(notes),
        filtered,
    )


def ask(recipe: Recipe, committee: Committee) -> Iterator[Answered | SequenceReport]:
    """Let the teachers answer the recipe's prompts, into the run's folder."""
    asking = recipe.asking
    members: list[Respondent] = []
    if asking.endpoint:
        members = [Endpoint(url, asking.endpoint_model, asking.how) for url in asking.endpoint]
    if recipe.teacher or not members:
        members += [LocalRespondent(t, asking.how.thoughts) for t in committee.teachers]
    scoring = committee if recipe.teacher or not asking.endpoint else None
    yield from answer_prompts(
        read_prompts(Path(asking.prompts)),
        members,
        Reward(asking.reward, scoring),
        answers_folder(recipe),
        asking.sequence,
    )


def answers_folder(recipe: Recipe) -> Path:
    return Path(recipe.out) / "answers"


def sources(recipe: Recipe) -> tuple[Source, ...]:
    """The recipe's data, and what the teachers answered."""
    if not recipe.asking.prompts:
        return recipe.data.sources
    own = recipe.data.sources if recipe.data.data else ()
    path = answers_folder(recipe) / ANSWERS
    if not path.exists() or not path.stat().st_size:
        raise InputError(
            "no answer was good enough to learn from: lower least_reward, or look at"
            f" {answers_folder(recipe)}"
        )
    return (*own, Source(str(path)))

"""What cannot work, said before anything long begins or anything is overwritten."""

from pathlib import Path
from typing import Any

from afm_mlx import parallel
from afm_mlx.distill.corpus import Corpus
from afm_mlx.distill.files import read_json
from afm_mlx.distill.recipe import Recipe, differences
from afm_mlx.distill.teachers import Committee
from afm_mlx.errors import InputError
from afm_mlx.model_args import ModelArgs


def folder(recipe: Recipe, out: Path) -> None:
    """Refuse a folder with another run or with something else in it."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file: name a folder with --out")
    before = read_json(out / "recipe.json")
    changed = differences(before, recipe.to_dict()) if before else []
    if changed:
        raise InputError(
            f"{out} holds a run with other settings ({', '.join(changed)}): choose another"
            " folder with --out, or delete it"
        )
    if not before and any((out / name).exists() for name in ("start", "student")):
        raise InputError(
            f"{out} has models in it, but no recipe.json: choose another folder with --out"
        )


def window(recipe: Recipe, student: ModelArgs) -> None:
    """Refuse a window that the student has no positions for."""
    size, most = recipe.data.window, student.max_position_embeddings
    if size > most:
        raise InputError(
            f"window={size} is more than the {most} positions of the student: choose fewer"
        )


def same(
    recipe: Recipe, corpus: Corpus, seen: dict[str, Any], group: parallel.Group | None
) -> None:
    """Refuse data that changed since the run began, or differ between machines."""
    if seen and seen["text"] != corpus.key:
        raise InputError(
            f"the data changed since the run in {recipe.out} began: choose another folder with"
            " --out, or delete it"
        )
    own = [corpus.key, {**recipe.to_dict(), "out": ""}]
    if parallel.share(own, group) != own:
        raise InputError(
            "a process has other data or settings than the first one: give all machines the same"
            " files and command"
        )


def vocabularies(recipe: Recipe, committee: Committee, student: ModelArgs, crosses: bool) -> None:
    """Refuse teachers whose logits do not fit the student's, as far as they are needed."""
    if not recipe.loss.needs_teacher:
        return
    if recipe.cache.top_k >= student.vocab_size:
        raise InputError(
            f"top_k={recipe.cache.top_k} is not below the vocabulary of {student.vocab_size}"
        )
    if crosses:
        if len(committee.teachers) > 1 or recipe.cache.top_k or recipe.loss.looks_inside:
            raise InputError(
                "teacher and student have different vocabularies: name one teacher, set top_k to"
                " 0, and compare no hidden states"
            )
        if recipe.loss.loss != "forward-kl" or recipe.loss.temperature != 1:
            raise InputError(
                "across vocabularies there is forward-kl at temperature 1: leave loss and"
                " temperature as they are"
            )
        return
    for teacher in committee.teachers:
        if teacher.width != student.vocab_size:
            raise InputError(
                f"{teacher.name} gives {teacher.width} logits, the student {student.vocab_size}:"
                " name a teacher and a student of one family"
            )

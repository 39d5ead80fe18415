"""Low-bit weights of the embedded model beside MLX's own, before and after training.

uv run python tests/bench/palettes.py WIKITEXT_TEST IFEVAL FOLDER [--steps 100] [--no-dither]

The embedded model comes from 4-bit weights, which flatters 4-bit grids: by default half a step of
noise is put on each weight first, and the result is the source. KL is measured on 8,192 tokens of
either text; calibration and training use the package's own text only. After the table of
``afm quantize --report``, at 3.5 bits: tables or scales trained by the source's answers, beside
mlx-lm's ``dynamic_quant`` and ``dwq`` on the same tokens. Run again, it goes on where it stopped.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from afm_mlx import checkpoint, load
from afm_mlx.compare import Compared, CompareOptions, Row, compare, model_bits
from afm_mlx.compress import Compression, compress
from afm_mlx.data.packing import Batch, Batches, Windows
from afm_mlx.data.sources import Source, read
from afm_mlx.data.tokens import cache_key, tokenize
from afm_mlx.fidelity import Judge
from afm_mlx.files import write_bytes
from afm_mlx.model import Model, named_weights
from afm_mlx.quant import calibration
from afm_mlx.quant.layers import low_bit_layers, make_ready
from afm_mlx.quant.quantize import TargetOptions
from afm_mlx.quant.variants import FormatOptions
from afm_mlx.recover import TRAINING, Recovered, Recovery, RecoveryData, read_windows, recover

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import tyro
from mlx import nn
from mlx_lm.quant.dwq import dwq_quantize
from mlx_lm.quant.dynamic_quant import estimate_sensitivities
from perplexity import clean
from tyro.conf import Positional

Part = Literal["table", "palette", "affine", "dynamic_quant", "uniform"]
PARTS: tuple[Part, ...] = get_args(Part)
TARGET = 3.5
DWQ_RATES = (1e-4, 1e-6)  # for so few steps, and mlx-lm's default


@dataclass(frozen=True)
class Options:
    wikitext: Positional[Path]
    ifeval: Positional[Path]
    folder: Positional[Path]
    dither: bool = True
    steps: int = 100
    tokens: int = 8192
    """Tokens of either text to measure on."""
    calibration: int = 32_768
    """Tokens of calibration text."""
    rows: tuple[Part, ...] = PARTS
    """Parts of the table to make."""


def dithered(folder: Path) -> None:
    """The embedded model with noise of up to half a quantisation step on each weight."""
    found, rng = load(dtype=mx.float32), np.random.default_rng(0)
    weights = []
    for name, weight in named_weights(found.model):
        array = np.array(weight)
        if array.ndim == 2:
            groups = array.reshape(-1, 32)
            step = (groups.max(1, keepdims=True) - groups.min(1, keepdims=True)) / 15
            noise = rng.uniform(-0.5, 0.5, groups.shape).astype(np.float32)
            array = (groups + noise * step).reshape(array.shape)
        weights.append((name, mx.array(array)))
    found.model.load_weights(weights)
    checkpoint.save(folder, found.model, found.tokenizer, base=found.name)


def texts(options: Options) -> tuple[str, str]:
    """Both texts as files that can be read. Prompts become conversations, as the features ask; the
    template's system prompt, the same before each, has two fifths of their KL."""
    wiki, prompts = options.folder / "wikitext.txt", options.folder / "ifeval.jsonl"
    write_bytes(wiki, clean(options.wikitext.read_text("utf-8")).encode())
    rows = [json.loads(line) for line in options.ifeval.read_text("utf-8").splitlines()]
    chats = [json.dumps({"prompt": row["prompt"], "completion": "Sure."}) + "\n" for row in rows]
    write_bytes(prompts, "".join(chats).encode())
    return str(wiki), str(prompts)


class Bench:
    """Source, texts and judges."""

    def __init__(self, options: Options) -> None:
        self.options, folder = options, options.folder
        folder.mkdir(parents=True, exist_ok=True)
        if options.dither and not (folder / "source").exists():
            dithered(folder / "source")
        self.model = str(folder / "source") if options.dither else None
        self.test = texts(options)
        self.source = load(self.model, dtype=mx.float32)
        self.judges = {Path(t).stem: Judge(self.source.model, self.windows(t)) for t in self.test}

    def windows(self, file: str, tokens: int = 0, window: int = 512) -> list[Batch]:
        given, folder = Source.parse(file), self.options.folder / "tokens"
        key = cache_key(self.source.tokenizer, [given])
        store = tokenize(read(given), self.source.tokenizer, folder, key)
        found = Windows.of(store, window)
        numbers = np.concatenate(found.numbers)[: (tokens or self.options.tokens) // window]
        return [found.batch([n]) for n in numbers]

    def compression(self, form: Any) -> Compression:
        return Compression(
            self.model,
            out=str(self.options.folder / form),
            overwrite=True,
            target=TargetOptions(TARGET, embedding=False),
            format=FormatOptions(form=form),
            calibration=calibration.CalibrationOptions(tokens=self.options.calibration),
            cache=str(self.options.folder / "cache"),
        )

    def show(self, name: str, bits: float, model: Model) -> None:
        found = {text: judge(model) for text, judge in self.judges.items()}
        line = {text: f"KL {f.kl:.4f}, flips {f.flips:.3f}" for text, f in found.items()}
        print(f"{bits:.2f} bits, {name}: {line}", flush=True)

    # ---- rows

    def table(self) -> None:
        options = CompareOptions(self.test, self.options.tokens, (2.5, 3.0, 3.5, 4.0, 4.05, 4.5))
        for event in compare(self.compression("palette"), options, self.options.folder):
            if isinstance(event, Row):
                print(f"{event.bits:.2f} bits, {event.name}: {_kl(event)}", flush=True)
            elif isinstance(event, Compared):
                print(f"report: {event.folder}/report.md", flush=True)

    def trained(self, form: Any) -> None:
        """This package's weights, tables or scales trained."""
        made = self.compression(form)
        work = self.options.folder / f"{form}-work"
        done = work / f"done-{self.options.steps}"
        if not done.exists():
            list(compress(made))
            training = replace(TRAINING, steps=self.options.steps)
            given = Recovery(made.out, self.model, training=training)
            for event in recover(given, "tables", Path(made.out), work):
                if isinstance(event, Recovered):
                    print(f"{form}: {event.before} -> {event.after}", flush=True)
            done.touch()
        small = load(made.out, dtype=mx.float32)
        self.show(f"{form}, trained {self.options.steps} steps", TARGET, small.model)

    def peer(self, name: str, small: Model) -> None:
        """mlx-lm's weights before and after its ``dwq``."""
        make_ready(small, checkpoint.dense_bytes())
        self.show(f"mlx-lm {name}", model_bits(small), small)
        for rate in DWQ_RATES:
            trained = copy.deepcopy(small)
            self._dwq(trained, rate)
            make_ready(trained, checkpoint.dense_bytes())
            self.show(f"mlx-lm {name} + dwq at {rate:g}", model_bits(trained), trained)

    def uniform(self) -> Model:
        """3 bits everywhere."""
        small = load(self.model, dtype=mx.float32).model
        nn.quantize(small, 64, 3, class_predicate=_linear)
        return small

    def dynamic_quant(self) -> Model:
        """2 or 4 bits, by mlx-lm's sensitivities."""
        small = load(self.model, dtype=mx.float32).model
        batches = self.windows(str(calibration.SHIPPED), self.options.calibration)
        data = mx.array(np.concatenate([b.tokens for b in batches]))
        small.model.embed_tokens = _Table(small.model.embed_tokens)
        found = dict(estimate_sensitivities(small, data, 2, 64, 4, 64, batch_size=1))
        low, high = min(found.values()), max(found.values())
        best = small
        for _ in range(20):  # mlx-lm's search, on the linear layers alone
            middle = (low + high) / 2
            trial = load(self.model, dtype=mx.float32).model
            nn.quantize(trial, 64, 2, class_predicate=_by(found, middle))
            if model_bits(trial) > TARGET:
                low = middle
            else:
                high, best = middle, trial
        return best

    def _dwq(self, small: Model, rate: float) -> None:
        """mlx-lm's trainer on the windows that ours sees; with dense products of the same values,
        since the CPU's quantised ones are too slow to train with."""
        training = replace(TRAINING, steps=self.options.steps)
        work = self.options.folder / "palette-work"
        _, windows = read_windows(RecoveryData(), self.source, work)
        kept, held_out = windows.split(RecoveryData().held_out)
        batches = Batches(kept.per_source, [1.0] * len(kept.stores), training.batch_size)
        rows = np.concatenate([batches.batch(s).tokens for s in range(training.steps)])
        seen = [(row.tolist(), 0) for row in rows]
        looked = held_out.batch(np.concatenate(held_out.numbers)[: training.batch_size]).tokens
        layers = [layer for _, layer in low_bit_layers(small)]
        for layer in layers:
            layer.learn_tables()
            layer.freeze(keys=["gain", "shift"], recurse=False)  # dwq trains what they act on
        dwq_quantize(
            small,
            lambda batch, step, split: self.source.model(batch),
            optim.Adam(rate, bias_correction=True),
            seen,
            [(row.tolist(), 0) for row in looked],
            training.batch_size,
            RecoveryData().window,
            training.seed,
            dtype=mx.float32,
        )
        for layer in layers:
            layer.settle()


class _Table(nn.Module):
    """Embeddings that mlx-lm does not take for a layer to quantise: they stay in every row."""

    def __init__(self, embeddings: nn.Embedding) -> None:
        super().__init__()
        self.weight = embeddings.weight

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.weight[tokens]

    def as_linear(self, x: mx.array) -> mx.array:
        return x @ self.weight.T


def _linear(path: str, layer: nn.Module) -> bool:
    return path.startswith("model.layers") and isinstance(layer, nn.Linear)


def _by(found: dict[str, float], threshold: float) -> Callable[[str, nn.Module], Any]:
    def choose(path: str, layer: nn.Module) -> Any:
        bits = 4 if found.get(path, 0.0) > threshold else 2
        return _linear(path, layer) and {"bits": bits, "group_size": 64}

    return choose


def _kl(row: Row) -> dict[str, str]:
    return {text: f"{f.kl:.4f}" for text, f in row.found.items()}


if __name__ == "__main__":
    asked = tyro.cli(Options)
    bench = Bench(asked)
    for part in asked.rows:
        match part:
            case "table":
                bench.table()
            case "palette" | "affine":
                bench.trained(part)
            case "dynamic_quant":
                bench.peer("dynamic_quant", bench.dynamic_quant())
            case "uniform":
                bench.peer("3 bits", bench.uniform())

"""Save a model as a plain folder that mlx-lm and transformers load too.

uv run python examples/export_model.py FOLDER [MODEL]

MODEL is a folder, a .gguf file or a hub repository; the embedded default if left out.
"""

import sys
from pathlib import Path

from afm_mlx import load, save
from afm_mlx.errors import AFMError


def main() -> None:
    folder, source = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None
    checkpoint = load(source)
    licence = "apache-2.0" if source is None else "other"
    signature = save(
        folder, checkpoint.model, checkpoint.tokenizer, base=checkpoint.name, licence=licence
    )
    print(f"{folder}: {checkpoint.model.num_parameters:,} parameters, signature {signature[:12]}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main()
    except AFMError as error:
        sys.exit(f"export_model: {error}")

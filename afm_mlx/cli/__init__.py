"""The command line ``afm``. Exit codes: 0 done, 2 bad input (one line says why), 130 Ctrl-C."""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

from afm_mlx.cli import adapter_commands, commands
from afm_mlx.errors import AFMError, first_line

import tyro


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``afm``; returns the exit code."""
    code = _run(arguments)
    engine = sys.modules.get("afm_mlx.engine")
    if engine is not None and engine.still_loading():
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """End at once. An orderly end would abort ("terminate called ...") while the engine's thread
    is in MLX: it may be loading, or compiling, on a busy machine."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _run(arguments: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--serve"] or (not arguments and _terminal()):
        arguments = ["app", *arguments]
    try:
        match arguments:  # their options come with mlx, which takes a second
            case ["distill", *rest]:
                from afm_mlx.cli import distill

                return distill.main(rest)
            case ["quantize", *rest]:
                from afm_mlx.cli import quantize

                return quantize.main(rest)
            case ["profile", *rest]:
                from afm_mlx.cli import profile

                return profile.main(rest)
            case ["adapters", "train", *rest]:
                from afm_mlx.cli import adapters

                return adapters.train(rest)
            case ["adapters", "build", *rest]:
                from afm_mlx.cli import build

                return build.main(rest)
            case ["eval", "features", *rest]:
                from afm_mlx.cli import evaluate

                return evaluate.main(rest)
        command: Any = tyro.cli(
            _named(
                app=commands.App,
                demo=commands.Demo,
                summarize=commands.Summarize,
                proofread=commands.Proofread,
                rewrite=commands.Rewrite,
                key_points=commands.KeyPoints,
                reply=commands.Reply,
                change=commands.Change,
                chat=commands.Chat,
                distill=commands.Distill,
                quantize=commands.Quantize,
                profile=commands.Profile,
                adapters=_named(
                    train=adapter_commands.TrainAdapter,
                    build=adapter_commands.BuildAdapters,
                    list=adapter_commands.ListAdapters,
                    show=adapter_commands.ShowAdapter,
                    export=adapter_commands.ExportAdapter,
                    remove=adapter_commands.RemoveAdapter,
                    **{"import": adapter_commands.ImportAdapter},
                ),
                eval=commands.EvaluateFeatures,
                models=_named(
                    list=commands.ListModels,
                    download=commands.Download,
                    remove=commands.Remove,
                ),
                doctor=commands.Doctor,
                bench=commands.Bench,
            ),
            prog="afm",
            args=arguments or ["--help"],
            description="On-device language models for notifications and writing, on MLX.",
            config=(tyro.conf.OmitArgPrefixes,),
        )
        return int(command.run())
    except AFMError as error:
        print(f"afm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("afm: stopped", file=sys.stderr, flush=True)
        _leave(130)
    except BrokenPipeError:  # whoever read our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk behind a redirection, say
        print(
            f"afm: cannot write the output ({first_line(error)}): free some space", file=sys.stderr
        )
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _terminal() -> bool:
    """Whether a person is at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _named(**choices: Any) -> Any:
    """A union of subcommands under the given names."""
    union: Any = None
    for name, command in choices.items():
        member: Any = Annotated[command, tyro.conf.subcommand(name.replace("_", "-"))]
        union = member if union is None else union | member
    return union

"""The command line: joins a command to a task and an ending to an exit code."""

import os
import sys
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_type_hints

import tyro

import openmae
from openmae.config import DemoConfig, PretrainConfig, ReconstructConfig
from openmae.errors import Fault, Interrupted, RequestError

DESCRIPTION = "Masked autoencoders: from a folder of unlabelled images to a pre-trained Vision Transformer."


def _command(config: type, name: str, positional: str | None = None) -> Any:
    """A config as a subcommand: one setting without a flag, open settings shown as what they are.

    It checks nothing: tyro would put what the config's own check says into a box. See `checked`.
    """
    annotations: dict[str, Any] = {}
    for setting, hint in get_type_hints(config).items():
        if setting == positional:
            annotations[setting] = Annotated[hint, tyro.conf.Positional, tyro.conf.arg(metavar=setting.upper())]
        elif type(None) in get_args(hint):
            kinds = [kind for kind in get_args(hint) if kind is not type(None)]
            metavar = "|".join(METAVARS[kind] for kind in kinds)
            shown = tyro.conf.arg(metavar=metavar, help_behavior_hint="(default: decided)")
            annotations[setting] = Annotated[hint, shown]
    body = {"__annotations__": annotations, "__doc__": config.__doc__, "__post_init__": lambda self: None}
    shown_config = type(config.__name__, (config,), body)
    shown_config = dataclass(frozen=True, kw_only=True)(shown_config)
    return Annotated[shown_config, tyro.conf.subcommand(name, prefix_name=False)]


METAVARS: dict[Any, str] = {
    int: "INT",
    float: "FLOAT",
    str: "NAME",
    tuple[int, int]: "HEIGHT WIDTH",
    tuple[float, float]: "FLOAT FLOAT",
    tuple[float, ...]: "FLOAT …",
}
Command = (
    _command(PretrainConfig, "pretrain", "data")
    | _command(ReconstructConfig, "reconstruct", "images")
    | _command(DemoConfig, "demo")
)
# Looked up on use: `import openmae` stays quick.
TASKS: dict[type, str] = {PretrainConfig: "pretrain", ReconstructConfig: "reconstruct", DemoConfig: "demo"}


def checked(shown_config: Any) -> Any:
    """The config itself, of what the command line gave. Raises RequestError where a setting is wrong."""
    config = next(kind for kind in TASKS if isinstance(shown_config, kind))
    return config(**{field.name: getattr(shown_config, field.name) for field in fields(config)})


def main(arguments: list[str] | None = None) -> None:
    """Run `openmae …` and exit with 0 done, 1 fault, 2 wrong request or data, 3 interrupted and saved."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code. What went wrong is said in one line on stderr."""
    if arguments in (["--version"], ["-V"]):
        print(f"openmae {openmae.__version__}")
        return 0
    try:
        config = checked(tyro.cli(Command, args=arguments, prog="openmae", description=DESCRIPTION))
        getattr(openmae, TASKS[type(config)])(config)
    except (RequestError, Interrupted, Fault) as error:
        message = " ".join(str(error).split()).encode(errors="backslashreplace").decode()
        print(f"openmae: {message}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output (head, say) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


if __name__ == "__main__":
    main()

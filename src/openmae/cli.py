"""The command line: joins a command to a task and an ending to an exit code."""

import contextlib
import functools
import io
import itertools
import operator
import os
import re
import signal
import sys
from collections.abc import Container
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_type_hints

from openmae.commands import COMMANDS, Command
from openmae.config import SPLITS, PackConfig, check_name, flag_of
from openmae.config.checks import NONE_IS_OFF, nodata_setting
from openmae.errors import Fault, Interrupted, RequestError, shown
from openmae.version import __version__

DESCRIPTION = "Masked autoencoders: from a folder of unlabelled images to a pre-trained Vision Transformer."


@functools.cache
def _subcommand(name: str) -> Any:
    """A command for tyro: some settings without a flag, open settings shown as what they are.

    It checks nothing: tyro would put what the config's own check says into a box. See `checked`.
    """
    import tyro

    command = BY_NAME[name]
    config: Any = command.config
    off = {field.name for field in fields(config) if field.metadata == NONE_IS_OFF}
    annotations: dict[str, Any] = {}
    for setting, hint in get_type_hints(config).items():
        if setting in command.positional:
            shown = tyro.conf.arg(metavar=setting.upper())
            if setting in ("data", "path") and type(None) in get_args(hint):
                instead = "(or its parts: --train PATH --val PATH --test PATH)"
                shown = tyro.conf.arg(metavar=setting.upper(), help_behavior_hint=instead)
            annotations[setting] = Annotated[hint, tyro.conf.Positional, shown]
        elif type(None) in get_args(hint):
            kinds = [kind for kind in get_args(hint) if kind is not type(None)]
            metavar = "PATH" if setting in SPLITS else "|".join(METAVARS[kind] for kind in kinds)
            hint_of_default = "(default: none)" if setting in off else "(default: decided)"
            shown = tyro.conf.arg(metavar=metavar, help_behavior_hint=hint_of_default)
            annotations[setting] = Annotated[hint, shown]
    body = {"__annotations__": annotations, "__doc__": config.__doc__, "__post_init__": lambda self: None}
    shown_config = type(config.__name__, (config,), body)
    shown_config = dataclass(frozen=True, kw_only=True)(shown_config)
    # Help is of docstrings alone: to look for comments takes longer than all else of `--help`.
    markers = (tyro.conf.HelptextFromCommentsOff, tyro.conf.subcommand(name, prefix_name=False))
    return Annotated[shown_config, *markers]


@functools.cache
def _listed(name: str) -> Any:
    """A command for tyro as the list of all names it: with its description, and without its settings."""
    import tyro

    config = BY_NAME[name].config
    listed: Any = type(config.__name__, (), {"__doc__": config.__doc__})
    listed = dataclass(frozen=True)(listed)
    return Annotated[listed, tyro.conf.subcommand(name, prefix_name=False)]


def commands_for(arguments: list[str]) -> Any:
    """All commands for tyro, with the settings of those that the arguments can be about: to build all takes a while."""
    first = arguments[0] if arguments else ""
    if first in ("--help", "-h"):
        return _union({})
    is_of_one = first in BY_NAME and not any(argument.startswith("--tyro-") for argument in arguments)
    return _union({first} if is_of_one else BY_NAME)  # --tyro-…: a shell's completion


def _union(whole: Container[str]) -> Any:
    return functools.reduce(operator.or_, (_subcommand(name) if name in whole else _listed(name) for name in BY_NAME))


METAVARS: dict[Any, str] = {
    int: "INT",
    float: "FLOAT",
    str: "NAME",
    bool: "True|False",
    tuple[int, int]: "HEIGHT WIDTH",
    tuple[float, float]: "FLOAT FLOAT",
    tuple[float, ...]: "FLOAT ...",
}
BY_NAME = {command.name: command for command in COMMANDS}


def command_of(config: Any) -> Command:
    """Whose settings these are."""
    return next(command for command in COMMANDS if isinstance(config, command.config))


def checked(shown_config: Any) -> Any:
    """The config itself, of what the command line gave. Raises RequestError where a setting is wrong."""
    config = command_of(shown_config).config
    values = {field.name: getattr(shown_config, field.name) for field in fields(config)}
    if config is PackConfig and shown_config.split_paths.paths and values["out"] is None:
        values |= {"data": None, "out": values["data"]}  # no DATA stands before OUT where the parts are named
    if isinstance(values.get("nodata"), str):
        values["nodata"] = nodata_setting(values["nodata"])
    return config(**values)


def main(arguments: list[str] | None = None) -> None:
    """Run `openmae …` and exit with 0 done, 1 fault, 2 wrong request or data, 3 interrupted and saved."""
    # Idle OpenMP threads should sleep, not spin: beside reader processes or any other load, spinning made a
    # training step on 2 cores 4 to 6 times slower. Read when torch is loaded, so it is set before that.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows ASCII only must not end a run
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGUSR1):  # until a task takes over
        signal.signal(number, _interrupt)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(f"{signal.Signals(number).name}: nothing was under way that could be saved")


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code. What went wrong is said in one line on stderr."""
    if arguments in (["--version"], ["-V"]):
        print(f"openmae {__version__}")
        return 0
    try:
        if "--show" in arguments:
            print("\n".join(show(arguments)))
            return 0
        config = checked(parse(arguments))
        command_of(config).run(config)
    except (RequestError, Interrupted, Fault) as error:
        if os.environ.get("RANK", "0") != "0" and not isinstance(error, Fault):
            return error.exit_code  # under torchrun the first process says it for all
        message = shown(" ".join(str(error).split()))
        print(f"openmae: {message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("openmae: interrupted: nothing was under way that could be saved", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output (head, say) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a name that is too long, a folder that may not be listed: nothing of ours
        print(f"openmae: {error.strerror or error}: {error.filename!r}"[:500], file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str]) -> Any:
    """The config that a command line asks for.

    Raises:
        RequestError: a wrong, missing or unknown flag.
        SystemExit: after `--help`.
    """
    if arguments and not arguments[0].startswith("-"):
        check_name("the command", arguments[0], BY_NAME)
    try:
        return _parsed(arguments, commands_for(arguments))
    except RequestError:
        pass
    try:
        return _parsed(arguments, _union(BY_NAME))  # the nearest flag may be of another command
    except RequestError as error:
        message = usage_error(str(error))
        if message.startswith("Missing from") and "data" in BY_NAME[arguments[0]].positional:
            message = message.replace(": see openmae", ", beside DATA or its parts (--train PATH): see openmae")
        raise RequestError(message) from None


def _parsed(arguments: list[str], commands: Any) -> Any:
    """What tyro makes of it. Raises RequestError with its box, and SystemExit after a help."""
    import tyro

    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(commands, args=arguments, prog="openmae", description=DESCRIPTION)
    except SystemExit as ending:
        if not ending.code:
            raise
        raise RequestError(told.getvalue()) from None


def show(arguments: list[str]) -> list[str]:
    """What `openmae COMMAND [--recipe NAME] --show` prints: the recipe's claim and settings, or all recipes.

    Raises:
        RequestError: the command has no recipes, or none of that name.
    """
    from openmae.recipes.show import recipe_lines

    words = [word for argument in arguments for word in argument.split("=", 1)]
    check_name("the command of --show", words[0], [command.name for command in COMMANDS if command.recipes])
    if "--recipe" in words:
        names = words[words.index("--recipe") + 1 :][:1]
    else:
        names = words[words.index("--show") + 1 :][:1]
    return recipe_lines(BY_NAME[words[0]].recipes, names[0] if names else None)


def usage_error(box: str) -> str:
    """tyro's framed message as one line: what was got, the nearest flag, where to look."""
    lines = [line.strip("│╭╮╰╯─ ") for line in box.splitlines()[1:]]  # the first is the frame's title
    lines = ["" if set(line) == {"-"} else line for line in lines]  # rules where the terminal knows ASCII only
    text = " ".join(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line, lines))).rstrip(".")
    wrong_type = re.match(r"Error parsing (--\S+): no type matching (.+) could be instantiated from \[(.*)\]", text)
    if wrong_type:
        text = f"{wrong_type[1]} got {wrong_type[3]}: it takes {wrong_type[2].removeprefix('{None}|')}"
    elif no_parse := re.match(r"Error parsing (--\S+): Could not find valid parse for arguments: \[(.*)\]", text):
        text = f"{no_parse[1]} got {no_parse[2]}, which it does not take"
    near = re.search(r"Perhaps you meant:?\s+(--[\w-]+)", " ".join(lines))
    hint = f" (did you mean {near[1]}?)" if near else ""
    if near and re.search(rf"{re.escape(near[1])}(?![\w-])", text):  # another command's
        takers = [name for name, command in BY_NAME.items() if near[1] in map(flag_of, get_type_hints(command.config))]
        hint = f" ({near[1]} is for {', '.join(takers)})" if takers else ""
    return f"{text}{hint}: see openmae --help or openmae COMMAND --help"


if __name__ == "__main__":
    main()

"""The command line: arguments are parsed by tyro into a config, the command runs, its errors become exit codes.

tyro sees a copy of each config (`_subcommand`), so that help and messages are ours; `resolve_config` makes the config.
"""

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
from openmae.errors import Fault, Interrupted, RequestError, shorten, shown
from openmae.version import __version__

DESCRIPTION = "Masked autoencoders: from a folder of unlabelled images to a pre-trained Vision Transformer."
# What help shows as the value of a flag of this type.
METAVARS: dict[Any, str] = {
    int: "INT",
    float: "FLOAT",
    str: "NAME",
    bool: "True|False",
    tuple[int, int]: "HEIGHT WIDTH",
    tuple[float, float]: "FLOAT FLOAT",
    tuple[float, ...]: "FLOAT ...",
    tuple[str, ...]: "NAME ...",
}
MAX_MESSAGE = 2000  # characters: names that someone else chose may have any length
BY_NAME = {command.name: command for command in COMMANDS}


@functools.cache
def _subcommand(name: str) -> Any:
    """A command as tyro parses it: its config with positional arguments and, in place of None, what None means.

    The copy of the config does not check itself, for tyro would put a RequestError's message into a box of its own:
    `resolve_config` checks.
    """
    import tyro

    command = BY_NAME[name]
    config: Any = command.config
    off_by_default = {field.name for field in fields(config) if field.metadata == NONE_IS_OFF}
    annotations: dict[str, Any] = {}
    for setting, hint in get_type_hints(config).items():
        if setting in command.positional:
            argument = tyro.conf.arg(metavar=setting.upper())
            if setting in ("data", "path") and type(None) in get_args(hint):
                instead = "(or its parts: --train PATH --val PATH --test PATH)"
                argument = tyro.conf.arg(metavar=setting.upper(), help_behavior_hint=instead)
            annotations[setting] = Annotated[hint, tyro.conf.Positional, argument]
        elif type(None) in get_args(hint):
            types = [kind for kind in get_args(hint) if kind is not type(None)]
            metavar = "PATH" if setting in SPLITS else "|".join(METAVARS[kind] for kind in types)
            default = "(default: none)" if setting in off_by_default else "(default: decided)"
            argument = tyro.conf.arg(metavar=metavar, help_behavior_hint=default)
            annotations[setting] = Annotated[hint, argument]
    body = {"__annotations__": annotations, "__doc__": config.__doc__, "__post_init__": lambda self: None}
    unchecked: Any = dataclass(frozen=True, kw_only=True)(type(config.__name__, (config,), body))
    # The order in which tyro lists them; `dataclass` has no argument for it.
    unchecked.__dataclass_fields__ = {f.name: unchecked.__dataclass_fields__[f.name] for f in command.settings}
    # Help is taken from docstrings only: searching the source for comments takes longer than the rest of `--help`.
    markers = (tyro.conf.HelptextFromCommentsOff, tyro.conf.subcommand(name, prefix_name=False))
    return Annotated[unchecked, *markers]


@functools.cache
def _without_settings(name: str) -> Any:
    """A command as tyro lists it in `openmae --help`: its description only, which is quicker to build."""
    import tyro

    config = BY_NAME[name].config
    description: Any = type(config.__name__, (), {"__doc__": config.__doc__})
    description = dataclass(frozen=True)(description)
    return Annotated[description, tyro.conf.subcommand(name, prefix_name=False)]


def tyro_commands(arguments: list[str]) -> Any:
    """All commands as a union for tyro, with settings only for those that these arguments need: building takes time."""
    first = arguments[0] if arguments else ""
    if first in ("--help", "-h"):
        return _union(with_settings={})
    is_completion = any(argument.startswith("--tyro-") for argument in arguments)  # asked for by a shell
    return _union(with_settings={first} if first in BY_NAME and not is_completion else BY_NAME)


def _union(with_settings: Container[str]) -> Any:
    commands = (_subcommand(name) if name in with_settings else _without_settings(name) for name in BY_NAME)
    return functools.reduce(operator.or_, commands)


def command_of(config: Any) -> Command:
    """The command that a config is for."""
    return next(command for command in COMMANDS if isinstance(config, command.config))


def resolve_config(parsed: Any) -> Any:
    """The command's config from what `parse` returns. Raises RequestError where a setting is wrong."""
    config = command_of(parsed).config
    values = {field.name: getattr(parsed, field.name) for field in fields(config)}
    if config is PackConfig and parsed.split_paths.paths and values["out"] is None:
        values |= {"data": None, "out": values["data"]}  # no DATA stands before OUT where the parts are named
    if isinstance(values.get("nodata"), str):
        values["nodata"] = nodata_setting(values["nodata"])
    return config(**values)


def main(arguments: list[str] | None = None) -> None:
    """Run `openmae …`. Exit code: 0 done, 1 fault, 2 wrong settings or data, 3 ended by a signal."""
    # Idle OpenMP threads should sleep, not spin: beside reader processes or any other load, spinning made a
    # training step on 2 cores 4 to 6 times slower. Read when torch is loaded, so it is set before that.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that shows ASCII only must not end a run
            stream.reconfigure(errors="backslashreplace")
    for number in (signal.SIGTERM, signal.SIGUSR1):  # until the command handles them itself (`StopRequest`)
        signal.signal(number, _interrupt)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def _interrupt(number: int, frame: object) -> None:
    raise Interrupted(f"{signal.Signals(number).name}: nothing was under way that could be saved")


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; an error is printed on stderr, in one line."""
    if arguments in (["--version"], ["-V"]):
        print(f"openmae {__version__}")
        return 0
    try:
        if "--show" in arguments:
            print("\n".join(show(arguments)))
            return 0
        config = resolve_config(parse(arguments))
        command_of(config).run(config)
    except (RequestError, Interrupted, Fault) as error:
        if os.environ.get("RANK", "0") != "0" and not isinstance(error, Fault):
            return error.exit_code  # under torchrun the first process says it for all
        message = shorten(shown(" ".join(str(error).split())), MAX_MESSAGE)
        print(f"openmae: {message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("openmae: interrupted: nothing was under way that could be saved", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output (head, say) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a path of the user's: a name too long, no permission
        print(f"openmae: {error.strerror or error}: {error.filename!r}"[:500], file=sys.stderr)
        return 1
    return 0


def parse(arguments: list[str]) -> Any:
    """Parse a command line into a copy of a command's config that is not yet checked (see `resolve_config`).

    A command line that is wrong is parsed again with the settings of all commands: then tyro can name the other command
    that takes such a flag, and the message can say so.

    Raises:
        RequestError: a wrong, missing or unknown flag.
        SystemExit: after `--help`.
    """
    if arguments and not arguments[0].startswith("-"):
        check_name("the command", arguments[0], BY_NAME)
    try:
        return _parse_with_tyro(arguments, tyro_commands(arguments))
    except RequestError:
        pass
    try:
        return _parse_with_tyro(arguments, _union(with_settings=BY_NAME))
    except RequestError as error:
        message = usage_error(str(error))
        if message.startswith("Missing from") and "data" in BY_NAME[arguments[0]].positional:
            message = message.replace(": see openmae", ", beside DATA or its parts (--train PATH): see openmae")
        raise RequestError(message) from None


def _parse_with_tyro(arguments: list[str], commands: Any) -> Any:
    """Let tyro parse. Raises RequestError with tyro's whole message, and SystemExit after `--help`."""
    import tyro

    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(commands, args=arguments, prog="openmae", description=DESCRIPTION)
    except SystemExit as error:
        if not error.code:
            raise
        raise RequestError(printed.getvalue()) from None


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
    """tyro's message, which it frames in a box, as one line: what it got, the most similar flag, where help is.

    The patterns are tyro's own wording; a message that matches none is passed on as it is.
    """
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

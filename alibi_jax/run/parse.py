"""From the words of a command line to a command."""

import difflib
import shlex
from collections.abc import Callable

import tyro

from alibi_jax.config import Config, MeshConfig, load_config
from alibi_jax.config.recipes import recipe_names
from alibi_jax.errors import ConfigError, Refused, require, shown
from alibi_jax.run.command import run_command
from alibi_jax.run.commands import Evaluate, Export, Import, Plan, Prepare, Report, Supervise, Train
from alibi_jax.run.invocation import command_line, program
from alibi_jax.run.version import version_text

USAGE = """alibi_jax: train short, test long.

  {program} prepare CONFIG [options]       read text and write it as a corpus of tokens
  {program} train CONFIG [options]         train a model; the same command again resumes from the last checkpoint
  {program} supervise -- train CONFIG ...  train, and restart the training whenever it dies, until it is done
  {program} plan CONFIG [options]          compile a run for a TPU topology, without one, and estimate its cost
  {program} evaluate WORKDIR [options]     measure the loss of held-out tokens at many input lengths
  {program} report FOLDER ... [options]    write a figure, tables and a page from one or more evaluations
  {program} import FAMILY PATH --workdir WORKDIR
                                           write another program's model, such as a BLOOM, as the folder of a run
  {program} export WORKDIR [options]       write a run's model as a folder that transformers loads
  {program} --version                      print versions and devices

CONFIG is the name of a recipe ({recipes}),
the path of a recipe (.py) or of a config (.json), or the folder of a run. WORKDIR is the folder of a run, which may be in a
bucket (gs://BUCKET/FOLDER). Every field of the config is an option, such as --model.position rotary.
`{program} COMMAND --help` lists the options with their meaning.
"""
HELP = {"-h", "--help"}
COMMANDS = {
    "prepare": Prepare,
    "train": Train,
    "supervise": Supervise,
    "plan": Plan,
    "evaluate": Evaluate,
    "report": Report,
    "import": Import,
    "export": Export,
}

Command = Prepare | Train | Supervise | Plan | Evaluate | Report | Import | Export


def main(arguments: list[str]) -> int:
    """Runs one command inside this process and returns its exit status."""
    return run_command(lambda: parse(arguments))


def parse(arguments: list[str]) -> Command | Callable[[], str]:
    """Returns the command that the first word names, its options over the config that the second names.

    ConfigError for bad input; SystemExit after help was printed, and with status 2 for options that tyro refuses.
    """
    if not arguments or arguments[0] in HELP:
        print(USAGE.format(program=program(), recipes=", ".join(recipe_names())))
        raise SystemExit(0 if arguments else Refused.status)
    name, *rest = arguments
    if name == "--version":
        return version_text
    near = difflib.get_close_matches(name, (*COMMANDS, "--help", "--version"), n=1)
    do = f"Did you mean {near[0]!r}?" if near else "See --help."
    require(name in COMMANDS, "command", shown(name), f"one of {', '.join(COMMANDS)}", do)
    if name in ("report", "import", "export"):
        return tyro.cli(COMMANDS[name], args=rest, prog=command_line(name))
    if name == "supervise":
        return _supervise(rest)
    if name == "evaluate":
        return _evaluate(rest)
    return _with_config(name, rest)


def _positional(arguments: list[str]) -> str | None:
    return arguments[0] if arguments and not arguments[0].startswith("-") else None


def _with_config(name: str, arguments: list[str]) -> Prepare | Train | Plan:
    """Returns a command whose options change the fields of the config named first."""
    path = _positional(arguments)
    if not path and not HELP & set(arguments):
        raise ConfigError(
            f"{name}: got no config, expected a recipe, a .json or a run's folder. Try {command_line(name, 'quickstart')}."
        )
    default = COMMANDS[name](load_config(path) if path else Config())
    prog = f"{command_line(name)} CONFIG"
    return tyro.cli(COMMANDS[name], default=default, args=arguments[1:] if path else arguments, prog=prog)


def _supervise(arguments: list[str]) -> Supervise:
    """Returns the supervisor, its own options before --, with the command after it, which must be one that could be run."""
    place = arguments.index("--") if "--" in arguments else len(arguments)
    own, command = arguments[:place], arguments[place + 1 :]
    if command[:1] != ["train"] and not HELP & set(own):
        example = command_line("supervise", "--", "train", "quickstart")
        raise ConfigError(
            f"supervise: got {shlex.join(command) or 'no command'} after --, expected train CONFIG ..., the one command that "
            f"resumes from its last checkpoint. Try {example}."
        )
    run = parse(command) if command[:1] == ["train"] else Train(Config())
    default = Supervise(tuple(command), run.workdir, run.config.train.steps)
    return tyro.cli(Supervise, default=default, args=own, prog=command_line("supervise"))


def _evaluate(arguments: list[str]) -> Evaluate:
    """Returns the command, its options over the evaluation and the text in the run's own config."""

    def options_over(config: Config) -> Evaluate:
        default = Evaluate(tyro.MISSING, config.evaluate, MeshConfig(), config.data)
        return tyro.cli(Evaluate, default=default, args=arguments, prog=command_line("evaluate"))

    workdir = _positional(arguments) or options_over(Config()).workdir  # an option stands before it
    return options_over(load_config(workdir))

"""Checks of the YAML file of `--config`; each error names the file and the key."""

import argparse
from pathlib import Path

import yaml


def with_config_file(argv: list[str], parser: argparse.ArgumentParser) -> list[str]:
    """Check the config file, and return the arguments with `--config FILE` as two words for TRL's parser.

    Raises:
        ValueError: No file follows `--config`, the file is not YAML, a key is not text, or a value has the wrong type.
        OSError: The file cannot be read.
    """
    argv = [word for given in argv for word in (given.split("=", 1) if given.startswith("--config=") else [given])]
    if "--config" in argv:
        if argv[-1] == "--config":
            raise ValueError("`--config` needs a file.")
        _check(argv[argv.index("--config") + 1], parser)
    return argv


def _check(path: str, parser: argparse.ArgumentParser) -> None:
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-13-01
        raise ValueError(f"the config file {path} is not valid YAML: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"the config file {path} must contain a YAML mapping, got {type(config).__name__}.")
    actions = {action.dest: action for action in parser._actions}
    for key, value in config.items():
        if not isinstance(key, str):
            raise ValueError(f"the config file {path} has the key {key!r}, which is not text. Put it in quotes.")
        action = actions.get(key)
        if action is None or value is None or isinstance(value, str):
            continue  # argparse parses text as on the command line
        is_list = action.nargs == "+"
        if is_list and not isinstance(value, list):
            raise ValueError(
                f"'{key}' in the config file {path} must be a list, got {value!r}. Write '{key}: [{value}]'."
            )
        numbers = value if is_list else [value]
        if action.type in (int, float) and not all(isinstance(number, int | float | str) for number in numbers):
            raise ValueError(f"'{key}' in the config file {path} must be a number, got {value!r}.")
    variables = config.get("env")
    for name, value in variables.items() if isinstance(variables, dict) else ():
        if not isinstance(name, str) or not name or "=" in name or "\0" in f"{name}{value}":
            raise ValueError(
                f"'env' in the config file {path} has {name!r}: {value!r}, which cannot be an environment variable. "
                "Write text such as 'env: {HF_HUB_OFFLINE: 1}'."
            )

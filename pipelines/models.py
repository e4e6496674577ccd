"""`bebygan models`, `promote`, `rollback`: which versions there are, and which one is champion."""

import argparse
import json

from tabulate import tabulate

from bebygan.errors import ConfigError
from components.cli import end_quickly
from components.comparison import TITLES, shown
from components.progress import printable
from components.register.promotion import promote_by_command, roll_back
from components.tracking.address import use_registry
from components.tracking.client import mlflow_client
from components.tracking.registry import ModelVersion, aliases_of, all_versions, find_version, names_of

_SHOWN_OF_DATA_VERSION = 8


def model_of(options: argparse.Namespace) -> str:
    """Return the name of the registered model, and use the registry of the workspace."""
    use_registry(options.workspace)
    return str(options.params.evaluate.model_name)


def ledger_of(options: argparse.Namespace) -> str:
    """Return the address of the ledger.

    Raises:
        ConfigError: --ledger is empty.
    """
    if options.ledger == "":
        raise ConfigError("--ledger is empty: name the ledger, which records who moved the champion and why")
    return str(options.workspace / "ledger") if options.ledger is None else str(options.ledger)


def _facts(version: ModelVersion, aliases: dict[str, str]) -> dict[str, object]:
    values = {metric: version.tags.get(f"metric.{metric}") for metric in TITLES}
    return {
        "version": version.version,
        "aliases": names_of(version, aliases),
        "date": version.created.isoformat(timespec="minutes") if version.created else None,
        "verdict": version.tags.get("verdict"),
        "rolled_back": version.tags.get("rolled_back"),
        "metrics": {metric: float(value) for metric, value in values.items() if value},
        "data_version": version.tags.get("data_version"),
    }


def _row(version: ModelVersion, aliases: dict[str, str]) -> list[str]:
    tags = version.tags
    values = [tags.get(f"metric.{metric}") for metric in TITLES]
    return [
        version.version,
        ", ".join(names_of(version, aliases)),
        f"{version.created:%Y-%m-%d %H:%M}" if version.created else "",
        "rolled back" if "rolled_back" in tags else tags.get("verdict", ""),
        *(shown(metric, float(value)) if value else "" for metric, value in zip(TITLES, values, strict=True)),
        tags.get("data_version", "")[:_SHOWN_OF_DATA_VERSION],
    ]


def models(options: argparse.Namespace) -> None:
    """Print all versions of the model, newest first."""
    model = model_of(options)
    versions, aliases = all_versions(model)[::-1], aliases_of(model)
    if options.json:
        print(json.dumps([_facts(version, aliases) for version in versions], indent=2))
    elif not versions:
        print(f"there are no versions of {model} yet: train one with `bebygan run`")
    else:
        headings = ["version", "aliases", "made (UTC)", "verdict", *TITLES.values(), "data"]
        align = ("right", "left", "left", "left", *["right"] * len(TITLES), "left")
        rows = [_row(version, aliases) for version in versions]
        print(tabulate([headings, *rows], tablefmt="plain", colalign=align, disable_numparse=True))
    end_quickly()


def _reason(options: argparse.Namespace) -> str:
    reason = printable(options.reason.strip())
    if not reason:
        raise ConfigError("--reason is empty: say in a few words why, for those who read the ledger later")
    return reason


def promote(options: argparse.Namespace) -> None:
    """Make a version champion."""
    reason, ledger = _reason(options), ledger_of(options)
    version = find_version(options.version, model_of(options))
    before = promote_by_command(version, reason, ledger, mlflow_client())
    if before == version.version:
        print(f"nothing to do: version {before} of {version.model} is the champion already")
    else:
        print(f"champion: {version.model} version {version.version}, before {before or 'none'}")
    end_quickly()


def rollback(options: argparse.Namespace) -> None:
    """Make the previous champion champion again."""
    reason, ledger, model = _reason(options), ledger_of(options), model_of(options)
    before, now = roll_back(model, reason, ledger, mlflow_client())
    print(f"champion: {model} version {now}, rolled back from version {before}")
    end_quickly()

"""`bebygan why` and `bebygan lineage`: how a version was judged, and what it was made from."""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bebygan.differences import differences
from bebygan.errors import BebyganError, DataError, WeightsError
from bebygan.files import sha256_of
from components.artifacts import Means, Verdict, read_means, read_verdict
from components.cli import end_quickly
from components.comparison import gain_lines, text_table
from components.progress import printable
from components.stores import absolute
from components.stores.dataset import manifest_of, shortened
from components.tracking.history import EarlierRun, earlier_run, steps_of
from components.tracking.ledger import ROLLBACK, Move, entries
from components.tracking.provenance import UNKNOWN
from components.tracking.registry import ModelVersion, aliases_of, find_version, names_of
from components.tracking.runs import fetch_artifacts
from pipelines.models import ledger_of, model_of


def evidence(version: ModelVersion) -> tuple[Verdict, Means] | None:
    """Return the verdict about a version and the means that it rests on, as evaluate stored them with its run.

    Return None if the run is not known.

    Raises:
        DataError: it is not the verdict that the version was registered with, or a file of it is damaged.
        ServiceError: the server is unreachable or refuses, or the files are gone.
    """
    parent = version.tags.get("parent_run", "none")
    if earlier_run(parent) is None:
        return None
    with tempfile.TemporaryDirectory(prefix="evaluation-") as scratch:
        if not (found := fetch_artifacts(parent, "evaluate", "evaluation", Path(scratch))):
            return None
        if sha256_of(found / "verdict.json") != version.tags.get("verdict_sha256"):
            raise DataError(
                f"the verdict stored with run {parent} is not the one that {version.uri} was registered with: restore "
                "the artifacts of the run from a backup"
            )
        return read_verdict(found), read_means(found)


def _told(move: Move, version: str) -> str:
    """Return one line about a move that the version takes part in."""
    if move.version != version:
        verb = "rolled back to" if move.verdict == ROLLBACK else "replaced by"
        what = f"{verb} version {move.version}" if move.version else "lost the alias champion"
    else:
        what = f"champion, {'after' if move.previous else 'the first one'}"
        what += f" version {move.previous}" if move.previous else ""
    # The reasons of a promotion by a run are those of its verdict.
    reason = "" if move.verdict == "promote" else f": {move.reason}"
    return f"{move.time}  {what} ({move.verdict}, by {move.who}){reason}"


def why(options: argparse.Namespace) -> None:
    """Print the verdict about a version, what it rests on, and when, by whom and why the version became champion."""
    version = find_version(options.version, model_of(options))
    ledger = ledger_of(options)
    moves = [each for each in entries(ledger, version.model) if version.version in (each.version, each.previous)]
    stored = evidence(version)
    tags = version.tags
    reasons = list(stored[0].reasons) if stored else [each for each in tags.get("reasons", "").split("; ") if each]
    if options.json:
        facts = {
            "model": version.model,
            "version": version.version,
            "verdict": tags.get("verdict"),
            "reasons": reasons,
            "compared_with_champion": tags.get("compared_with_champion"),
            "summary": tags.get("summary"),
            "means": stored[1] if stored else None,
            "confidence": stored[0].confidence if stored else None,
            "gains": [asdict(gain) for gain in stored[0].gains] if stored else [],
            "moves": [asdict(move) for move in moves],
        }
        print(json.dumps(facts, indent=2))
        return
    named = names_of(version, aliases_of(version.model))
    print(f"{version.model} version {version.version}: verdict {tags.get('verdict', UNKNOWN)}")
    print(f"aliases: {', '.join(named) or 'none'}")
    if summary := tags.get("summary"):
        print(printable(summary))
    for reason in reasons:
        print(f"  {printable(reason)}")
    if stored:
        print(f"\n{text_table(stored[1])}")
        print(*gain_lines(stored[0].gains, stored[0].confidence), sep="\n")
    else:
        print("the figures are not available: the run that measured them is not in MLflow")
    print("\nas champion:")
    for line in [_told(move, version.version) for move in moves] or ["never"]:
        print(f"  {printable(line)}")
    end_quickly()


def remote_of(options: argparse.Namespace) -> str:
    """Return the address of the DVC remote."""
    return absolute(str(options.workspace / "dvc-remote") if options.remote is None else options.remote)


def photographs(data_version: str, remote: str) -> list[dict[str, str]]:
    """Return the photographs of a data version in a DVC remote: name at the source, SHA-256 and split of each.

    Raises:
        ConfigError, DataError, ServiceError: as `components.stores.data_version.read_file`.
    """
    manifest = manifest_of(data_version, remote)
    columns = [name for name in ("source", "sha256", "split") if name in manifest]
    found = [{name: str(row[name]) for name in columns} for row in manifest.to_dict("records")]
    return sorted(found, key=lambda row: row["source"])


def _known(tags: Mapping[str, str], *names: str) -> dict[str, str]:
    """Return these tags, without those that say nothing."""
    return {name: tags[name] for name in names if tags.get(name) not in (None, "", "none", UNKNOWN)}


def _seed(version: ModelVersion, train: EarlierRun | None) -> dict[str, str]:
    # Versions of 0.1.0 have the seed of evaluate, which has no seed.
    seed = version.tags.get("train.seed") or (train.tags if train else version.tags).get("seed")
    return _known({"seed": seed or UNKNOWN}, "seed")


def lineage_of(version: ModelVersion) -> dict[str, Any]:
    """Return what a version was made from, as far as the registry and the runs know it.

    Raises:
        ServiceError: the server is unreachable or refuses.
    """
    tags = version.tags
    pipeline = earlier_run(tags.get("parent_run"))
    steps = steps_of(pipeline) if pipeline else []
    train = next((step for step in steps if step.step == "train"), None)
    facts = pipeline.tags if pipeline else tags
    code = _known(tags, "git_sha", "git_dirty", "code_hash", "image_digest", "python_version", "torch_version")
    run = {"id": pipeline.run_id, "started": pipeline.started.isoformat(timespec="seconds")} if pipeline else {}
    return {
        "model": version.model,
        "version": version.version,
        "weights": _known(tags, "weights_sha256", "code_sha256", "train.start", "continued_from"),
        "run": run | _known(facts, "kfp_run_id", "reason") | {"steps": {step.step: step.run_id for step in steps}},
        "code": code,
        "parameters": {
            **_known(facts if pipeline else {}, "params_hash"),
            **_seed(version, train),
            "values": dict(pipeline.params) if pipeline else {},
        },
        "data": _known(tags, "data_version") | _known(facts, "source", "source_version"),
        "compared_with_champion": tags.get("compared_with_champion", "none"),
    }


def _changed_parameters(facts: Mapping[str, Any], model: str) -> list[str]:
    """Return the parameters that differ from those of the champion that the version was compared with."""
    if facts["compared_with_champion"] == "none":
        return []
    try:
        before = lineage_of(find_version(facts["compared_with_champion"], model))
    except WeightsError:
        return ["not known, because that version was deleted"]
    return differences(before["parameters"]["values"], facts["parameters"]["values"], 10)


def _print_lineage(facts: Mapping[str, Any], changed: list[str], pictures: list[dict[str, str]] | str) -> None:
    print(f"{facts['model']} version {facts['version']}")
    for title in ("weights", "run", "code", "data"):
        print(title)
        for name, value in facts[title].items():
            if isinstance(value, str):
                print(f"  {name.removeprefix('train.'):<15} {printable(value)}")
        for step, run_id in facts[title].get("steps", {}).items():
            print(f"  {step:<15} run {run_id}")
    print("photographs")
    if isinstance(pictures, str):
        print(f"  {printable(pictures)}")
    else:
        named = [printable(f"{each['source']} ({each['split']})") for each in pictures]
        print(*shortened(named, Path("the output of --json")), sep="\n")
    values = facts["parameters"]["values"]
    print(f"parameters: {len(values)}, see --json" if values else "parameters: not known")
    for name, value in facts["parameters"].items():
        if isinstance(value, str):
            print(f"  {name:<15} {value}")
    before = facts["compared_with_champion"]
    if before != "none":
        print(f"  {'changed':<15} {printable(', '.join(changed) or 'nothing')} (since version {before})")


def lineage(options: argparse.Namespace) -> None:
    """Print what a version was made from: run, code, image, parameters, data version and photographs."""
    model = model_of(options)
    version = find_version(options.version, model)
    facts = lineage_of(version)
    remote = remote_of(options)
    data = facts["data"].get("data_version", UNKNOWN)
    try:
        pictures: list[dict[str, str]] | str = photographs(data, remote)
    except BebyganError as error:
        pictures = f"not known: {error}"
    if options.json:
        print(json.dumps({**facts, "photographs": pictures}, indent=2))
    else:
        _print_lineage(facts, _changed_parameters(facts, model), pictures)
    end_quickly()

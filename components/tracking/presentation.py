"""How runs look to a person who opens MLflow: names, descriptions, and the dataset."""

import datetime
import json
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

DESCRIPTION = "mlflow.note.content"
"""Tag of a run: its description, in Markdown."""
_SHOWN_OF_DATA_VERSION = 8
_CONTEXTS = {"warmup": "training", "train": "training", "evaluate": "evaluation"}
_ABOUT = {
    "warmup": "The generator that GAN training starts from: trained, or imported.",
    "train": "GAN training of the challenger. Charts: losses, validation, and load of the machine.",
    "evaluate": "Challenger, warm-up, bicubic and champion on the held-out photographs. The report is "
    "`evaluation/report.html` of the artifacts.",
    "register": "Registration of the challenger in the model registry, with its verdict.",
}


def run_name(step: str, data_version: str | None = None) -> str:
    """Return the name of a new run: what it does, when it began (UTC), and the data version if it is known."""
    began = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M}"
    return " ".join(filter(None, (step, began, (data_version or "")[:_SHOWN_OF_DATA_VERSION])))


def about_step(step: str) -> dict[str, str]:
    """Return the tags that describe the run of a step."""
    return {DESCRIPTION: _ABOUT[step]} if step in _ABOUT else {}


def about_pipeline(reason: str, source: str) -> dict[str, str]:
    """Return the tags that describe the run of the whole pipeline."""
    return {
        DESCRIPTION: f"Retraining because {reason}.\n\nPhotographs: `{source}`. The runs of the steps are its "
        "children. Metrics and `report/report.html` compare the challenger with the champion."
    }


def log_dataset(client: MlflowClient, run_id: str, data_version: str, source: str, step: str) -> None:
    """Log the photographs as an input of a run: MLflow's dataset `photographs`, whose digest is the data version."""
    kind = "s3" if urlsplit(source).scheme == "s3" else "local"
    # MLflow's limit is 36 characters, which a data version has.
    dataset = Dataset("photographs", data_version[:36], kind, json.dumps({"uri": source}))
    context = InputTag("mlflow.data.context", _CONTEXTS.get(step, step))
    client.log_inputs(run_id, [DatasetInput(dataset, [context])])


def add_data(client: MlflowClient, run_id: str, data_version: str) -> str:
    """Add the data version to tags, name and inputs of the run of the whole pipeline unless they have it.

    Returns:
        The source of the photographs, or "unknown".
    """
    run = client.get_run(run_id)
    source = str(run.data.tags.get("source", "unknown"))
    if run.data.tags.get("data_version") != data_version:
        client.set_tag(run_id, "data_version", data_version)
        client.update_run(run_id, name=f"{run.info.run_name} {data_version[:_SHOWN_OF_DATA_VERSION]}")
        log_dataset(client, run_id, data_version, source, "training")
    return source

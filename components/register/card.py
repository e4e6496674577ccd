"""The model card: the description of a version in the model registry, in Markdown."""

from pathlib import Path

from tabulate import tabulate

from bebygan import SCALE
from components.artifacts import Candidate, Means, Verdict, read_summary
from components.comparison import TITLES, gain_lines
from components.config import Metric
from components.register.exports import TAG
from components.stores.dataset import headline
from components.tracking.registry import ModelVersion

_NAMES: dict[Candidate, str] = {
    "bicubic": "bicubic",
    "warmup": "start",
    "challenger": "this version",
    "champion": "champion",
}


def _figures(means: Means, verdict: Verdict) -> str:
    metrics: list[Metric] = list(means["challenger"])
    headings = [
        "",
        *(TITLES[metric].replace("PSNR-Y", "PSNR-Y (dB)").replace("LR-PSNR", "LR-PSNR (dB)") for metric in metrics),
    ]
    names: dict[Candidate, str] = {**_NAMES, "champion": f"champion, version {verdict.champion}"}
    rows = [[names.get(name, name), *(f"{row[metric]:.4g}" for metric in metrics)] for name, row in means.items()]
    table: str = tabulate([headings, *rows], headers="firstrow", tablefmt="github", disable_numparse=True)
    return table


def _data(evaluation: Path, data_version: str) -> str:
    """Return what the version was trained on; evaluations of 0.1.0 hold no summary."""
    if not (evaluation / "data.json").exists():
        return f"data version `{data_version}`"
    return f"{headline(read_summary(evaluation))}; data version `{data_version}`"


def _exports(version: ModelVersion) -> str:
    found = {tag.removeprefix(TAG): told for tag, told in version.tags.items() if tag.startswith(TAG)}
    lines = [f"- {kind}: {told}" for kind, told in sorted(found.items())]
    return "\n".join(["## Exports", "", *lines, "", ""]) if lines else ""


def _continued(version: ModelVersion) -> str:
    start = version.tags.get("continued_from")
    return f"; training continued from version {start}" if start else ""


def model_card(version: ModelVersion, evaluation: Path, verdict: Verdict, means: Means) -> str:
    """Return the card of a version.

    Args:
        version: in the registry.
        evaluation: folder that evaluate wrote.
        verdict: in that folder.
        means: in that folder.

    Raises:
        DataError: the summary of the data in that folder is damaged.
    """
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    gains = "".join(f"{line}  \n" for line in gain_lines(verdict.gains, verdict.confidence)) + "\n"
    measured = verdict.protocol.get("photographs", "held-out photographs")
    low = verdict.protocol.get("lr", f"bicubic by {SCALE}")
    return f"""# {version.model} version {version.version}

Beby-GAN super-resolution: makes photographs {SCALE} times as large.

## Trained on

{_data(evaluation, verdict.data_version)}{_continued(version)}

## Figures

{_figures(means, verdict)}

Measured on {measured}. LR: {low}.

Verdict: **{verdict.verdict}**. {verdict.summary}

{gains}{reasons}

## How to use it

```sh
bebygan upscale small.jpg --output large.jpg --model {version.uri}
```

```python
model = mlflow.pyfunc.load_model("{version.uri}")
large = model.predict(image[None])[0]  # (H, W, 3) uint8 RGB
```

`bebygan why {version.version}` and `bebygan lineage {version.version}` show how it was judged and made.

{_exports(version)}## Limits

- It was trained on photographs that were reduced by a bicubic filter. It does not remove noise, blur or JPEG artefacts,
  and may enlarge them.
- The figures hold for photographs like those that it was trained on.
- Detail that it adds is plausible, not recovered: do not use it where details are evidence.

SHA-256 of the weights: `{version.tags["weights_sha256"]}`
"""

"""What Kubeflow's console shows of an evaluation: figures with the verdict, and the report."""

import shutil
from pathlib import Path

from bebygan.files import whole_file
from components.artifacts import read_means, read_verdict


def figures(evaluation: Path) -> dict[str, float | str]:
    """Return verdict and means as the metadata of a KFP Metrics artifact.

    Args:
        evaluation: folder that evaluate wrote.

    Raises:
        DataError: verdict.json or metrics.json is missing or damaged.
    """
    verdict = read_verdict(evaluation)
    means = read_means(evaluation)
    return {
        "verdict": verdict.verdict,
        "summary": verdict.summary,
        **{f"{candidate} {metric}": value for candidate, row in means.items() for metric, value in row.items()},
    }


def copy_report(evaluation: Path, page: Path) -> None:
    """Copy the report to where a KFP HTML artifact is taken from; raises StorageError if it cannot be written."""
    with whole_file(page) as temporary:
        shutil.copyfile(evaluation / "report.html", temporary)

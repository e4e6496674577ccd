"""KFP component of the evaluate step."""

from kfp import dsl

from components.container_images import TORCH_IMAGE


@dsl.component(base_image=TORCH_IMAGE, install_kfp_package=False)
def evaluate(
    data_version: str,
    ledger: str,
    remote: str,
    params: str,
    dataset: dsl.Input[dsl.Dataset],
    docs: dsl.Input[dsl.Artifact],
    warmup: dsl.Input[dsl.Model],
    challenger: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
) -> str:
    """Compare the challenger with the other candidates and return the verdict."""
    from components.cli import task

    with task("evaluate"):
        from pathlib import Path

        from components.artifacts import read_summary
        from components.config import EvaluateParams, from_yaml
        from components.evaluate.console import copy_report, figures
        from components.evaluate.step import CHECKS
        from components.evaluate.step import evaluate as run
        from components.stores.dataset import summary_lines
        from components.tracking.runs import step_run

        group, output = from_yaml(EvaluateParams, params), Path(evaluation.path)
        folders = (Path(dataset.path), Path(warmup.path), Path(challenger.path))
        with step_run("evaluate", group, data_version) as tracked:
            places = {"ledger": ledger, "remote": remote, "expected": data_version}
            dataset_, start, trained = folders
            verdict = run(dataset_, start, trained, output, params=group, run=tracked, docs=Path(docs.path), **places)
        metrics.metadata.update(figures(output))
        copy_report(output, Path(report.path))
        print(*summary_lines(read_summary(output), output / "data.json", output / CHECKS), sep="\n", flush=True)
        return verdict

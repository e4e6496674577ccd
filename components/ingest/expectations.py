"""Validate a manifest with Great Expectations and write its Data Docs pages."""

from pathlib import Path

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.checkpoint.actions import UpdateDataDocsAction
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation

from components.config import IngestParams
from components.ingest.splits import SPLITS

_NAME = "photographs"


def _expectations(params: IngestParams) -> list[Expectation]:
    """Return the expectations of a manifest.

    The manifest has the fields of `Photograph`, and `near_duplicates`: 1 if a photograph of another split is within
    `near_duplicate_bits`, else 0.
    """
    columns = ("sha256", "source", "file", "size_bytes", "width", "height", "texture_mean", "texture_share", "phash")
    return [
        *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns),
        *(gxe.ExpectColumnValuesToBeUnique(column=column) for column in ("sha256", "source", "file")),
        gxe.ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$"),
        gxe.ExpectColumnValuesToMatchRegex(column="phash", regex="^[0-9a-f]{16}$"),
        gxe.ExpectColumnValuesToBeBetween(column="width", min_value=params.minimum_side),
        gxe.ExpectColumnValuesToBeBetween(column="height", min_value=params.minimum_side),
        gxe.ExpectColumnValuesToBeInSet(column="mode", value_set=["RGB"]),
        gxe.ExpectColumnValuesToBeInSet(column="bit_depth", value_set=[8]),
        gxe.ExpectColumnValuesToBeBetween(column="texture_mean", min_value=0, max_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="texture_share", min_value=0, max_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="size_bytes", min_value=1),
        gxe.ExpectColumnDistinctValuesToEqualSet(column="split", value_set=sorted(SPLITS)),
        gxe.ExpectColumnMaxToBeBetween(column="near_duplicates", max_value=0),
    ]


def validate(manifest: pd.DataFrame, docs: Path, params: IngestParams) -> list[str]:
    """Validate a manifest, write the pages into an existing folder, and return one line per failed expectation."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    context.update_data_docs_site(
        "local_site",
        {
            "class_name": "SiteBuilder",
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs.resolve())},
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        },
    )
    batch = (
        context.data_sources.add_pandas("manifest")
        .add_dataframe_asset(_NAME)
        .add_batch_definition_whole_dataframe(_NAME)
    )
    suite = context.suites.add(gx.ExpectationSuite(name=_NAME, expectations=_expectations(params)))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=_NAME, data=batch, suite=suite))
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=_NAME,
            validation_definitions=[definition],
            actions=[UpdateDataDocsAction(name=_NAME)],
            result_format={"result_format": "SUMMARY", "unexpected_index_column_names": ["source"]},
        )
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": manifest})
    results = [result for run in outcome.run_results.values() for result in run.results]
    return [_explained(result) for result in results if not result.success]


def _explained(result: ExpectationValidationResult) -> str:
    """Say which expectation does not hold, and for which values."""
    config = result.expectation_config
    name = f"{config.type} of {config.kwargs['column']}" if config else "an expectation"
    if "observed_value" in result.result:
        seen = f"observed {result.result['observed_value']}"
    elif "partial_unexpected_list" in result.result:
        seen = f"{result.result['unexpected_count']} values, such as {result.result['partial_unexpected_list'][:3]}"
    else:
        seen = "it could not be checked"
    return f"{name} does not hold ({seen})"

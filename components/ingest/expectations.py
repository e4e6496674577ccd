"""The gate: what must hold of a manifest, checked by Great Expectations and shown on its Data Docs pages."""

from pathlib import Path

import great_expectations as gx
import pandas as pd
from great_expectations.checkpoint.actions import UpdateDataDocsAction
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.core.expect_column_distinct_values_to_equal_set import (
    ExpectColumnDistinctValuesToEqualSet,
)
from great_expectations.expectations.core.expect_column_max_to_be_between import ExpectColumnMaxToBeBetween
from great_expectations.expectations.core.expect_column_values_to_be_between import ExpectColumnValuesToBeBetween
from great_expectations.expectations.core.expect_column_values_to_be_in_set import ExpectColumnValuesToBeInSet
from great_expectations.expectations.core.expect_column_values_to_be_unique import ExpectColumnValuesToBeUnique
from great_expectations.expectations.core.expect_column_values_to_match_regex import ExpectColumnValuesToMatchRegex
from great_expectations.expectations.core.expect_column_values_to_not_be_null import ExpectColumnValuesToNotBeNull
from great_expectations.expectations.expectation import Expectation

from components.config import IngestParams
from components.ingest.splits import SPLITS

_NAME = "photographs"


def expectations(params: IngestParams) -> list[Expectation]:
    """Return what must hold of a manifest; each is critical: it stops the step.

    The manifest has the fields of `Photograph` and, in addition, `split` and `near_duplicates`: how many photographs
    of other sides are within `near_duplicate_bits`.
    """
    columns = ("sha256", "source", "file", "size_bytes", "width", "height", "texture_mean", "texture_share", "phash")
    return [
        *(ExpectColumnValuesToNotBeNull(column=column) for column in columns),
        *(ExpectColumnValuesToBeUnique(column=column) for column in ("sha256", "source", "file")),
        ExpectColumnValuesToMatchRegex(column="sha256", regex="^[0-9a-f]{64}$"),
        ExpectColumnValuesToMatchRegex(column="phash", regex="^[0-9a-f]{16}$"),
        *(
            ExpectColumnValuesToBeBetween(column=column, min_value=params.minimum_side)
            for column in ("width", "height")
        ),
        ExpectColumnValuesToBeInSet(column="mode", value_set=["RGB"]),
        ExpectColumnValuesToBeInSet(column="bit_depth", value_set=[8]),
        *(
            ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=1)
            for column in ("texture_mean", "texture_share")
        ),
        ExpectColumnValuesToBeBetween(column="size_bytes", min_value=1),
        ExpectColumnDistinctValuesToEqualSet(column="split", value_set=sorted(SPLITS)),
        ExpectColumnMaxToBeBetween(column="near_duplicates", max_value=0),
    ]


def validate(manifest: pd.DataFrame, docs: Path, params: IngestParams) -> list[str]:
    """Check a manifest and write the Data Docs pages, whatever the outcome.

    Args:
        manifest: one row a photograph, see `expectations`.
        docs: existing folder that the pages are written to; `index.html` is the first.
        params: of the step.

    Returns:
        What does not hold, one line each; nothing when all does.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for site in list(context.get_site_names()):
        context.delete_data_docs_site(site)
    context.add_data_docs_site(
        _NAME,
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
    suite = context.suites.add(gx.ExpectationSuite(name=_NAME, expectations=expectations(params)))
    definition = context.validation_definitions.add(gx.ValidationDefinition(name=_NAME, data=batch, suite=suite))
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=_NAME,
            validation_definitions=[definition],
            actions=[UpdateDataDocsAction(name=_NAME, site_names=[_NAME])],
            result_format={"result_format": "SUMMARY", "unexpected_index_column_names": ["source"]},
        )
    )
    outcome = checkpoint.run(batch_parameters={"dataframe": manifest})
    results = [result for run in outcome.run_results.values() for result in run.results]
    return [_explained(result) for result in results if not result.success]


def _explained(result: ExpectationValidationResult) -> str:
    """Say in one line which expectation does not hold, and for what."""
    config = result.expectation_config
    name = f"{config.type} of {config.kwargs['column']}" if config else "an expectation"
    if "observed_value" in result.result:
        seen = f"observed {result.result['observed_value']}"
    elif "partial_unexpected_list" in result.result:
        seen = f"{result.result['unexpected_count']} values, as {result.result['partial_unexpected_list'][:3]}"
    else:
        seen = "it could not be checked"
    return f"{name} does not hold ({seen})"

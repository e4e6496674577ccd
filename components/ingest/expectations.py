"""Validate a manifest with Great Expectations and write its Data Docs pages, which need no network."""

import html
import re
import shutil
from pathlib import Path

import great_expectations as gx
import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.checkpoint.actions import UpdateDataDocsAction
from great_expectations.core.expectation_validation_result import ExpectationValidationResult
from great_expectations.core.run_identifier import RunIdentifier
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.expectations.expectation import Expectation

from components.config import IngestParams
from components.ingest.splits import shares_of
from components.progress import printable

_NAME = "photographs"
_RUN = "ingest"
# Scripts, and pictures and styles from other servers; the banner for a newsletter; a label without a value.
_FOREIGN = re.compile(
    r"<script\b.*?</script>|<style\b.*?</style>|<link\b[^>]*>|<footer\b.*?</footer>|Data asset: None<br>", re.DOTALL
)
_LOGO = re.compile(r"<img\b[^>]*alt=\"Great Expectations\"[^>]*>")


def _expectations(params: IngestParams) -> list[Expectation]:
    """Return the expectations of a manifest.

    The manifest has the fields of `Photograph`, and `near_duplicates`: 1 if a photograph of another split is within
    `near_duplicate_bits`, else 0.
    """
    shares = shares_of(params.validation_share, params.test_share)
    splits = [split for split, share in shares.items() if share]
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
        gxe.ExpectColumnDistinctValuesToEqualSet(column="split", value_set=sorted(splits)),
        gxe.ExpectColumnMaxToBeBetween(column="near_duplicates", max_value=0),
    ]


def _escaped(name: str) -> str:
    """Escape a name for Great Expectations, which writes values into its pages as they are; keep names distinct."""
    return "".join(html.escape(each) if each.isprintable() else f"&#92;{printable(each)[1:]}" for each in name)


def _make_independent(docs: Path) -> None:
    """Replace what the pages load from other servers by one inlined stylesheet."""
    style = f"<style>\n{Path(__file__).with_name('pages.css').read_text()}</style>\n</head>"
    for page in docs.rglob("*.html"):
        text = _LOGO.sub("Great Expectations", _FOREIGN.sub("", page.read_text(encoding="utf-8")))
        page.write_text(text.replace("</head>", style, 1), encoding="utf-8")
    shutil.rmtree(docs / "static")
    # A script would fill the table of Great Expectations' own index: the only result takes its place.
    [result] = docs.glob("validations/**/*.html")
    text = result.read_text(encoding="utf-8").replace(
        f'href="{"../" * len(result.relative_to(docs).parts[1:])}', 'href="'
    )
    (docs / "index.html").write_text(text, encoding="utf-8")


def validate(manifest: pd.DataFrame, docs: Path, params: IngestParams) -> list[str]:
    """Validate a manifest, write the pages into an existing folder, and return one line per failed expectation."""
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    # Great Expectations replaces $NAME by the environment variable NAME, unless the sign is escaped.
    folder = str(docs.resolve()).replace("$", r"\$")
    context.update_data_docs_site(
        "local_site",
        {
            "class_name": "SiteBuilder",
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": folder},
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
    escaped = manifest.assign(source=manifest["source"].map(_escaped, na_action="ignore"))
    outcome = checkpoint.run(batch_parameters={"dataframe": escaped}, run_id=RunIdentifier(run_name=_RUN))
    _make_independent(docs)
    results = [result for run in outcome.run_results.values() for result in run.results]
    return [_explained(result) for result in results if not result.success]


def _explained(result: ExpectationValidationResult) -> str:
    """Say which expectation does not hold, and for which values."""
    config = result.expectation_config
    name = f"{config.type} of {config.kwargs['column']}" if config else "an expectation"
    if "observed_value" in result.result:
        seen = f"observed {result.result['observed_value']}"
    elif "partial_unexpected_list" in result.result:
        examples = html.unescape(str(result.result["partial_unexpected_list"][:3]))
        seen = f"{result.result['unexpected_count']} values, such as {examples}"
    else:
        seen = "it could not be checked"
    return f"{name} does not hold ({seen})"

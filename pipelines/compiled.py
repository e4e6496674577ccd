"""The pipeline as Kubeflow reads it."""

from pathlib import Path

from kfp.compiler import Compiler

from bebygan.files import whole_file
from pipelines.retrain import retrain


def write_pipeline(path: Path) -> None:
    """Write the pipeline's intermediate representation (KFP v2), the same bytes each time.

    Raises:
        StorageError: the file cannot be written.
    """
    with whole_file(path) as temporary:
        # The compiler goes by the suffix.
        compiled = temporary.with_suffix(".yaml")
        try:
            Compiler().compile(retrain, str(compiled))
            temporary.write_bytes(compiled.read_bytes())
        finally:
            compiled.unlink(missing_ok=True)

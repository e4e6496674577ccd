"""The folder of a registered model: its weights, the code that it carries, and their digests."""

from collections.abc import Mapping
from pathlib import Path

from bebygan.errors import WeightsError
from bebygan.files import sha256_of, sha256_of_files

WEIGHTS = "artifacts/generator.safetensors"
"""Path of the generator in the folder."""
MODEL_CODE = "model_code.py"
"""Path of the file that MLflow executes."""


def digests(model: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights, and of everything that is executed when the model is loaded.

    Raises:
        FileNotFoundError: the folder is incomplete.
    """
    carried = [path for path in (model / "code").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {
        "weights_sha256": sha256_of(model / WEIGHTS),
        "code_sha256": sha256_of_files(model, [model / MODEL_CODE, *carried]),
    }


def damaged(name: str, what: str) -> WeightsError:
    """Return the error for a registered model whose files are not those that were registered."""
    return WeightsError(
        f"{name} is damaged: {what}. Restore its files from a backup; without one, give the alias champion to another "
        "version, or remove the alias, and run again"
    )


def check_unchanged(model: Path, expected: Mapping[str, str], name: str) -> None:
    """Compare a model's files with the digests that were recorded when it was registered.

    Args:
        model: folder of the model.
        expected: may hold `weights_sha256` and `code_sha256`; a digest that is missing is not compared.
        name: of the model, for the error.

    Raises:
        WeightsError: a file differs or is missing.
    """
    try:
        found = digests(model)
    except FileNotFoundError as error:
        raise damaged(name, f"{Path(error.filename).relative_to(model)} is missing") from error
    for digest, what in (("weights_sha256", "weights"), ("code_sha256", "files of code")):
        if digest in expected and expected[digest] != found[digest]:
            raise damaged(
                name, f"its {what} have SHA-256 {found[digest][:12]}..., registered was {expected[digest][:12]}..."
            )

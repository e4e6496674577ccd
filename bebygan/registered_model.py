"""The folder of a registered model: its weights, the code that it carries, and their digests."""

from collections.abc import Callable, Mapping
from pathlib import Path

from bebygan.errors import WeightsError
from bebygan.files import checksums, files_in, json_digest, sha256_of

WEIGHTS = "artifacts/generator.safetensors"
"""Path of the generator in the folder."""
DISCRIMINATOR = "artifacts/discriminator.safetensors"
"""Path of the discriminator, with which a training may continue; not every model has one."""
START = "artifacts/start.safetensors"
"""Path of the generator that its training started from, if nothing else holds it."""
MODEL_CODE = "model_code.py"
"""Path of the file that MLflow executes."""


def _code_digest(model: Path) -> str:
    carried = (path for path in files_in(model / "code") if "__pycache__" not in path.parts)
    return json_digest(checksums(model, [model / MODEL_CODE, *carried]))


_DIGESTS: Mapping[str, tuple[str, Callable[[Path], str]]] = {
    "weights_sha256": ("weights", lambda model: sha256_of(model / WEIGHTS)),
    "discriminator_sha256": ("discriminator's weights", lambda model: sha256_of(model / DISCRIMINATOR)),
    "start_sha256": ("start's weights", lambda model: sha256_of(model / START)),
    "code_sha256": ("files of code", _code_digest),
}
"""What each digest is about, and its function of the model's folder."""


def digests(model: Path) -> dict[str, str]:
    """Return the SHA-256 of the weights, and of everything that is executed when the model is loaded."""
    optional = {"discriminator_sha256": DISCRIMINATOR, "start_sha256": START}
    without = [name for name, path in optional.items() if not (model / path).is_file()]
    return {name: digest(model) for name, (_, digest) in _DIGESTS.items() if name not in without}


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
    if not (model / WEIGHTS).is_file():
        raise damaged(name, f"{WEIGHTS} is missing")
    for recorded, (what, digest) in _DIGESTS.items():
        if recorded not in expected:
            continue
        try:
            found = digest(model)
        except FileNotFoundError as error:
            raise damaged(name, f"{Path(error.filename).relative_to(model)} is missing") from error
        if found != expected[recorded]:
            raise damaged(name, f"its {what} have SHA-256 {found[:12]}..., registered was {expected[recorded][:12]}...")

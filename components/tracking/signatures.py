"""Signatures of registered models by the package model-signing, with keys that environment variables name.

A signature covers all files of a version as MLflow stores them: weights, code, and the description that says what is
executed. `model_signing verify key FOLDER --signature FOLDER/model.sig --public_key KEY` verifies a downloaded version,
too.
"""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from bebygan.errors import ConfigError, WeightsError

SIGNATURE = "model.sig"
"""Path of the signature in the folder of a model."""
SIGNING_KEY, VERIFYING_KEY = "BEBYGAN_SIGNING_KEY", "BEBYGAN_VERIFYING_KEY"
"""Environment variables: files with the private and the public key (PEM, elliptic curve)."""
_NOT_SIGNED = (SIGNATURE, "registered_model_meta")
"""MLflow writes the latter into the folder that it downloads."""


def _config(variable: str) -> Any:
    """Return what signs or verifies with the key that a variable names; None without a key.

    Raises:
        ConfigError: the key cannot be read, or the package model-signing is missing.
    """
    if not (key := os.environ.get(variable)):
        return None
    try:
        signs = variable == SIGNING_KEY
        module = import_module("model_signing.signing" if signs else "model_signing.verifying")
        config = module.Config()
        return (
            config.use_elliptic_key_signer(private_key=key)
            if signs
            else config.use_elliptic_key_verifier(public_key=key)
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{variable} is set, which needs the package model-signing: pip install bebygan[signing]"
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = getattr(error, "strerror", None) or "it holds no key of an elliptic curve without password, as PEM"
        raise ConfigError(f"{variable} names {key}, which cannot be used ({reason}): name another file") from error


def check_keys() -> str:
    """Check that the configured keys can be used, and return which there are.

    Raises:
        ConfigError: one cannot.
    """
    found = [variable for variable in (SIGNING_KEY, VERIFYING_KEY) if _config(variable) is not None]
    return f"those of {' and '.join(found)} can be used"


def sign(model: Path) -> Path:
    """Write the signature into the folder of a model, with the configured signing key, and return its path.

    Raises:
        ConfigError: see `check_keys`.
    """
    hashing = import_module("model_signing.hashing").Config()
    hashing.set_ignored_paths(paths=[model / name for name in _NOT_SIGNED])
    _config(SIGNING_KEY).set_hashing_config(hashing).sign(model, model / SIGNATURE)
    return model / SIGNATURE


def configured(variable: str) -> bool:
    """Return whether a variable, `SIGNING_KEY` or `VERIFYING_KEY`, names a key."""
    return bool(os.environ.get(variable))


def check_signature(model: Path, name: str) -> None:
    """Verify the signature of a model, if a verifying key is configured.

    Args:
        model: folder of the model, with all its files.
        name: of the model, for the error.

    Raises:
        WeightsError: there is no signature, it is of another key, or the files are not those that were signed.
        ConfigError: see `check_keys`.
    """
    if (config := _config(VERIFYING_KEY)) is None:
        return
    if not (model / SIGNATURE).is_file():
        raise WeightsError(
            f"{name} is not signed, and {VERIFYING_KEY} asks for signatures: register it again with {SIGNING_KEY}"
        )
    try:
        config.verify(model, model / SIGNATURE)
    except Exception as error:
        # Parsers of damaged signatures raise exceptions of any type.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise WeightsError(
            f"the signature of {name} does not verify with the key {os.environ[VERIFYING_KEY]} ({reason}): do not use "
            "it; restore its files, or name the key that it was signed with"
        ) from error

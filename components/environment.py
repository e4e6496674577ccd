"""Environment variables that tasks and other child processes inherit."""

import os

_PATHS = (
    "AWS_CA_BUNDLE",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "BEBYGAN_CACHE",
    "BEBYGAN_SIGNING_KEY",
    "BEBYGAN_UNTRACKED",
    "BEBYGAN_VERIFYING_KEY",
    "BEBYGAN_WEIGHTS",
    "CURL_CA_BUNDLE",
    "KF_PIPELINES_SA_TOKEN_PATH",
    "MLFLOW_TRACKING_CLIENT_CERT_PATH",
    "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "TORCH_HOME",
    "XDG_CACHE_HOME",
)
"""Variables that name a file or folder."""


def make_paths_absolute() -> None:
    """Make relative paths in the environment absolute: child processes may have another working folder."""
    for name in _PATHS:
        if path := os.environ.get(name):
            os.environ[name] = os.path.abspath(os.path.expanduser(path))

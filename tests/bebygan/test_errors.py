import pickle

import pytest

from bebygan.errors import BebyganError, ServiceError, WeightsError, error_of, without_password


def test_an_exit_code_is_read_back_as_the_error_that_it_stands_for() -> None:
    for kind in BebyganError.__subclasses__():
        error = error_of(kind.exit_code, "what happened")
        assert type(error) is kind
        assert str(error) == "what happened"


def test_an_exit_code_of_no_error_stands_for_a_bug() -> None:
    for code in (1, 134, -9):
        assert type(error_of(code, "what happened")) is RuntimeError


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:secret@host:5000/path", "http://host:5000/path"),
        ("postgresql+psycopg2://user:sec/r@et@host/db", "postgresql+psycopg2://host/db"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=&x=1"),
        ("API request to http://u:secret@host/api failed: see 'postgresql://u:secret@db/x'",
         "API request to http://host/api failed: see 'postgresql://db/x'"),
        ("Invalid endpoint: user:secret@host:8333; see http://host", "Invalid endpoint: host:8333; see http://host"),
        ("endpoint=user:secret@host", "endpoint=host"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("mail me@host", "mail me@host"),
        ("models:/bebygan@champion", "models:/bebygan@champion"),
        ("bebygan:latest@sha256:0123", "bebygan:latest@sha256:0123"),
        ("error: photograph @ 3:4", "error: photograph @ 3:4"),
    ],
)  # fmt: skip
def test_passwords_are_removed_from_addresses_and_texts(text: str, shown: str) -> None:
    assert without_password(text) == shown


def test_no_error_contains_a_password() -> None:
    message = "http://user:secret@host does not answer"
    for error in (ServiceError(message), error_of(5, message), pickle.loads(pickle.dumps(WeightsError(message)))):  # noqa: S301
        assert isinstance(error, BebyganError)
        assert str(error) == "http://host does not answer"

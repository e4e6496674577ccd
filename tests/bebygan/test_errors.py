from bebygan.errors import BebyganError, error_of


def test_an_exit_code_is_read_back_as_the_error_that_it_stands_for() -> None:
    for kind in BebyganError.__subclasses__():
        error = error_of(kind.exit_code, "what happened")
        assert type(error) is kind
        assert str(error) == "what happened"


def test_an_exit_code_of_no_error_stands_for_a_bug() -> None:
    for code in (1, 134, -9):
        assert type(error_of(code, "what happened")) is RuntimeError

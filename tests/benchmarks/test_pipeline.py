import pytest

from benchmarks import pipeline
from benchmarks.measuring import Rounds


def test_the_time_in_steps_is_that_between_their_first_and_last_words() -> None:
    lines = [
        (0.0, "training: there is no champion yet\n"),
        (1.0, "ingest ...\n"),
        (1.5, "ingest: 30 of 100 files in 15 s\n"),
        (3.0, "ingest done in 2 s\n"),
        (10.0, "train ...\n"),
        (14.5, "train done in 4 s\n"),
        (20.0, ""),
    ]
    assert pipeline.seconds_in_steps(lines) == 6.5


def test_a_run_that_told_of_no_step_gives_no_figure() -> None:
    with pytest.raises(RuntimeError, match="no step"):
        pipeline.seconds_in_steps([(0.0, "nothing to do\n"), (1.0, "")])


def test_compiling_is_measured_with_the_real_command() -> None:
    [figure] = pipeline.compiling(Rounds(least=1, seconds=0))
    assert (figure.unit, figure.target) == ("s", "ours <= 3")
    assert 0.2 < figure.ours < 300


def test_a_command_that_fails_is_no_figure() -> None:
    with pytest.raises(RuntimeError, match=r"bebygan compile ended with exit code 2: error: there is no parameter"):
        list(pipeline._told("compile", "/dev/null/x", "--set", "train.iterashuns=1"))

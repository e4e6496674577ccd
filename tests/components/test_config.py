from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bebygan.errors import ConfigError
from bebygan.settings import GanSettings
from components.config import GROUPS, flatten, from_yaml, load_params, one_line_yaml, plain, to_yaml

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


def edited(tmp_path: Path, change: dict[str, object], name: str = "params.yaml") -> Path:
    values = yaml.safe_load(PARAMS.read_text())
    for group, members in change.items():
        values[group] = values[group] | members if isinstance(members, dict) else members
    (tmp_path / name).write_text(yaml.safe_dump(values))
    return tmp_path / name


@pytest.mark.parametrize("profile", ["params.yaml", "params/paper.yaml", "params/official.yaml"])
def test_every_profile_is_valid(profile: str) -> None:
    assert load_params(ROOT / profile).train.iterations > 0


def test_a_profile_outside_the_project_is_laid_over_the_params_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours.yaml").write_text("train: {seed: 7}\n")
    monkeypatch.chdir(ROOT)
    assert load_params(tmp_path / "ours.yaml").train == replace(load_params().train, seed=7)


def test_a_profile_changes_only_what_it_names() -> None:
    laptop, paper = load_params(PARAMS), load_params(ROOT / "params/paper.yaml")

    assert paper.ingest == laptop.ingest
    assert paper.train.schedule.cycle == 200_000
    assert paper.train.schedule.floor == laptop.train.schedule.floor
    assert paper.train.perceptual.weights.keys() == {"conv3_4", "conv4_4", "conv5_4"}


@pytest.mark.parametrize("profile", ["paper", "official"])
def test_vgg16_alone_replaces_vgg19_in_a_profile(profile: str) -> None:
    chosen = load_params(ROOT / f"params/{profile}.yaml", ["train.perceptual.network=vgg16"]).train.perceptual
    assert chosen.weights == {"conv3_3": 0.125, "conv4_3": 0.25, "conv5_3": 0.5}


def test_a_value_on_the_command_line_wins() -> None:
    assert load_params(PARAMS, ["train.iterations=50"]).train.iterations == 50
    assert load_params(PARAMS, ["train.iterations=50", "train.iterations=60"]).train.iterations == 60


def test_a_threshold_that_the_file_does_not_set_can_be_set() -> None:
    thresholds = load_params(PARAMS, ["evaluate.thresholds.absolute.ssim_y=0.5"]).evaluate.thresholds
    assert thresholds.absolute == load_params(PARAMS).evaluate.thresholds.absolute | {"ssim_y": 0.5}


def test_a_mapping_is_laid_over_the_old_one_and_an_empty_one_empties_it() -> None:
    assert load_params(PARAMS, ["train.schedule={warmup: 3}"]).train.schedule.shape == "cosine"
    assert load_params(PARAMS, ["train.schedule={warmup: 3}"]).train.schedule.warmup == 3
    assert load_params(PARAMS, ["evaluate.thresholds.bicubic={}"]).evaluate.thresholds.bicubic == {}


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("train.iteration", "train.iterations"),
        ("trian.iterations", "train.iterations"),
        ("ingest.minimal_side", "ingest.minimum_side"),
        ("train.schedule.peek", "train.schedule.peak"),
        ("iterations", "train.iterations"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_right_one(wrong: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"no parameter {wrong}; did you mean {nearest}"):
        load_params(PARAMS, [f"{wrong}=1"])


def test_a_name_like_no_other_is_answered_with_what_there_is() -> None:
    with pytest.raises(ConfigError, match=f"known are {', '.join(GROUPS)}$"):
        load_params(PARAMS, ["zzz=1"])


@pytest.mark.parametrize(
    ("group", "wrong", "nearest"),
    [("ingest", "minimum_sides", "ingest.minimum_side"), ("train", "bacth", "train.batch")],
)
def test_a_wrong_name_in_a_file_is_refused_too(tmp_path: Path, group: str, wrong: str, nearest: str) -> None:
    path = edited(tmp_path, {group: {wrong: 1}})

    with pytest.raises(ConfigError, match=f"no parameter {group}.{wrong}; did you mean {nearest}"):
        load_params(path)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("train.batch=0", "parameter train.batch must be at least 1, got 0"),
        ("train.crop=130", "crop must be a multiple of 4"),
        ("train.ema_decay=1", r"train\.ema_decay must be at least 0 and below 1, got 1"),
        ("train.betas=[0.9, 1]", r"train\.betas must be at least 0 and below 1, got \(0.9, 1.0\)"),
        ("train.iterations=many", r"parameter train.iterations: .*integer.*'many'"),
        ("train.precision=fp8", "parameter train.precision"),
        ("train.region.window=10", "parameter train.region.window must be odd and at least 3, got 10"),
        ("train.losses.adversarial=-1", "parameter train.losses.adversarial must be at least 0, got -1"),
        ("ingest.test_share=1.5", "parameter ingest.test_share must be at least 0 and at most 1, got 1.5"),
        ("patches.size=250", "parameter patches.size must be a multiple of 4 and at least 48, got 250"),
        ("warmup.generator.blocks=0", "parameter warmup.generator.blocks must be at least 1, got 0"),
        ("train.batch=[", "is not YAML"),
        ("train.batch", "takes name=value"),
        ("train=5", "parameter train must be a mapping of names to values, got 5"),
        ("ingest.minimum_side=16", r"ingest\.minimum_side must be at least 32, got 16: LPIPS, .* needs 31 pixels"),
        (
            "ingest.test_share=0",
            r"ingest\.test_share must be above 0, got 0\.0: models are compared on its photographs",
        ),
        (
            "ingest.test_share=0.92",
            r"ingest\.test_share and validation_share must have a sum below 1, got 0\.92 and 0\.08",
        ),
        ("train.best_buddy.patch=132", r"train\.best_buddy\.patch must be at most crop, got 132 and 96"),
        ("train.region.window=257", r"train\.region\.window must be below twice the crop, got 257 and 96"),
        (
            "ingest.validation_share=0",
            r"ingest\.validation_share must be above 0, got 0\.0: train\.validate_every 50 validates on these",
        ),
        ("evaluate.model_name=..", r"parameter evaluate\.model_name must match .*, got '\.\.'"),
        ("ingest.convert=grey", "parameter ingest.convert must be a list, got 'grey'"),
        ("train.losses.perceptual=.nan", r"parameter train\.losses\.perceptual: .*finite"),
        ("train.perceptual.taps=[[conv3_3, .inf]]", r"parameter train\.perceptual\.taps.*finite"),
        ("evaluate.thresholds.champion.lpips=.nan", r"parameter evaluate\.thresholds\.champion\.lpips: .*finite"),
        ("evaluate.thresholds.champion.ssim=1", r"thresholds\.champion\.ssim: .*'ssim_y'.*got 'ssim'"),
    ],
)
def test_a_value_out_of_range_is_refused_in_one_line(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        load_params(PARAMS, [assignment])
    assert "\n" not in str(refused.value)


def test_a_crop_that_no_patch_holds_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"^parameter train\.crop must be at most patches\.size, got 320 and 256$"):
        load_params(PARAMS, ["train.crop=320"])


def test_photographs_for_validation_are_needed_only_by_trainings_that_validate() -> None:
    without = ["ingest.validation_share=0", "train.validate_every=0", "train.deliver.by=last"]
    loaded = load_params(PARAMS, without)
    assert (loaded.ingest.validation_share, loaded.warmup.validate_every) == (0.0, 500)
    with pytest.raises(ConfigError, match=r"warmup\.validate_every 500 validates"):
        load_params(PARAMS, [*without, "warmup.iterations=1"])


@pytest.mark.parametrize("name", ["ingest.test_share", "train.batch", "train.losses.perceptual", "warmup.generator"])
def test_a_missing_parameter_is_named_although_the_library_has_a_default(tmp_path: Path, name: str) -> None:
    values = yaml.safe_load(PARAMS.read_text())
    *groups, last = name.split(".")
    del reduce(getitem, groups, values)[last]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))

    with pytest.raises(ConfigError, match=f"parameter {name} is missing"):
        load_params(tmp_path / "params.yaml")
    if groups[0] == "train":
        with pytest.raises(ConfigError, match=f"parameter {name.removeprefix('train.')} is missing"):
            from_yaml(GanSettings, yaml.safe_dump(values["train"]))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the parameters .*nowhere\.yaml: No such file"):
        load_params(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["[1, 2", "- a", ""])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)

    with pytest.raises(ConfigError):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_survives_the_journey_as_text(group: str) -> None:
    value = getattr(load_params(PARAMS), group)

    assert from_yaml(type(value), to_yaml(value)) == value
    assert to_yaml(from_yaml(type(value), to_yaml(value))) == to_yaml(value)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 10**6))
def test_integers_stay_integers(iterations: int) -> None:
    group = load_params(PARAMS, [f"train.iterations={iterations}"]).train

    again = from_yaml(type(group), to_yaml(group))
    assert type(again.iterations) is int
    assert again.iterations == iterations


@pytest.mark.parametrize("group", GROUPS)
def test_one_line_and_plain_values_read_back_to_an_equal_group(group: str) -> None:
    value = getattr(load_params(ROOT / "params.yaml"), group)
    assert "\n" not in one_line_yaml(value)
    assert from_yaml(type(value), one_line_yaml(value)) == value
    assert plain(value) == yaml.safe_load(to_yaml(value))


def test_a_tree_is_flattened_to_dotted_names() -> None:
    assert dict(flatten({"a": 1, "b": {"c": {"d": [1, 2]}, "e": None}})) == {"a": 1, "b.c.d": [1, 2], "b.e": None}

"""Settings: the recipe by default, one message for all mistakes, and a fingerprint of what matters."""

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from job.errors import InvalidSettings
from job.settings.environment import read_settings
from job.settings.settings import RECIPE_VERSION, Settings, _setting, changes_result, variable
from tests.conftest import REPOSITORY, job

OTHER_VALUES: dict[str, Any] = {
    "run_id": "other",
    "storage_uri": "/elsewhere",
    "dataset": "cifar10",
    "data_dir": "/data",
    "train_split": "train[:30%]",
    "validation_split": "train[40%:45%]",
    "test_split": "train[50%:55%]",
    "backbone": "MobileNetV2",
    "image_size": 160,
    "batch_size": 64,
    "cache": "disk",
    "flip": "none",
    "rotation": 0.2,
    "weights": "none",
    "dropout": 0.3,
    "head_epochs": 3,
    "head_learning_rate": 2e-3,
    "fine_tune_epochs": 3,
    "fine_tune_learning_rate": 2e-5,
    "seed": 1,
    "precision": "float32",
    "xla": "on",
    "deterministic": True,
    "checkpoint_every_seconds": 60,
    "keep_checkpoints": 3,
    "lease_seconds": 90,
    "grace_seconds": 25,
    "job_uid": "uid",
    "job_name": "job",
    "node_name": "node",
    "cache_dir": "/cache",
    "termination_log": "/log",
    "min_test_accuracy": 0.9,
    "metrics_port": 0,
    "pushgateway_url": "http://push:9091",
    "log_format": "json",
}

OPERATION_ONLY = {
    "run_id", "storage_uri", "data_dir", "cache", "checkpoint_every_seconds", "keep_checkpoints", "lease_seconds",
    "grace_seconds", "job_uid", "job_name", "node_name", "cache_dir", "termination_log", "min_test_accuracy",
    "metrics_port", "pushgateway_url", "log_format",
}  # fmt: skip


def read(*argv: str, **environ: str) -> Settings:
    """Settings of flags, with the keywords as environment variables."""
    return read_settings(argv, environ)


def test_nothing_but_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever renders manifests reads the settings of a container, and not their own."""
    monkeypatch.setenv("THAW_SEED", "1")
    assert (read().seed, read(THAW_SEED="7").seed, Settings().seed) == (0, 7, 0)


def test_the_defaults_are_the_recipe_of_the_article() -> None:
    """Nothing needs to be set to get it."""
    settings = Settings()
    assert settings.dataset == "cats_vs_dogs"
    assert (settings.train_split, settings.validation_split, settings.test_split) == (
        "train[:40%]",
        "train[40%:50%]",
        "train[50%:60%]",
    )
    assert (settings.image_size, settings.batch_size) == (150, 32)
    assert (settings.flip, settings.rotation, settings.dropout) == ("horizontal", 0.1, 0.2)
    assert (settings.backbone, settings.weights) == ("Xception", "imagenet")
    head, fine_tune = settings.phases()
    assert (head.trainable, head.learning_rate, head.epochs) == (("head",), 1e-3, 5)
    assert (fine_tune.trainable, fine_tune.learning_rate, fine_tune.epochs) == (("backbone", "head"), 1e-5, 5)


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_the_fingerprint_covers_what_changes_the_result_and_nothing_else(field: str) -> None:
    """Another value gives another fingerprint exactly when the result would be another."""
    changed = Settings(**{field: OTHER_VALUES[field]})
    assert getattr(changed, field) != getattr(Settings(), field)
    assert (changed.fingerprint() == Settings().fingerprint()) == (field in OPERATION_ONLY)
    assert changes_result(field) == (field not in OPERATION_ONLY)


def test_the_recipe_and_its_fingerprint_stay_what_they_are() -> None:
    """A default is part of a run's identity without being written down: another default needs another RECIPE_VERSION.

    A new setting whose default gives what was given before is added here, and the fingerprints stay.
    """
    assert Settings.recipe() == {
        "DATASET": "cats_vs_dogs", "TRAIN_SPLIT": "train[:40%]", "VALIDATION_SPLIT": "train[40%:50%]",
        "TEST_SPLIT": "train[50%:60%]", "BACKBONE": "Xception", "IMAGE_SIZE": 150, "BATCH_SIZE": 32,
        "FLIP": "horizontal", "ROTATION": 0.1, "WEIGHTS": "imagenet", "DROPOUT": 0.2, "HEAD_EPOCHS": 5,
        "HEAD_LEARNING_RATE": 0.001, "FINE_TUNE_EPOCHS": 5, "FINE_TUNE_LEARNING_RATE": 1e-05, "SEED": 0,
        "PRECISION": "auto", "XLA": "auto", "DETERMINISTIC": False,
    }  # fmt: skip
    assert RECIPE_VERSION == 2
    assert Settings().fingerprint() == "4a1779511a57"
    assert Settings(seed=3, flip="none", dropout=0.5).fingerprint() == "0ec4f66701fd"


class Newer(Settings):
    """The settings of a later version, which has one more that changes the result."""

    mixup: float = _setting(0.0, "mix images", group="augmentation", changes_result=True)


def test_a_new_setting_leaves_the_runs_under_way_what_they_are() -> None:
    """With its default no fingerprint changes; with another value it does."""
    assert Newer().fingerprint() == Settings().fingerprint()
    assert Newer(seed=3).fingerprint() == Settings(seed=3).fingerprint()
    assert Newer(mixup=0.2).fingerprint() != Settings().fingerprint()
    assert Newer().result_settings() == Settings().result_settings() | {"MIXUP": 0.0}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"rotation": "0"}, {"rotation": 0.0}), ({"rotation": -0.0}, {"rotation": 0}),
        ({"head_learning_rate": "2e-3"}, {"head_learning_rate": 0.002}), ({"head_epochs": "7"}, {"head_epochs": 7}),
        ({"deterministic": "yes"}, {"deterministic": True}), ({"dropout": "0.20"}, {}), ({"seed": 0.0}, {}),
    ],
)  # fmt: skip
def test_one_value_has_one_fingerprint_however_it_is_written(one: dict[str, Any], other: dict[str, Any]) -> None:
    """As text, as a number, and as the default."""
    assert Settings(**one).fingerprint() == Settings(**other).fingerprint()


def test_a_run_is_named_by_data_set_and_fingerprint_by_default() -> None:
    """The name is one path segment, whatever the data set is called."""
    settings = Settings(dataset="oxford/config:1.0.0")
    assert settings.resolved_run_id() == f"oxford-config-1-0-0-{settings.fingerprint()}"


def test_flags_win_over_the_environment() -> None:
    """The same fields are variables and flags."""
    settings = read("--batch-size", "8", THAW_BATCH_SIZE="64", THAW_SEED="3")
    assert (settings.batch_size, settings.seed) == (8, 3)


def test_a_misspelt_variable_is_an_error_that_proposes_the_nearest() -> None:
    """pydantic-settings alone would ignore it."""
    with pytest.raises(InvalidSettings, match=r"THAW_BATCHSIZE: no such setting; did you mean THAW_BATCH_SIZE\?"):
        read(THAW_BATCHSIZE="8")


def test_a_misspelt_flag_is_an_error_that_proposes_the_nearest() -> None:
    """Unknown flags are reported with everything else."""
    with pytest.raises(InvalidSettings, match=r"--bach-size: no such flag; did you mean --batch-size\?"):
        read("--bach-size", "8")


def test_an_empty_value_is_an_error_that_tells_the_default() -> None:
    """An empty string is neither a value nor the default."""
    with pytest.raises(InvalidSettings, match=r"THAW_SEED='': is empty; .* default \(0\)"):
        read(THAW_SEED="")


def test_all_problems_are_reported_together() -> None:
    """Names, values, bounds, splits, sizes and flags in one message, each with its value and rule."""
    with pytest.raises(InvalidSettings) as caught:
        read(
            "--dropout", "2", "--nope",
            THAW_BATCH_SIZE="0", THAW_PRECISION="bf16", THAW_BACKBONE="Xcepton", THAW_IMAGE_SIZE="big",
            THAW_TRAIN_SPLIT="train[:50%]", THAW_TEST_SPLIT="train[9:3]", THAW_LEARNING_RATE="1", THAW_CACHE="",
            THAW_STORAGE_URI="s3://bucket", THAW_SEED="-1",
        )  # fmt: skip
    lines = caught.value.message.splitlines()
    assert lines[0] == "12 problems with the settings; nothing was started."
    for expected in (
        "--dropout='2': must be less than 1",
        "--nope: no such flag",
        "THAW_BATCH_SIZE='0': must be greater than or equal to 1",
        "THAW_PRECISION='bf16': must be 'auto', 'float32' or 'bfloat16'; did you mean bfloat16?",
        "did you mean Xception?",
        "THAW_IMAGE_SIZE='big': must be a whole number",
        "THAW_VALIDATION_SPLIT='train[40%:50%]': overlaps THAW_TRAIN_SPLIT='train[:50%]'",
        "THAW_TEST_SPLIT='train[9:3]': has no examples",
        "THAW_LEARNING_RATE: no such setting",
        "THAW_CACHE='': is empty",
        "THAW_STORAGE_URI='s3://bucket': s3:// is not a store",
        "THAW_SEED='-1': must be greater than or equal to 0",
    ):
        assert any(expected in line for line in lines), expected


@pytest.mark.parametrize(
    ("backbone", "size", "smallest"), [("Xception", 70, 71), ("MobileNetV2", 31, 32), ("InceptionV3", 74, 75)]
)
def test_an_image_below_what_the_backbone_accepts_is_refused(backbone: str, size: int, smallest: int) -> None:
    """The message names the smallest size."""
    with pytest.raises(InvalidSettings, match=f"{backbone} needs at least {smallest} pixels"):
        read(THAW_BACKBONE=backbone, THAW_IMAGE_SIZE=str(size))


def test_a_run_that_would_train_nothing_is_refused() -> None:
    """One phase may be left out, not both."""
    assert [phase.name for phase in read(THAW_HEAD_EPOCHS="0").phases()] == ["fine_tune"]
    with pytest.raises(InvalidSettings, match="nothing would train"):
        read(THAW_HEAD_EPOCHS="0", THAW_FINE_TUNE_EPOCHS="0")


def test_variables_that_kubernetes_injects_are_explained() -> None:
    """A Service called thaw adds THAW_PORT and the like to every pod."""
    with pytest.raises(InvalidSettings, match="enableServiceLinks: false"):
        read(THAW_PORT_9090_TCP="tcp://10.0.0.1:9090")


@pytest.mark.parametrize("run_id", ["a/b", "..", ".a", "", "x" * 200, "-a", "a\n"])
def test_a_run_id_is_one_path_segment(run_id: str) -> None:
    """It becomes a folder name and must not leave the store."""
    with pytest.raises(InvalidSettings, match="THAW_RUN_ID"):
        read(THAW_RUN_ID=run_id)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dataset", "a/.."), ("dataset", "a/."), ("dataset", "../a"), ("dataset", "a/b/../c"),
        ("weights", "gs://bucket/a/.."), ("weights", "gs://bucket/"), ("weights", "gs://bucket/../x.h5"),
    ],
)  # fmt: skip
def test_a_name_that_could_lead_out_of_a_folder_is_refused(field: str, value: str) -> None:
    """Both become the name of a file in the cache folder."""
    with pytest.raises(InvalidSettings, match=variable(field)):
        read(**{variable(field): value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("storage_uri", "gs://bucket/a?b=c"), ("storage_uri", "file:///a#b"), ("data_dir", "gs://bucket/a?b"),
        ("cache_dir", "gs://bucket/a"), ("termination_log", "https://host/log"), ("job_name", "https://host"),
        ("pushgateway_url", "http://host?a=b"), ("pushgateway_url", "http://u:p@host"),
    ],
)  # fmt: skip
def test_a_url_that_would_not_be_used_as_written_is_refused(field: str, value: str) -> None:
    """A query means nothing to a store, and neither a URL to a folder of this machine."""
    with pytest.raises(InvalidSettings, match=variable(field)):
        read(**{variable(field): value})


def test_help_shows_every_setting_with_its_default() -> None:
    """`python -m job --help` is complete and ends well."""
    done = subprocess.run(
        [sys.executable, "-m", "job", "--help"], capture_output=True, text=True, check=True, cwd=REPOSITORY, timeout=60
    )
    text = re.sub(r"\s+", " ", done.stdout)
    for field, info in Settings.model_fields.items():
        assert f"--{field.replace('_', '-')} " in text
        if info.default is not None and field != "cache_dir":
            default = str(info.default).lower() if isinstance(info.default, bool) else str(info.default)
            assert f"[default: {default}]" in text, field


def test_a_wrong_variable_ends_with_2_before_tensorflow_is_imported(environment: Callable[..., dict[str, str]]) -> None:
    """The answer comes at once, and nothing is written."""
    env = environment(batch_size=0)
    program = (
        "import sys; from job.__main__ import main; code = main([]); "
        "sys.exit(99 if 'tensorflow' in sys.modules else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert f"{variable('batch_size')}='0'" in done.stderr


def test_an_unknown_variable_ends_the_program_with_2(environment: Callable[..., dict[str, str]]) -> None:
    """Seen from outside, as a user sees it."""
    done = job(env=environment() | {"THAW_EPOCHS": "3"})
    assert done.returncode == 2
    assert "THAW_EPOCHS: no such setting" in done.stderr
    assert done.stdout == ""

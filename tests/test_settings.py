"""Settings: the recipe by default, one message for all mistakes, and a fingerprint of what matters."""

from typing import Any

import pytest

from job import cli
from job.errors import InvalidSettings
from job.settings.environment import choices
from job.settings.fields import setting_group, variable
from job.settings.settings import RECIPE_VERSION, Settings, changes_result

PHASES = '[{"name":"only","epochs":2,"learning_rate":0.001}]'
TEXTS: dict[str, Any] = {
    "run_id": "other", "storage_uri": "/elsewhere", "dataset": "cifar10", "data_dir": "/data",
    "train_split": "train[:30%]", "validation_split": "train[40%:45%]", "test_split": "train[50%:55%]",
    "backbone": "MobileNetV2", "weights": "none", "job_uid": "uid", "job_name": "job", "node_name": "node",
    "namespace": "team-a", "work_bytes": 20_000_000_000,
    "classes": "dog,cat", "threshold": "auto", "worker": 0, "worker_host": "host-{worker}", "devices": "2",
    "sweep": "/sweep", "sweep_index": 0,
    "cache_dir": "/cache", "termination_log": "/log", "min_test_accuracy": 0.9,
    "min_test_balanced_accuracy": 0.9, "pushgateway_url": "http://push:9091",
    "unfreeze": "top:3", "patience": 3, "phases": PHASES, "microbatch_size": 8,
}  # fmt: skip
"""Another value of each setting that is free text, or has no default."""
OWN = {"dataset": "./images"}


def another(field: str) -> Any:
    """A value that is not the default."""
    info = Settings.model_fields[field]
    if field in TEXTS:
        return TEXTS[field]
    if choices(info):
        return next(choice for choice in choices(info) if choice != info.default)
    return (
        not info.default
        if isinstance(info.default, bool)
        else info.default + 1
        if isinstance(info.default, int)
        else info.default / 2 or 0.25
    )


def read(*argv: str, **environ: str) -> Settings:
    """Settings of flags, with the keywords as environment variables."""
    settings: Settings = cli.read("run", argv, environ).settings
    return settings


def test_nothing_but_the_given_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What renders manifests reads the settings of a container, and not its own."""
    monkeypatch.setenv("THAW_SEED", "1")
    assert (read().seed, read(THAW_SEED="7").seed, Settings().seed) == (0, 7, 0)


def test_the_fingerprint_covers_what_changes_the_result_and_nothing_else() -> None:
    """Another value gives another fingerprint exactly when the setting is part of the recipe."""
    for field in Settings.model_fields:
        base = {"labels": OWN, "classes": OWN, "randaugment_magnitude": {"randaugment_operations": 2}}.get(field, {})
        changed = Settings(**base, **{field: another(field)})
        assert getattr(changed, field) != getattr(Settings(), field), field
        assert (changed.fingerprint() != Settings(**base).fingerprint()) == changes_result(field), field
        assert changes_result(field) == (field.upper() in Settings.result_defaults())


def test_the_recipe_and_its_fingerprint_stay_what_they_are() -> None:
    """A default is part of a run's identity without being written down: another default needs another RECIPE_VERSION.

    A new setting whose default gives what was given before is added here, and the fingerprints stay.
    """
    assert Settings.result_defaults() == {
        "DATASET": "cats_vs_dogs", "TRAIN_SPLIT": "train[:40%]", "VALIDATION_SPLIT": "train[40%:50%]",
        "TEST_SPLIT": "train[50%:60%]", "BACKBONE": "Xception", "IMAGE_SIZE": 150, "BATCH_SIZE": 32,
        "FLIP": "horizontal", "ROTATION": 0.1, "WEIGHTS": "imagenet", "DROPOUT": 0.2, "HEAD_EPOCHS": 5,
        "HEAD_LEARNING_RATE": 0.001, "FINE_TUNE_EPOCHS": 5, "FINE_TUNE_LEARNING_RATE": 1e-05, "SEED": 0,
        "PRECISION": "auto", "XLA": "auto", "DETERMINISTIC": False,
        "LABELS": "auto", "CLASSES": None, "STRATIFY": True, "ON_UNREADABLE": "fail", "CLASS_WEIGHTS": "none",
        "UNFREEZE": "all", "PHASES": None, "SCHEDULE": "constant", "WARMUP_EPOCHS": 0, "END_FACTOR": 0,
        "PLATEAU_PATIENCE": 2, "PLATEAU_FACTOR": 0.1, "PATIENCE": None, "MONITOR": "loss", "KEEP": "last",
        "WEIGHT_DECAY": 0, "CLIP_NORM": 0, "EMA_DECAY": 0, "LABEL_SMOOTHING": 0, "MIXUP": 0, "CUTMIX": 0,
        "CALIBRATE": False, "THRESHOLD": "0.5",
        "ZOOM": 0.0, "TRANSLATION": 0.0, "BRIGHTNESS": 0.0, "CONTRAST": 0.0, "SATURATION": 0.0, "HUE": 0.0,
        "RANDAUGMENT_OPERATIONS": 0, "RANDAUGMENT_MAGNITUDE": 9.0, "RESIZE": "stretch",
        "OPTIMIZER": "adam",
    }  # fmt: skip
    assert RECIPE_VERSION == 3
    assert Settings().fingerprint() == "ace4e3ecf903"
    assert Settings(seed=3, flip="none", dropout=0.5).fingerprint() == "4125bb9c7257"


class Newer(Settings):
    """The settings of a later version, which has one more that changes the result."""

    cutout: float = setting_group("augmentation", changes_result=True)(0.0, "cut a box out of each image")


def test_a_new_setting_leaves_the_runs_under_way_what_they_are() -> None:
    """With its default no fingerprint changes; with another value it does."""
    assert Newer().fingerprint() == Settings().fingerprint()
    assert Newer(seed=3).fingerprint() == Settings(seed=3).fingerprint()
    assert Newer(cutout=0.2).fingerprint() != Settings().fingerprint()
    assert Newer().result_settings() == Settings().result_settings() | {"CUTOUT": 0.0}


def test_one_value_has_one_fingerprint_however_it_is_written() -> None:
    """As text, as a number, and as the default."""
    pairs: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"rotation": "0"}, {"rotation": 0.0}), ({"rotation": -0.0}, {"rotation": 0}),
        ({"head_learning_rate": "2e-3"}, {"head_learning_rate": 0.002}), ({"head_epochs": "7"}, {"head_epochs": 7}),
        ({"deterministic": "yes"}, {"deterministic": True}), ({"dropout": "0.20"}, {}), ({"seed": 0.0}, {}),
    ]  # fmt: skip
    for one, other in pairs:
        assert Settings(**one).fingerprint() == Settings(**other).fingerprint()


def test_a_run_is_named_by_data_set_and_fingerprint_by_default() -> None:
    """The name is one path segment, whatever the data set is called."""
    settings = Settings(dataset="oxford/config:1.0.0")
    assert settings.resolved_run_id() == f"oxford-config-1-0-0-{settings.fingerprint()}"


def test_all_problems_are_reported_together() -> None:
    """Names, values, bounds, splits, sizes and flags in one message, each with its value and rule."""
    with pytest.raises(InvalidSettings) as caught:
        read(
            "--dropout", "2", "--nope",
            THAW_BATCH_SIZE="0", THAW_PRECISION="bf16", THAW_BACKBONE="Xcepton", THAW_IMAGE_SIZE="big",
            THAW_TRAIN_SPLIT="train[:50%]", THAW_TEST_SPLIT="train[9:3]", THAW_LEARNING_RATE="1", THAW_CACHE="",
            THAW_STORAGE_URI="ftp://bucket", THAW_SEED="-1",
        )  # fmt: skip
    lines = caught.value.message.splitlines()
    assert lines[0] == "12 problems with the settings; nothing was started."
    for expected in (
        "--dropout='2': must be less than 1",
        "--nope: no such flag",
        "THAW_BATCH_SIZE='0': must be greater than or equal to 1",
        "THAW_PRECISION='bf16': must be 'auto', 'float32', 'bfloat16' or 'float16'; did you mean bfloat16?",
        "did you mean Xception?",
        "THAW_IMAGE_SIZE='big': must be a whole number",
        "THAW_VALIDATION_SPLIT='train[40%:50%]': overlaps THAW_TRAIN_SPLIT='train[:50%]'",
        "THAW_TEST_SPLIT='train[9:3]': has no examples",
        "THAW_LEARNING_RATE: no such setting",
        "THAW_CACHE='': is empty",
        "THAW_STORAGE_URI='ftp://bucket': ftp:// is not a store",
        "THAW_SEED='-1': must be greater than or equal to 0",
    ):
        assert any(expected in line for line in lines), expected


def test_an_image_below_what_the_backbone_accepts_is_refused() -> None:
    """The message names the smallest size."""
    for backbone, smallest in {"Xception": 71, "MobileNetV2": 32, "InceptionV3": 75}.items():
        with pytest.raises(InvalidSettings, match=f"{backbone} needs at least {smallest} pixels"):
            read(THAW_BACKBONE=backbone, THAW_IMAGE_SIZE=str(smallest - 1))


def test_a_run_that_would_train_nothing_is_refused() -> None:
    """One phase may be left out, not both."""
    assert [phase.name for phase in read(THAW_HEAD_EPOCHS="0").training_phases()] == ["fine_tune"]
    with pytest.raises(InvalidSettings, match="nothing would train"):
        read(THAW_HEAD_EPOCHS="0", THAW_FINE_TUNE_EPOCHS="0")


def test_a_magnitude_without_operations_is_refused() -> None:
    """Who gives it expects RandAugment."""
    assert read(THAW_RANDAUGMENT_OPERATIONS="1", THAW_RANDAUGMENT_MAGNITUDE="5").randaugment_magnitude == 5
    with pytest.raises(InvalidSettings, match=r"MAGNITUDE='5': .*THAW_RANDAUGMENT_OPERATIONS is 0"):
        read(THAW_RANDAUGMENT_MAGNITUDE="5")


def test_variables_that_kubernetes_injects_are_explained() -> None:
    """A Service called thaw adds THAW_PORT and the like to every pod."""
    with pytest.raises(InvalidSettings, match="enableServiceLinks: false"):
        read(THAW_PORT_9090_TCP="tcp://10.0.0.1:9090")


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("run_id", ["a/b", "..", ".a", "", "x" * 200, "-a", "a\n"]),
        ("dataset", ["a/..", "a/.", "a/b/../c", "Photos", "ftp://bucket/a", "gs://bucket/a?b"]),
        ("classes", ["cat,dog", "cat"]),
        ("weights", ["gs://bucket/a/..", "gs://bucket/", "gs://bucket/../x.h5"]),
        ("storage_uri", ["gs://bucket/a?b=c", "file:///a#b", "file://a", "file:///"]),
        ("data_dir", ["gs://bucket/a?b"]),
        ("cache_dir", ["gs://bucket/a"]),
        ("termination_log", ["https://host/log"]),
        ("job_name", ["https://host"]),
        ("pushgateway_url", ["http://host?a=b", "http://u:p@host"]),
    ],
)
def test_a_value_that_could_not_be_used_as_written_is_refused(field: str, values: list[str]) -> None:
    """A name that would leave its folder, a query that means nothing to a store, a URL in place of a folder."""
    for value in values:
        with pytest.raises(InvalidSettings, match=variable(field)):
            read(**{variable(field): value})


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("5000", 5000),
        ("20Gi", 20 * 2**30),
        ("1.5Gi", 3 * 2**29),
        ("500M", 500_000_000),
        ("8k", 8000),
        ("2Ti", 2**41),
    ],
)
def test_a_size_is_written_as_in_kubernetes(text: str, num_bytes: int) -> None:
    """As the limit of a volume is, so that a manifest says both in the same way."""
    assert read(THAW_WORK_BYTES=text).work_bytes == num_bytes
    for wrong in ("20GiB", "-1", "many", "0", "Gi", "1e9"):
        with pytest.raises(InvalidSettings, match="THAW_WORK_BYTES"):
            read(THAW_WORK_BYTES=wrong)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"WORKERS": "2", "WORKER": "2"}, "THAW_WORKER='2': must be below THAW_WORKERS=2"),
        ({"WORKER": "1"}, "THAW_WORKER='1': must be below THAW_WORKERS=1"),
        ({"WORKERS": "3", "WORKER_HOST": "a,b"}, "THAW_WORKER_HOST='a,b': has 2 hosts, expected one for each of 3"),
        ({"WORKERS": "2", "WORKER_HOST": "a,"}, "THAW_WORKER_HOST='a,'"),
        ({"WORKERS": "4", "WORKER_PORT": "65532"}, "THAW_WORKER_PORT='65532': ends at port 65536"),
        ({"WORKERS": "33"}, "with THAW_WORKERS=33 these are 33 processes, and one would have no examples"),
        ({"WORKERS": "4", "DEVICES": "9"}, "THAW_DEVICES='9': with THAW_WORKERS=4 these are 36 processes"),
        ({"DEVICES": "0"}, "THAW_DEVICES='0': must match"),
        ({"DEVICES": "gpu"}, "THAW_DEVICES='gpu': must match"),
        ({"WORKERS": "0"}, "THAW_WORKERS='0': must be greater than or equal to 1"),
    ],
)
def test_workers_that_could_not_meet_or_would_have_no_work_are_refused(environ: dict[str, str], says: str) -> None:
    """With one problem each."""
    with pytest.raises(InvalidSettings) as caught:
        read(**{f"THAW_{name}": value for name, value in environ.items()})
    assert caught.value.message.startswith("1 problem with")
    assert says in caught.value.message


def test_the_pods_of_an_indexed_job_are_workers_only_where_workers_is_given() -> None:
    """Without it they are runs of their own. Kubernetes' index is a value like any other, and THAW_WORKER wins."""
    index = {"JOB_COMPLETION_INDEX": "3"}

    def share(*words: str, **environ: str) -> tuple[int | None, int]:
        settings = read(*words, **index, **environ)
        return settings.worker, settings.workers

    assert share() == (None, 1)
    assert share(THAW_WORKERS="4") == (3, 4)
    assert share(THAW_WORKERS="4", THAW_WORKER="1") == (1, 4)
    assert share("--worker", "2", THAW_WORKERS="4") == (2, 4)
    assert cli.read("run", [], index | {"THAW_WORKERS": "4"}).origins["worker"] == "environment"
    with pytest.raises(InvalidSettings, match="JOB_COMPLETION_INDEX='3': must be below THAW_WORKERS=2"):
        read(**index, THAW_WORKERS="2")
    with pytest.raises(InvalidSettings, match="JOB_COMPLETION_INDEX='x': must be a whole number"):
        read(JOB_COMPLETION_INDEX="x", THAW_WORKERS="2")


def test_workers_are_at_their_hosts_and_ports() -> None:
    """By a name for all, a name of each, and a list; the first port is where they meet."""
    for host, hosts in {
        "localhost": ("localhost", "localhost"), "t-{worker}.t": ("t-0.t", "t-1.t"), "a, b": ("a", "b")
    }.items():  # fmt: skip
        addresses = read(THAW_WORKERS="2", THAW_WORKER_HOST=host, THAW_WORKER_PORT="5000").addresses()
        assert addresses.leader == (hosts[0], 5000)
        assert [addresses.tensors(worker) for worker in range(2)] == [(hosts[0], 5001), (hosts[1], 5002)]


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        ("cat", "two class names or more"),
        ("cat,cat", "none of them twice"),
        ("cat, dog,", "one is no name"),
        ('["cat", 1]', "one is no name"),
        ("[cat, dog]", "begins with [ and is no JSON list of names"),
        ("[" * 100_000, "begins with [ and is no JSON list of names"),
    ],
)
def test_a_list_that_names_no_classes_is_refused_with_the_rule(classes: str, says: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        read(THAW_DATASET="./photos", THAW_CLASSES=classes)
    assert says in caught.value.message


def test_a_value_that_is_right_elsewhere_has_no_other_proposed() -> None:
    with pytest.raises(InvalidSettings) as caught:
        read(THAW_LABELS="folder")
    assert caught.value.message.endswith("names a TFDS data set")


def test_help_shows_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    """In the program's own help."""
    with pytest.raises(SystemExit):
        read("--help")
    text = " ".join(capsys.readouterr().out.split())
    for field, info in Settings.model_fields.items():
        assert f"--{field.replace('_', '-')} " in text
        if info.default is not None and field != "cache_dir":
            default = str(info.default).lower() if isinstance(info.default, bool) else str(info.default)
            assert f"[default: {default}]" in text, field

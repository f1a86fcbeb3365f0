"""A run in a custom job of Vertex AI is where the job says, unless its settings say another place."""

import pytest

from job import cli
from job.errors import InvalidSettings
from job.run.artefacts import PREFIXES
from job.schema import CHECKPOINTS
from job.settings.vertex import FOLDERS


def variables(base: str, **others: str) -> dict[str, str]:
    """As Vertex AI sets them for baseOutputDirectory."""
    return {name: f"{base}/{folder}/" for name, folder in FOLDERS.items()} | others


@pytest.mark.parametrize(
    ("base", "place"),
    [
        ("gs://bucket/cats", ("gs://bucket", "cats")),
        ("gs://bucket/runs/of/cats", ("gs://bucket/runs/of", "cats")),
        ("gs://bucket/cats/7", ("gs://bucket/cats", "7")),
    ],
)
def test_the_place_of_a_run_is_that_of_its_job(base: str, place: tuple[str, str]) -> None:
    """Of a trial, too, whose number is the last part; the plan says where it is from."""
    options = cli.read("plan", [], variables(base))
    assert (options.settings.storage_uri, options.settings.run_id) == place
    assert options.settings.run_uri() == base
    assert {options.origins[field] for field in ("storage_uri", "run_id")} == {"Vertex AI"}
    assert cli.read("status", [], variables(base)).run == base


def test_a_run_keeps_its_results_under_the_names_of_vertex_ai() -> None:
    """So what the job shows of its output folder is what the run wrote."""
    assert {f"{folder}/" for folder in FOLDERS.values()} <= {*PREFIXES, CHECKPOINTS}


@pytest.mark.parametrize("name", ["STORAGE_URI", "RUN_ID"])
def test_a_place_that_is_given_wins(name: str) -> None:
    """As a variable and as a flag: then nothing of Vertex AI's is used, and nothing of it is checked."""
    environ = {"AIP_MODEL_DIR": "/gcs/nothing"}
    for options in (
        cli.read("run", [], environ | {f"THAW_{name}": "mine"}),
        cli.read("run", [f"--{name.lower().replace('_', '-')}", "mine"], environ),
    ):
        assert getattr(options.settings, name.lower()) == "mine"
        assert (options.settings.storage_uri, options.settings.run_id).count("mine") == 1
        assert options.settings.storage_uri in ("mine", "./runs")


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        (variables("gs://bucket"), "AIP_MODEL_DIR='gs://bucket/model/': names a bucket alone"),
        (variables("/gcs/bucket/cats"), "AIP_MODEL_DIR='/gcs/bucket/cats/model/': expected a place in a bucket"),
        (variables("gs://bucket/a:b"), "AIP_MODEL_DIR, THAW_RUN_ID='a:b': must match"),
        ({"AIP_MODEL_DIR": "gs://bucket/cats/models"}, "expected the folder model of a run"),
        ({"AIP_MODEL_DIR": ""}, "AIP_MODEL_DIR='': expected a place in a bucket"),
        (variables("gs://bucket/a", AIP_CHECKPOINT_DIR="gs://bucket/b/checkpoints/"), "are not folders of one run"),
        (variables("gs://bucket/a", AIP_TENSORBOARD_LOG_DIR="gs://other/a/logs"), "are not folders of one run"),
    ],
)
def test_a_place_that_cannot_be_that_of_a_run_is_refused(environ: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        cli.read("run", [], environ)
    assert problem in caught.value.message


def test_a_logs_folder_alone_says_nothing() -> None:
    """Other tools set it too."""
    assert cli.read("run", [], {"AIP_TENSORBOARD_LOG_DIR": "/logs"}).settings.run_id is None

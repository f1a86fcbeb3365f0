"""The README says what the code says."""

import re
import tomllib

import pytest

from job.errors import ExitCode
from job.model.backbones import BACKBONES
from job.observe import events
from job.settings.settings import Settings, changes_result, variable
from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
ARCHITECTURE = (REPOSITORY / "docs/architecture.md").read_text()


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_every_setting_is_in_the_table_with_its_default_and_its_mark(field: str) -> None:
    """A star says that it is part of the fingerprint."""
    info = Settings.model_fields[field]
    rows = re.findall(rf"^\| `{variable(field)}`( \*)? \| (.*?) \| .+ \|$", README, re.MULTILINE)
    assert len(rows) == 1
    star, default = rows[0]
    assert bool(star) == changes_result(field)
    if info.default is not None and field != "cache_dir":
        value = str(info.default).lower() if isinstance(info.default, bool) else str(info.default)
        assert default == f"`{value}`"


def test_no_variable_is_named_that_does_not_exist() -> None:
    """But for the variable of the tests."""
    named = set(re.findall(r"THAW_[A-Z_]+", README))
    assert named <= {variable(field) for field in Settings.model_fields} | {"THAW_TEST_DATA", "THAW_TEST_GCS"}


def test_every_folder_of_the_program_has_a_line_in_the_tree() -> None:
    """And every module beside the folders; no line is of one that is gone."""
    listed = re.findall(r"^ {4}(job/\w+(?:\.py|/)) +\S", ARCHITECTURE, re.MULTILINE)
    there = [path for path in (REPOSITORY / "job").iterdir() if not path.name.startswith(("__init__", "__pycache__"))]
    assert sorted(listed) == sorted(f"job/{path.name}" + ("/" if path.is_dir() else "") for path in there)


def test_every_exit_code_has_a_row() -> None:
    """With the numbers of the enum."""
    assert [int(code) for code in re.findall(r"^\| (\d+) \| ", README, re.MULTILINE)] == [
        int(code) for code in ExitCode
    ]


def test_every_event_is_named() -> None:
    """A log can be searched for what the README lists."""
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]
    names = {kind.name for kind in kinds if kind is not events.Event}
    (listed,) = re.findall(r"The events:\n\n(.+?)\n\n", README, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", listed)) == names


def test_every_family_of_backbones_is_named() -> None:
    """Sizes and versions aside."""
    for name in BACKBONES:
        family = re.sub(r"(V\d)?(Nano|Small|Mobile|Tiny|Base|XLarge|Large|B\d|[SML]|\d+)?(V\d)?$", "", name) or name
        assert family in README, name


def test_every_target_of_the_makefile_that_is_named_exists() -> None:
    """And is shown by `make help`."""
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", makefile, re.MULTILINE))
    for words in re.findall(r"(?:^ {4}|`)make ([a-z0-9 -]+?)(?: {2,}|`|$)", README, re.MULTILINE):
        assert set(words.split()) <= targets, words
    assert {"help", "setup", "demo", "run", "test", "test-all", "soak", "lint", "types", "bench"} <= targets


def test_the_lock_files_name_no_host() -> None:
    """Names and hashes only."""
    locks = sorted((REPOSITORY / "requirements").glob("*.txt"))
    assert [path.stem for path in locks] == ["cpu", "dev", "gpu"]
    for path in locks:
        assert not re.search(r"https?://|--index-url|--find-links", path.read_text()), path.name


def test_the_layers_in_the_architecture_are_those_that_lint_holds() -> None:
    """From the command line down to the errors."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [layer.replace("job.", "") for layer in contracts[0]["layers"]]
    (drawn,) = re.findall(r"## The layers\n.*?\n\n((?: {4}[^\n]+\n)+)", ARCHITECTURE, re.DOTALL)
    assert [line.strip() for line in drawn.splitlines()] == layers


def test_every_file_that_the_architecture_names_is_there() -> None:
    """Rooms, tests and manifests."""
    named = set(re.findall(r"`((?:job|tests|k8s)/[\w./]+)`", ARCHITECTURE))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []


def test_pages_keep_to_their_length() -> None:
    """A page that nobody reads to its end helps nobody."""
    assert len(README.splitlines()) < 400
    assert len(ARCHITECTURE.splitlines()) < 260

"""`thaw compare`: finished runs side by side, and whether their models differ on the same test images."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator
from rich.console import Group, RenderableType
from rich.table import Table

from job.cli import page_file
from job.cli.arguments import AsJson, CacheDir, CommandOptions, Flag, Place
from job.cli.asked import open_asked
from job.cli.tables import digits, plain, setting_text, show, table
from job.errors import ExitCode
from job.report.significance import METHODS
from job.run import comparison
from job.settings.fields import LocalPath
from job.storage import scratch
from job.wording import duration


def _several(runs: tuple[str, ...]) -> tuple[str, ...]:
    if len(runs) < 2 or len(set(runs)) < len(runs):
        raise ValueError("expected two runs or more, none of them twice")
    return runs


class Options(CommandOptions):
    """Settings that differ, results, and McNemar's test of each later run with the first one, where both were tested on
    the same images. A run that is not finished, or of an earlier version, is shown without the test.
    """

    runs: Annotated[
        tuple[Place, ...],
        AfterValidator(_several),
        Flag("the places of two runs or more, the one to compare with first", metavar="URI/RUN-ID", is_word=True),
    ]
    page: Annotated[LocalPath | None, Flag("also write a page with the learning curves", metavar="FILE")] = None
    cache_dir: CacheDir = None
    as_json: AsJson = False


def answer(options: Options) -> ExitCode:
    """Show the comparison. Raises RunUnavailable when a run does not exist, RecordDamaged, StorageError."""
    page_file.check(options.page)
    with scratch.folder(options.cache_dir) as folder:
        content = comparison.compare([comparison.read(open_asked(run), folder) for run in options.runs])
    if options.page is not None:
        from job.report import comparison_page

        page_file.write(options.page, comparison_page.page(content))
    show(content, _as_table(content), as_json=options.as_json)
    return ExitCode.COMPLETE


def _as_table(content: Mapping[str, Any]) -> Group:
    parts: list[RenderableType] = [_results(content["runs"]), ""]
    if content["settings"]:
        parts += [_settings(content["settings"]), ""]
    else:
        parts += ["All settings that change the result are the same.", ""]
    parts += [_tests(content["tests"])]
    for method in sorted({test["method"] for test in content["tests"] if "method" in test}):
        parts.append(plain(f"McNemar's test, {method}: by {METHODS[method]}.", "dim"))
    if any("p_value" in test for test in content["tests"]):
        parts.append(plain("It compares these trained models; another seed gives other models.", "dim"))
    problems = [f"run {run['number']} {problem}" for run in content["runs"] for problem in run["problems"]]
    return Group(*parts, *(plain(problem, "yellow") for problem in problems))


def _results(runs: Sequence[Mapping[str, Any]]) -> Table:
    numbers = ("test accuracy", "loss", "AUROC", "epochs", "time", "goodput")
    rows = table("", "run", "state", *numbers[:1], "95 % interval", *numbers[1:], "weights", right=numbers)
    for run in runs:
        interval = run["test_accuracy_interval"]
        rows.add_row(
            str(run["number"]), plain(run["run_id"]), plain(run["state"]), digits(run["test_accuracy"]),
            f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else "", digits(run["test_loss"]),
            digits(run["auroc"]), str(run["num_epochs"]), duration(run["time_seconds"]), f"{run['goodput_ratio']:.0%}",
            (run["model_sha256"] or "")[:12],
        )  # fmt: skip
    return rows


def _settings(settings: Mapping[str, Sequence[Any]]) -> Table:
    rows = table("setting", *(f"run {number}" for number in range(1, len(next(iter(settings.values()))) + 1)))
    for name, values in settings.items():
        rows.add_row(plain(name), *(plain(setting_text(value)) for value in values))
    return rows


def _tests(tests: Sequence[Mapping[str, Any]]) -> Table:
    several = sum("p_value" in test for test in tests) > 1
    columns = ("images", "only run 1 right", "only it right", "p", *(("p, Holm",) if several else ()))
    rows = table("run 1 with", *columns, "method", right=columns)
    for test in tests:
        if "reason" in test:
            # In the last column, which may be folded.
            rows.add_row(f"run {test['run']}", *[""] * len(columns), plain(f"not tested: {test['reason']}", "yellow"))
            continue
        holm = [f"{test['holm_p_value']:.3g}"] if several else []
        rows.add_row(
            f"run {test['run']}", f"{test['num_images']:,}", f"{test['only_reference_right']:,}",
            f"{test['only_run_right']:,}", f"{test['p_value']:.3g}", *holm, test["method"],
        )  # fmt: skip
    return rows

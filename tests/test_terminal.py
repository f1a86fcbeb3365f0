"""What a person sees of a run on a terminal: recorded events in real pseudo-terminals, and one real run."""

import functools
import io
import os
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from job.cli import run
from job.cli.arguments import read
from job.cli.observers import FollowersLog
from job.errors import ExitCode, InvalidSettings
from job.observe import data_events, events
from job.observe.bar import Terminal
from job.observe.epoch_table import columns
from job.observe.log import ConsoleLines, JsonLines, Quiet
from job.observe.progress import Progress
from job.observe.sentences import sentence
from job.observe.terminal import Screen, open_log
from tests.conftest import REPOSITORY, slowly
from tests.terminal import plain, screen, written_in_terminal

AT_60 = """\
run        cats, attempt 2
place      /runs/cats
follow     thaw status --watch --run /runs/cats
data       cats/1.0.0: 1,400 training, 300 validation and
           300 test images
classes    2: cat 700, dog 700
steps      head 4, fine_tune 4
warning    classes with fewer than 10 training images,
           whose results mean little: 2 (owl, a\\x1b[2Jb
           [red])
model      Xception, weights imagenet, bfloat16
device     AMD EPYC
estimate   about 7 min to the end
              training       validation
phase     epoch   loss    loss accuracy    left saved
head        1/2  0.355   0.118    0.988 7.1 min     ✓
head        2/2  0.177  0.0592    0.988 6.0 min     ✓
fine_tune   1/2 0.0355  0.0118    0.988    64 s     ✗
warning    fine_tune step 2 could not be committed, and
           training goes on: the store is full
fine_tune   2/2 0.0177  0.0059    0.988   3.0 s     ✓
stopped    fine_tune ends early: no improvement since epoch
           1
── Run cats is complete ───────────────────────────────────
accuracy   0.977 on test (95 % interval 0.953 to 0.989)
loss       0.0989 on test
time       4 min in all
report     /runs/cats/report/index.html
next       thaw predict IMAGE... --run /runs/cats
───────────────────────────────────────────────────────────
"""
AT_80 = """\
run        cats, attempt 2
place      /runs/cats
follow     thaw status --watch --run /runs/cats
data       cats/1.0.0: 1,400 training, 300 validation and 300 test images
classes    2: cat 700, dog 700
steps      head 4, fine_tune 4
warning    classes with fewer than 10 training images, whose results mean
           little: 2 (owl, a\\x1b[2Jb [red])
model      Xception, weights imagenet, bfloat16
device     AMD EPYC
estimate   about 7 min to the end
                       training       validation
phase     epoch   loss accuracy    loss accuracy images/s    time    left saved
head        1/2  0.355    0.823   0.118    0.988     23.3    62 s 7.1 min     ✓
head        2/2  0.177    0.911  0.0592    0.988     23.3    62 s 6.0 min     ✓
fine_tune   1/2 0.0355    0.982  0.0118    0.988     23.3    62 s    64 s     ✗
warning    fine_tune step 2 could not be committed, and training goes on: the
           store is full
fine_tune   2/2 0.0177    0.991  0.0059    0.988     23.3    62 s   3.0 s     ✓
stopped    fine_tune ends early: no improvement since epoch 1
── Run cats is complete ──────────────────────────────────────────────────────
accuracy   0.977 on test (95 % interval 0.953 to 0.989)
loss       0.0989 on test
time       4 min in all
report     /runs/cats/report/index.html
next       thaw predict IMAGE... --run /runs/cats
──────────────────────────────────────────────────────────────────────────────
"""
AT_160 = AT_80.replace("mean\n           little", "mean little").replace("the\n           store", "the store")
COLOR = re.compile(r"\x1b\[(\d+;)*(3|4|9|10)\d(;\d+)*m")


@functools.cache
def shown(columns: int, *flags: str, **variables: str) -> str:
    """All that the recorded run writes."""
    code, written = written_in_terminal(
        ["-m", "tests.shown", *flags], cwd=REPOSITORY, columns=columns, variables=variables
    )
    assert code == 0, written
    return written


def moving(written: str) -> list[str]:
    """The lines that were erased again."""
    return [plain(line).strip() for line in re.split(r"[\r\n]", written) if " left" in line or "loading" in line]


@pytest.mark.parametrize(
    ("width", "expected"),
    [(80, AT_80), *slowly((60, AT_60), (160, AT_160))],
)
def test_a_run_fits_the_terminal(width: int, expected: str) -> None:
    """The exact screen: columns drop out by importance, texts are folded at words, and nothing that moved is left."""
    written = shown(width)
    assert [line for line in screen(written, width) if line] == expected.splitlines()
    lines = moving(written)
    assert any(re.fullmatch(r"\S loading TensorFlow \d s", line) for line in lines)
    numbers = {
        60: r"accuracy 0\.500  34 s left",
        80: r"loss 0\.693  accuracy 0\.500  34 s left",
        160: r"loss 0\.693  accuracy 0\.500  23\.9 images/s  34 s left",
    }
    assert any(re.fullmatch(rf"fine_tune 2/2  ━{{4,}}\S+  1/2  {numbers[width]}", line) for line in lines)
    assert max(map(len, lines)) < width


@pytest.mark.slow
def test_no_color_is_no_color_and_a_dumb_terminal_has_nothing_that_moves() -> None:
    """NO_COLOR is a convention of many programs."""
    assert COLOR.search(shown(80))
    without = shown(80, NO_COLOR="1")
    assert not COLOR.search(without)
    assert "34 s left" in without
    dumb = shown(80, TERM="dumb")
    assert "\x1b" not in dumb
    assert screen(dumb, 80)[:-1] == AT_80.splitlines()


@pytest.mark.slow
def test_a_terminal_without_unicode_gets_ascii() -> None:
    """In another encoding, which Python would not write."""
    written = plain(shown(80, PYTHONIOENCODING="ascii"))
    assert written.isascii()
    assert "0.988     23.3    62 s 7.1 min     *" in written
    assert "62 s    64 s     !" in written


def test_a_name_that_the_terminal_cannot_show_is_written_as_escapes() -> None:
    """It is no reason to fail."""
    program = "from job.__main__ import set_up_streams; set_up_streams(); print('\u732b')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        cwd=REPOSITORY,
        capture_output=True,
    )
    assert (done.stdout, done.returncode) == (b"\\u732b\n", 0)


@pytest.mark.parametrize(("before", "after"), [(80, 60), pytest.param(60, 80, marks=pytest.mark.slow)])
def test_what_is_written_after_a_change_of_width_has_the_new_width(before: int, after: int) -> None:
    """With headings again, because the columns are others."""
    code, written = written_in_terminal(
        ["-m", "tests.shown", "--resized"], cwd=REPOSITORY, columns=before,
        until=lambda text: "resize me" in text,
        then=lambda _, terminal: termios.tcsetwinsize(terminal, (50, after)),
    )  # fmt: skip
    assert code == 0
    later = written.split("resized", 1)[1]
    assert max(len(plain(line)) for line in re.split(r"[\r\n]", later)) < after
    expected = (AT_60 if after == 60 else AT_80).splitlines()
    headings = next(index for index, line in enumerate(expected) if line.startswith("phase"))
    assert [line for line in screen(later, after) if line] == [
        *expected[headings - 1 : headings + 1], *expected[headings + 3 :]
    ]  # fmt: skip


@pytest.mark.slow
def test_what_has_to_be_copied_is_in_one_piece() -> None:
    """Long places are not folded: the terminal itself breaks them; a command has a line for each of its parts."""
    place = f"/runs/{'cats-and-dogs-' * 5}1"
    lines = plain(shown(60, "--long")).splitlines()
    assert lines[lines.index("place") + 1] == place
    assert lines[lines.index("report") + 1] == f"{place}/report/index.html"
    assert lines[lines.index("next") + 1 :][:2] == ["thaw predict IMAGE... \\", f"  --run {place}"]


@pytest.mark.slow
def test_quiet_leaves_warnings_errors_and_the_result() -> None:
    """On a terminal, without anything that moves."""
    written = shown(80, "--quiet")
    lines = AT_80.splitlines()
    result = next(index for index, line in enumerate(lines) if line.startswith("── Run"))
    assert [line for line in screen(written, 80) if line] == [*lines[6:8], *lines[16:18], *lines[result:]]
    assert moving(written) == []


def test_quiet_lines_leave_warnings_errors_and_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    """Off a terminal too."""
    log = open_log("auto", Progress(), is_quiet=True)
    log.event(events.RunClaimed("/runs/a", attempt=1, state="prepare"))
    log.event(data_events.ClassRare(10, 1, ["owl"]))
    log.event(events.RunFinished("/runs/a", 0.9, (0.8, 0.95), 0.1, "ab"))
    log.event(events.RunFailed(exit_code=6, reason="below", hint="more"))
    names = re.findall(r'"event": "(\w+)"', capsys.readouterr().out)
    assert names == ["class_rare", "run_finished", "run_failed"]


@pytest.mark.slow
def test_verbose_on_a_terminal_has_every_fact() -> None:
    """Lines of the log with the bar below, and the closing table."""
    text = plain(shown(200, "--verbose"))
    assert re.search(r"epoch_finished +phase=fine_tune epoch=2 step=4 train_loss=0.01775 train_accuracy=0.99", text)
    assert re.search(r"fine_tune 2/2  ━+\S*  1/2  loss 0.693", text)
    assert "│ report │ /runs/cats/report/index.html │" in text


def test_verbose_and_quiet_exclude_each_other() -> None:
    """One of two."""
    from job.cli import parser_of

    with pytest.raises(InvalidSettings, match="--verbose: not allowed with --quiet"):
        read(parser_of("run"), run.Options, ["--quiet", "--verbose"], {})
    assert read(parser_of("run"), run.Options, ["--quiet"], {}).quiet


def test_off_a_terminal_verbose_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON has all facts already."""
    event = data_events.ClassRare(10, 1, ["owl"])
    for is_verbose in (False, True):
        open_log("auto", Progress(), is_verbose=is_verbose).event(event)
    first, second = capsys.readouterr().out.splitlines()
    without_time = re.compile(r'"time": "[^"]+"')
    assert without_time.sub("", first) == without_time.sub("", second)
    assert first.startswith('{"fewer_than": 10')


def test_a_run_that_is_complete_is_answered_with_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    """And a failure with its reason and hint."""
    log = Screen(Terminal(file=sys.stdout, width=70), Progress())
    place = str(Path.cwd() / "runs" / "it's")
    log.event(events.RunAlreadyDone(place, 2, "2026-01-02T03:04:05Z", 0.9, (0.8, 0.95), 1.234, "ab"))
    log.closing("Run it's is complete", {"report": f"{place}/report/index.html"})
    log.event(events.RunFailed(exit_code=6, reason="0.9 is below [0.95]", hint="train longer"))
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == "run        complete since 2026-01-02T03:04:05Z, in 2 attempts:"
    assert shown[3:5] == ["accuracy   0.900 on test (95 % interval 0.800 to 0.950)", "loss       1.23 on test"]
    assert shown[6:8] == [
        "report     runs/it's/report/index.html", "next       thaw predict IMAGE... --run 'runs/it'\"'\"'s'",
    ]  # fmt: skip
    assert shown[-2:] == ["error      0.9 is below [0.95]", "hint       train longer"]


def test_a_worker_that_follows_has_nothing_that_moves(capsys: pytest.CaptureFixture[str]) -> None:
    """Several processes of one machine have the same terminal."""
    log = FollowersLog(Screen(Terminal(file=sys.stdout, width=70, force_terminal=True, color_system=None), Progress()))
    log.event(events.RunClaimed("/runs/a", attempt=1, state="prepare"))
    log.event(events.Joined("/runs/a", attempt=3))
    log.event(events.MetricsUnavailable(9090, reason="in use", hint="take another"))
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [
        "joined     at /runs/a, attempt 3", "warning    no metrics on port 9090: in use", "hint       take another",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            events.WaitingForRun("pod-1", 2, "2026-01-01", 90.0),
            "waiting for attempt 2 of pod-1, which holds the run, at most 1 min 30 s",
        ),
        (events.WaitingForWorkers([1, 3], 60.0), "waiting for other workers (1, 3), at most 1 min"),
        (data_events.ClassMissing("test", 1, ["owl"]), "classes without an image in test: 1 (owl)"),
        (
            data_events.Duplicates(3, 0, 1234),
            "the same images are in two splits: train and validation 3, validation and test 1,234; "
            "accuracy is too high then",
        ),
        (
            data_events.ImagesSkipped(3, {"truncated": 2, "empty": 1}, ["a.jpg", "b.jpg", "c.jpg"]),
            "3 images cannot be read and are left out (truncated 2, empty 1): a.jpg, b.jpg, c.jpg",
        ),
        (data_events.Fetched("gs://a", 3, 10, 1.5), "place gs://a, num_files 3, bytes 10, seconds 1.5"),
    ],
)
def test_events_are_sentences_or_else_their_facts(event: events.Event, expected: str) -> None:
    """For a person."""
    assert sentence(event) == expected


def test_columns_drop_out_by_importance() -> None:
    """Whatever the names of the phases and the number of epochs: together they are narrower than the terminal."""
    for width in range(10, 200):
        for names in (["a"], ["head", "fine_tune"], ["x" * 32]):
            for num_epochs in (1, 99, 10_000):
                chosen = columns(names, num_epochs, width)
                assert sum(column.width for column in chosen) < width
    assert [column.name for column in columns(["head"], 5, 40)] == ["phase", "epoch", "accuracy", "left", "saved"]


class TerminalText(io.StringIO):
    """Not a terminal, and says it is one."""

    def isatty(self) -> bool:
        return True


def test_what_is_shown_depends_on_format_terminal_and_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person sees a screen only where nothing else is asked for."""
    monkeypatch.setattr(sys, "stdout", TerminalText())
    assert isinstance(open_log("auto", Progress()), Screen)
    assert isinstance(open_log("auto", Progress(), is_quiet=True), Quiet)
    assert isinstance(open_log("auto", Progress(), is_verbose=True), ConsoleLines)
    assert isinstance(open_log("console", Progress()), ConsoleLines)
    for is_verbose in (False, True):
        assert isinstance(open_log("json", Progress(), is_verbose=is_verbose), JsonLines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        ([signal.SIGINT], [r"saved      head after step \d+", "error .*", "hint       start the same run again .*"]),
        ([signal.SIGINT, signal.SIGTERM], [r"ended at once, by a second signal, SIGTERM; steps lost: .* stands"]),
    ],
)
def test_ctrl_c_once_says_what_happens_and_twice_leaves(
    environment: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    signals: list[signal.Signals],
    expected: list[str],
) -> None:
    """In a real run; each line begins at the left, and the cursor is never hidden, so nothing has to show it again."""
    for name, value in environment(head_epochs=1000).items():
        monkeypatch.setenv(name, value)

    def stop(process: subprocess.Popen[bytes], _: int) -> None:
        # Both are there before it goes on.
        process.send_signal(signal.SIGSTOP)
        for number in signals:
            process.send_signal(number)
        process.send_signal(signal.SIGCONT)

    code, written = written_in_terminal(
        ["-m", "job"], cwd=REPOSITORY, columns=120, until=lambda text: "head 1/1000  " in text, then=stop
    )
    lines = [line for line in screen(written, 120) if line]
    assert code == ExitCode.INTERRUPTED
    assert any(line.startswith(f"stopping, on {signals[0].name}: the step under way is finished") for line in lines)
    for pattern, line in zip(expected, lines[-len(expected) :], strict=True):
        assert re.fullmatch(pattern, line)
    assert "\x1b[?25l" not in written


@pytest.mark.slow
def test_a_real_run_fits_60_columns(
    environment: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the plan to the next command, with a line for each epoch."""
    for name, value in environment(head_epochs=3, fine_tune_epochs=2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(REPOSITORY)
    code, written = written_in_terminal(["-m", "job"], cwd=REPOSITORY, columns=60)
    lines = [line for line in screen(written, 60) if line]
    assert code == ExitCode.COMPLETE
    epochs = [line.split()[:2] for line in lines if line.endswith("✓")]
    assert epochs == [["head", "1/3"], ["head", "2/3"], ["head", "3/3"], ["fine_tune", "1/2"], ["fine_tune", "2/2"]]
    assert "compiling the first step of fine_tune" in plain(written)
    assert any(line.startswith("── Run small is complete ─") for line in lines)
    assert max(map(len, moving(written))) < 60

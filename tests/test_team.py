"""Several workers at one run, in processes of their own: the result of one worker, and no stop or loss that hangs."""

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from job.errors import ExitCode
from job.run import attempt
from job.storage import LocalStore
from tests.conftest import job, slowly
from tests.processes import Environment, begin, place_of, report, result, run_json, wait_for
from tests.runs import ONE_PHASE, Small, Whole
from tests.teams import TeamRun

LONG = {"head_epochs": 1000, "fine_tune_epochs": 1000}
BETWEEN_WORKERS = {"rel": 1e-4, "abs": 1e-6}
"""How much results may differ between numbers of workers: sums of float32 in another order."""


def assert_alike(
    found: tuple[dict[str, Any], list[list[Any]]], expected: tuple[dict[str, Any], list[list[Any]]]
) -> None:
    """The same to rounding: losses and accuracies of every epoch and of the test."""
    (outcome, history), (expected_outcome, expected_history) = found, expected
    for name in ("test_accuracy", "test_loss"):
        assert outcome[name] == pytest.approx(expected_outcome[name], **BETWEEN_WORKERS), name
    assert [epoch[:2] for epoch in history] == [epoch[:2] for epoch in expected_history]
    for epoch, expected_epoch in zip(history, expected_history, strict=True):
        assert epoch[2:] == pytest.approx(expected_epoch[2:], **BETWEEN_WORKERS)


@pytest.mark.parametrize("name", ["steps_per_execution", "microbatch_size"])
def test_workers_that_would_share_the_work_differently_do_not_meet(small: Small, store: LocalStore, name: str) -> None:
    """By settings that are no part of the fingerprint: what a call does, and how many test images a batch has."""
    two, other = small(workers=2), small(workers=2, **{name: 3})
    assert two.fingerprint() == other.fingerprint()
    assert attempt._meeting(two, store).run != attempt._meeting(other, store).run


def completed(env: dict[str, str], num_workers: int) -> TeamRun:
    with TeamRun(env, num_workers) as team:
        assert team.codes() == [0] * num_workers, team.told()
    return team


@pytest.mark.parametrize("changes", [ONE_PHASE, *slowly({"head_epochs": 0, "fine_tune_epochs": 1})])
def test_two_workers_end_as_one_does(environment: Environment, whole: Whole, changes: dict[str, Any]) -> None:
    """Every epoch and the test, to rounding. A sibling of the same Job is no successor: there is one attempt."""
    env = environment(job_uid="uid", **changes)
    team = completed(env, 2)
    assert_alike(result(env), result(place_of(whole(**changes)[0])))
    (attempt,) = run_json(env)["attempts"]
    assert (attempt["num_workers"], attempt["exit_code"]) == (2, 0)
    names = [[line["event"] for line in log if line["event"] != "waiting"] for log in team.logs]
    assert "epoch_finished" in names[0]
    assert names[1] == ["joined"]
    assert team.errors == ["", ""]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [3, 5])
def test_workers_with_few_rows_or_none_end_as_one_does(
    environment: Environment, undisturbed_process: dict[str, str], num_workers: int
) -> None:
    """The last batch has 8 of 16 rows: the last of three workers has none of them, and two of five."""
    env = environment()
    completed(env, num_workers)
    assert_alike(result(env), result(undisturbed_process))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_regularised_training_does_not_depend_on_the_number_of_workers(
    environment: Environment, tmp_path: Path, optimizer: str
) -> None:
    """Partners are among a worker's own examples, and the gradient is clipped after it was summed; of three classes.

    The last of the three workers has no row of the last batch.
    """
    settings: dict[str, Any] = {
        "dataset": "three_shapes", "mixup": 0.4, "cutmix": 1.0, "label_smoothing": 0.1, "weight_decay": 0.05,
        "clip_norm": 0.1, "ema_decay": 0.8, "class_weights": "balanced", "optimizer": optimizer,
    }  # fmt: skip
    whole = environment(**settings, storage_uri=tmp_path / "whole")
    assert job(env=whole).returncode == 0
    for num_workers in (2, 3):
        env = environment(**settings, storage_uri=tmp_path / str(num_workers))
        completed(env, num_workers)
        assert_alike(result(env), result(whole))


@pytest.mark.slow
def test_the_same_number_of_workers_gives_the_same_bits_however_it_was_killed(
    environment: Environment, tmp_path: Path
) -> None:
    """Weights, losses and metrics: in one go, and killed in each phase."""
    whole = environment(storage_uri=tmp_path / "whole")
    completed(whole, 2)
    env = environment(checkpoint_every_seconds=0)
    for phase, victim in (("head", 0), ("fine_tune", 1)):
        with TeamRun(env, 2) as team:
            team.wait_for("committed", phase=phase, reason="interval")
            team.processes[victim].kill()
            codes = team.codes()
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] == ExitCode.PEER_LOST, team.told()
        assert f"worker {victim}" in team.reasons()[1 - victim]
    completed(env, 2)
    assert result(env) == result(whole)
    assert [attempt["exit_code"] for attempt in run_json(env)["attempts"]] == [None, ExitCode.PEER_LOST, 0]


@pytest.mark.slow
def test_begun_on_three_and_carried_on_by_one(environment: Environment, tmp_path: Path) -> None:
    """In the middle of an epoch, which has ten batches here."""
    whole = environment(batch_size=4, storage_uri=tmp_path / "whole")
    assert job(env=whole).returncode == 0
    env = environment(batch_size=4, checkpoint_every_seconds=0)
    with TeamRun(env, 3) as team:
        team.wait_for("committed", phase="fine_tune", reason="interval")
        team.processes[0].kill()
        assert team.codes() == [-signal.SIGKILL, ExitCode.PEER_LOST, ExitCode.PEER_LOST], team.told()
    newest = run_json(env)["checkpoints"][-1]
    assert (newest["phase"], newest["step"] % 10 > 0) == ("fine_tune", True)
    done = job(env=env)
    assert done.returncode == 0, done.stdout
    assert_alike(result(env), result(whole))
    assert [attempt["num_workers"] for attempt in run_json(env)["attempts"]] == [3, 1]


@pytest.mark.slow
def test_an_evaluation_by_three_is_that_of_one_to_the_last_bit(
    environment: Environment, undisturbed_process: dict[str, str]
) -> None:
    """Trained by one, and ended before it was evaluated: metrics, temperature, digest of the weights."""
    env = environment()
    with begin(env) as process:
        wait_for(process, "committed", phase="fine_tune", step=6)
        process.kill()
        process.communicate()
    completed(env, 3)
    assert result(env) == result(undisturbed_process)
    first, again = (report(it) for it in (undisturbed_process, env))
    for name in ("test", "temperature_scaling", "thresholds"):
        assert first[name] == again[name], name
    assert [attempt["num_workers"] for attempt in run_json(env)["attempts"]] == [1, 3]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_job_that_starts_again_what_ended_completes_the_run(
    environment: Environment, tmp_path: Path, seed: int
) -> None:
    """Workers are killed at moments that the seed chooses, and each begins again beside siblings that may be ending.

    Whoever was not killed ends with 45: one pod lost costs one restart.
    """
    whole = environment(storage_uri=tmp_path / "whole", batch_size=4)
    completed(whole, 3)
    env = environment(batch_size=4, checkpoint_every_seconds=0.2)
    rng = random.Random(seed)
    with TeamRun(env, 3) as team:
        killed, others = team.as_a_job([(rng.uniform(0, 15), rng.randrange(3)) for _ in range(3)])
    assert set(others) <= {ExitCode.PEER_LOST}, team.told()
    assert len(others) <= 2 * killed
    assert result(env) == result(whole)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("event", ["joined", "data_loaded", "step_compiled", "epoch_finished"])
def test_a_stop_of_any_worker_ends_all_after_the_same_step(environment: Environment, victim: int, event: str) -> None:
    """Worker 0 has committed what all have done."""
    env = environment(**LONG, grace_seconds=60)
    with TeamRun(env, 3) as team:
        # One that comes when worker 0 has left waits for the next one.
        for worker in (1, 2):
            team.wait_for("joined", worker=worker)
        if event != "joined":
            team.wait_for(event)
        team.processes[victim].terminate()
        assert team.codes() == [ExitCode.INTERRUPTED] * 3, team.told()
    assert f"SIGTERM at worker {victim}" in " ".join(team.reasons()), team.told()
    steps = {line["step"] for log in team.logs for line in log if line["event"] == "run_failed"}
    assert len(steps) == 1, team.told()
    (stopping,) = [line for line in team.logs[victim] if line["event"] == "stopping"]
    assert victim == 0 or "uncommitted_steps" not in stopping, "only worker 0 knows what is committed"
    record = run_json(env)
    assert record["attempts"][-1]["exit_code"] == ExitCode.INTERRUPTED
    reached = record["attempts"][-1]["reached"].get("head", 0)
    assert (record["checkpoints"][-1]["step"] if record["checkpoints"] else 0) == reached


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_that_falls_silent_is_noticed(environment: Environment, victim: int) -> None:
    """It is stopped, not killed: its connections stay."""
    env = environment(**LONG)
    with TeamRun(env, 3) as team:
        team.wait_for("step_compiled")
        team.processes[victim].send_signal(signal.SIGSTOP)
        others = [process for worker, process in enumerate(team.processes) if worker != victim]
        assert [process.wait(timeout=240) for process in others] == [ExitCode.PEER_LOST] * 2, team.told()
        team.processes[victim].kill()
    assert all(f"worker {victim}" in team.reasons()[worker] for worker in range(3) if worker != victim), team.told()


@pytest.mark.slow
def test_what_ends_one_worker_is_said_by_the_others(environment: Environment, prepared: Path) -> None:
    """Damaged images of a worker's share: it ends with 4, the others with 45, which names it."""
    env = environment(dataset="damaged_shapes", train_split="train[:6]+train[8:40]", test_split="train[60:80]")
    env |= {"THAW_VALIDATION_SPLIT": "train[40:56]"}
    with TeamRun(env, 2) as team:
        codes = team.codes()
    assert sorted(codes) == [ExitCode.BAD_INPUT, ExitCode.PEER_LOST], team.told()
    cause = codes.index(ExitCode.BAD_INPUT)
    assert f"worker {cause} ended with exit code 4" in team.reasons()[1 - cause]


@pytest.mark.slow
def test_a_worker_that_comes_while_worker_0_exports_sees_it_complete(environment: Environment) -> None:
    """Worker 0 needs it no more, and takes it in no more: it does not wait for worker 0 as for one that never came."""
    with TeamRun(environment(worker_wait_seconds=80_000), 2) as team:
        team.wait_for("evaluated")
        team.processes[1].kill()
        team.begin_again(1)
        assert team.codes() == [0, 0], team.told()


@pytest.mark.slow
def test_a_finished_run_is_answered_by_every_worker(
    environment: Environment, undisturbed_process: dict[str, str]
) -> None:
    """Without the others: they need not be there."""
    env = undisturbed_process | {"THAW_WORKERS": "3", "THAW_WORKER": "2"}
    done = job(env=env)
    assert done.returncode == 0
    assert '"run_already_done"' in done.stdout

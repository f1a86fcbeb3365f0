"""What `plan` warns of, and a start does not refuse."""

from job.cli import checks
from job.settings.settings import Settings


def test_float16_without_a_gpu_is_a_warning() -> None:
    settings = [Settings(device="cpu", precision=precision) for precision in ("float16", "bfloat16")]
    assert [checks.device(one).outcome for one in settings] == ["warning", "ok"]


def test_random_weights_of_a_backbone_that_cannot_learn_from_them_are_a_warning() -> None:
    """But not those of the demo, whose network is made for it."""
    weights = [checks.weights(Settings(backbone=name, weights="none")) for name in ("Xception", "Tiny")]
    assert [check.outcome for check in weights] == ["warning", "ok"]

"""Templates to text: every value is escaped, and a missing name is an error."""

import html
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup

from job import __version__
from job.phases import title
from job.wording import printable, some


def render(template: str, **values: Any) -> str:
    """Fill a template of this package."""
    return _environment().get_template(template).render(**values)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("job.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {filter_.__name__: filter_ for filter_ in FILTERS}
    environment.filters |= {"count": "{:,}".format, "phase_title": title}
    environment.globals["version"] = __version__
    return environment


def bare_percent(ratio: float) -> str:
    """0.973 -> `97.3`; only all is shown as 100.0, and only none as 0.0."""
    shown = 100.0 * ratio
    return f"{min(max(shown, 0.1), 99.9) if 0.0 < ratio < 1.0 else shown:.1f}"


def percent(ratio: float) -> str:
    """0.973 -> `97.3 %`."""
    return f"{bare_percent(ratio)} %"


def exact_percent(ratio: float) -> str:
    """0.9999 -> `99.99 %`, as a limit that somebody has set."""
    return f"{100 * ratio:.10g} %"


def percent_or_none(ratio: float | None) -> str:
    """0.973 -> `97.3 %`; `none` where there is no value."""
    return "none" if ratio is None else percent(ratio)


def decimal_or_none(value: float | None) -> str:
    """0.97312 -> `0.9731`; `none` where there is no value."""
    return "none" if value is None else f"{value:.4f}"


def share(ratio: float) -> str:
    """0.973 -> `97 %`, 0.001 -> `< 1 %`, 0.998 -> `> 99 %`."""
    if 0.99 < ratio < 1.0:
        return "> 99 %"
    return "< 1 %" if 0.0 < ratio < 0.01 else f"{100.0 * ratio:.0f} %"


def duration(seconds: float) -> str:
    """`0.42 s`, `41.3 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def words(name: str) -> str:
    """`fine_tune` -> `fine tune`."""
    return name.replace("_", " ")


def unfrozen(unfreeze: str) -> str:
    """What trains, for a sentence: `block:block14` -> `the head and the backbone from block14 on`."""
    kind, _, which = unfreeze.partition(":")
    parts = {"none": "", "all": " and the backbone", "top": f" and the last {which} layers of the backbone"}
    return f"the head{parts.get(kind, f' and the backbone from {which} on')}"


def optimizer(phase: Mapping[str, Any]) -> str:
    """The optimizer of a phase by its usual name, such as `AdamW`."""
    name = {"adam": "Adam", "sgd": "SGD with momentum", "lion": "Lion"}[phase["optimizer"]]
    if not phase["weight_decay"]:
        return name
    return "AdamW" if name == "Adam" else f"{name} and weight decay"


def augmentation(settings: Mapping[str, Any]) -> str:
    """What was done to training images at random, such as `flip horizontal, rotation up to 36°`; empty if nothing."""
    texts = {
        "flip": f"flip {words(settings['flip'])}",
        "rotation": f"rotation up to {360 * settings['rotation']:g}° either way",
        "zoom": f"zoom up to {100 * settings['zoom']:g} %",
        "translation": f"shift up to {100 * settings['translation']:g} %",
        "brightness": f"brightness up to {100 * settings['brightness']:g} %",
        "contrast": f"contrast up to {100 * settings['contrast']:g} %",
        "saturation": f"saturation up to {100 * settings['saturation']:g} %",
        "hue": f"hue up to {360 * settings['hue']:g}°",
        "randaugment_operations": f"RandAugment (operations: {settings['randaugment_operations']}, "
        f"magnitude: {settings['randaugment_magnitude']:g})",
    }
    return ", ".join(text for field, text in texts.items() if settings[field] not in (0, "none"))


def moment(iso: str | None) -> str:
    """An ISO time as `2026-03-01 12:30:05`, in UTC as the record has it."""
    return f"{datetime.fromisoformat(iso):%F %T}" if iso else ""


def shape(sizes: Iterable[int]) -> str:
    """`150 × 150 × 3`."""
    return " × ".join(f"{size:,}" for size in sizes)


def listed(names: Iterable[str], most: int = 20) -> str:
    """`cat, dog`; after `most` of them, how many more there are."""
    return some(list(names), most=most, shown=str)


def markdown(text: str) -> Markup:
    """A name from outside as plain text in a Markdown page, in one line.

    Punctuation with a meaning in CommonMark, in the tables and links that viewers add, or in formulas gets a backslash;
    HTML becomes entities, for viewers that show HTML.
    """
    line = "".join(char if char.isprintable() else " " for char in text)
    return Markup(re.sub(r"([!#$()*+\-.:=@\[\\\]^_`{|}~])", r"\\\1", html.escape(line, quote=False)))


def setting(value: Any) -> str:
    """A setting as it would be written into its variable."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and float(f"{value:g}") == value:
        # Shorter, as 1 and not 1.0.
        return f"{value:g}"
    return str(value)


FILTERS = (
    bare_percent, percent, exact_percent, percent_or_none, decimal_or_none, share, duration, words, unfrozen, optimizer,
    augmentation, moment, shape, listed, markdown, printable, setting,
)  # fmt: skip

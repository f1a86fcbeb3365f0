"""The patches of a kustomization that have no target: Kustomize leaves them out without a word.

Only patches with `target` are looked at: one without finds its manifest by kind and name, and Kustomize refuses it if
there is none.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

NAMES = ("kustomization.yaml", "kustomization.yml", "Kustomization")
GENERATORS = {"configMapGenerator": "ConfigMap", "secretGenerator": "Secret"}

Content = dict[str, Any]


def without_target(folder: Path, rendered: list[Content]) -> list[str]:
    """Each such patch in `folder` and all that it is made of, as "kind=Job, name=thaw (FILE)", sorted.

    `rendered` are the manifests that Kustomize makes of the folder. A target may also have the name of a manifest in
    its file, before that is changed or removed. These are not known if a part is a URL, and then nothing is returned.
    """
    kustomizations: dict[Path, Content] = {}
    _collect(folder.resolve(), kustomizations)
    there = [*rendered]
    for path, content in kustomizations.items():
        for part in _parts(path, content):
            if not part.exists():
                return []
            there += _manifests(part)
        for field, kind in GENERATORS.items():
            there += [{"kind": kind, "metadata": entry} for entry in content.get(field) or ()]
    return sorted(
        f"{', '.join(f'{key}={value}' for key, value in patch['target'].items())} ({path})"
        for path, content in kustomizations.items()
        for patch in [*(content.get("patches") or ()), *(content.get("patchesJson6902") or ())]
        if patch.get("target") and not any(_selects(patch["target"], manifest) for manifest in there)
    )


def _collect(folder: Path, kustomizations: dict[Path, Content]) -> None:
    """Add the kustomization of a folder, and those of the folders that it is made of."""
    path = next((folder / name for name in NAMES if (folder / name).is_file()), None)
    if path is None or path in kustomizations:
        return
    kustomizations[path] = yaml.safe_load(path.read_text()) or {}
    for part in _parts(path, kustomizations[path]):
        _collect(part, kustomizations)


def _parts(path: Path, content: Content) -> list[Path]:
    return [(path.parent / part).resolve() for key in ("resources", "components") for part in content.get(key) or ()]


def _manifests(path: Path) -> Iterator[Content]:
    """The manifests in a file; of a folder none."""
    if path.is_file():
        for manifest in yaml.safe_load_all(path.read_text()):
            yield from (manifest or {}).get("items", [manifest] if manifest else [])


def _selects(target: Content, manifest: Content) -> bool:
    """Whether a target matches by kind and name, which are regular expressions for the whole text."""
    texts = {"kind": manifest["kind"], "name": manifest["metadata"]["name"]}
    return all(re.fullmatch(target.get(key) or ".*", text) for key, text in texts.items())

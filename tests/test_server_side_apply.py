"""`kubectl apply --server-side` finds no conflict with what `kubectl apply` has created: manifests state the defaults.

The server compares what its schema calls atomic as a whole, with the defaults that it has filled in. So there the
manifests state each of them. Everywhere else a field that they leave out is in no one's way.
"""

import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from k8s.render import Manifest
from tests.manifests import OVERLAYS, component, needs_kustomize, overlay, run_part, shared_part
from tests.outer_kinds import API_VERSIONS, parts_of
from tests.test_manifests import NEWEST, WITHOUT_SCHEMA, every_component

pytestmark = needs_kustomize

SCHEMAS = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{NEWEST}-local"


@functools.cache
def definitions() -> dict[str, Any]:
    return json.loads((SCHEMAS / "_definitions.json").read_text())["$defs"]  # type: ignore[no-any-return]


def left_to_the_server(value: Any, schema: dict[str, Any], path: str, *, is_atomic: bool = False) -> Iterator[str]:
    """The fields that the server fills in, in what it compares as a whole."""
    is_atomic |= schema.get("x-kubernetes-map-type") == "atomic"
    if "$ref" in schema:
        target = definitions()[schema["$ref"].rpartition("/")[2]]
        yield from left_to_the_server(value, target, path, is_atomic=is_atomic)
    elif isinstance(value, list):
        is_whole = is_atomic or schema.get("x-kubernetes-list-type", "atomic") == "atomic"
        for item in value:
            yield from left_to_the_server(item, schema["items"], f"{path}[]", is_atomic=is_whole)
    elif isinstance(value, dict):
        for name, field in schema.get("properties", {}).items():
            if name in value:
                yield from left_to_the_server(value[name], field, f"{path}.{name}", is_atomic=is_atomic)
            elif is_atomic and re.search(r"defaults to \W?\w", field.get("description", ""), re.IGNORECASE):
                yield f"{path}.{name}"


def of_manifest(manifest: Manifest) -> list[str]:
    group, _, version = manifest["apiVersion"].rpartition("/")
    kind = manifest["kind"]
    (name,) = [
        it
        for it in definitions()
        if re.fullmatch(rf"io\.k8s\.api\.{group.split('.')[0] or 'core'}\.{version}\.{kind}", it)
    ]
    return list(left_to_the_server(manifest, definitions()[name], kind))


def assert_all_is_stated(manifests: list[Manifest]) -> None:
    parts = [part for it in manifests if it["kind"] in API_VERSIONS for part in parts_of(it)]
    known = [it for it in manifests if it["kind"] not in WITHOUT_SCHEMA]
    assert [path for it in known + parts for path in of_manifest(it)] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_states_what_the_server_would_fill_in(name: str) -> None:
    """Of a run, and of what runs share; also in the Jobs and pods that other controllers make."""
    assert_all_is_stated(overlay(name))


@every_component
def test_a_component_states_what_the_server_would_fill_in(name: str) -> None:
    """Also one that no overlay has."""
    assert_all_is_stated(component(name))


def test_the_rights_of_a_workflow_state_what_the_server_would_fill_in() -> None:
    """The folder `cloud` is no overlay."""
    assert_all_is_stated([*shared_part("cloud"), *run_part("cloud")])


def test_what_is_left_to_the_server_is_found() -> None:
    """In a field, in a list of a list, and not where fields are compared one by one."""
    peer = {"ports": [{"port": 53}], "to": [{"podSelector": {}}]}
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {}, "spec": {"egress": [peer]}}
    assert of_manifest(policy) == ["NetworkPolicy.spec.egress[].ports[].protocol"]
    env = [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    containers = [{"name": "a", "env": env, "ports": [{"containerPort": 1}]}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": {"containers": containers}}
    assert of_manifest(pod) == ["Pod.spec.containers[].env[].valueFrom.fieldRef.apiVersion"]


def quantities(value: Any, key: str = "") -> Iterator[str]:
    """The amounts of CPU, memory and disk in a manifest."""
    if isinstance(value, list):
        for item in value:
            yield from quantities(item)
    elif isinstance(value, dict):
        for name, item in value.items():
            if key in ("requests", "limits") or name == "sizeLimit":
                yield item
            else:
                yield from quantities(item, name)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_amount_is_written_as_the_server_writes_it(name: str) -> None:
    """It stores 1024Mi as 1Gi, and would find the two different."""
    found = list(quantities(list(overlay(name))))
    assert found
    for amount in found:
        number, suffix = re.fullmatch(r"([1-9]\d*)(|m|Mi|Gi)", amount).groups()  # type: ignore[union-attr]
        assert int(number) % {"": 1000, "m": 1000, "Mi": 1024, "Gi": 1024}[suffix], amount

"""The KubeRay manifests against the operator's own schemas, in which an unknown key is a mistake.

Kustomize itself renders the overlays (`kubectl kustomize`). The kinds that Kubernetes brings are checked with what the
operator's schemas say of pods, services and claims, which they hold in full.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import metadist
from metadist.config import load_job

ROOT = Path(__file__).resolve().parents[2]
KUBERAY = ROOT / "cluster" / "kuberay"
OVERLAYS = ("base", "overlays/local-kind", "overlays/gpu")

Document = dict[str, Any]

NAMES = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "namespace": {"type": "string"}, "labels": NAMES, "annotations": NAMES},
    "required": ["name"],
}


@pytest.fixture(scope="module")
def schemas() -> dict[str, jsonschema.Draft202012Validator]:
    """A validator by kind."""
    folder = Path(os.environ.get("METADIST_TEST_CRDS", ROOT.parent / "shared" / "kuberay-crds"))
    if not folder.exists():
        pytest.skip(f"no operator schemas in {folder}; METADIST_TEST_CRDS names another folder")
    cluster, job = (_operator_schema(folder / f"ray.io_{name}.yaml") for name in ("rayclusters", "rayjobs"))
    head = cluster["properties"]["spec"]["properties"]["headGroupSpec"]["properties"]
    volume = head["template"]["properties"]["spec"]["properties"]["volumes"]["items"]["properties"]
    claim = volume["ephemeral"]["properties"]["volumeClaimTemplate"]["properties"]["spec"]
    strategy = {"type": "object", "properties": {"type": {"enum": ["Recreate", "RollingUpdate"]}}}
    selector = {"type": "object", "properties": {"matchLabels": NAMES}, "required": ["matchLabels"]}
    deployment = {
        "type": "object",
        "properties": {
            "replicas": {"type": "integer"},
            "strategy": strategy,
            "selector": selector,
            "template": head["template"],
        },
        "required": ["selector", "template"],
    }
    kinds = {
        "RayCluster": _object("ray.io/v1", spec=cluster["properties"]["spec"]),
        "RayJob": _object("ray.io/v1", spec=job["properties"]["spec"]),
        "Deployment": _object("apps/v1", spec=deployment),
        "Service": _object("v1", spec=head["headService"]["properties"]["spec"]),
        "PersistentVolumeClaim": _object("v1", spec=claim),
        "ConfigMap": _object("v1", data=NAMES),
        "Namespace": _object("v1"),
    }
    return {kind: jsonschema.Draft202012Validator(_strict(schema)) for kind, schema in kinds.items()}


def _operator_schema(file: Path) -> Document:
    crd = yaml.load(file.read_text(), yaml.CSafeLoader)
    (version,) = (version for version in crd["spec"]["versions"] if version["name"] == "v1")
    schema: Document = version["schema"]["openAPIV3Schema"]
    return schema


def _object(version: str, **parts: Document) -> Document:
    head = {"apiVersion": {"const": version}, "kind": {"type": "string"}, "metadata": METADATA}
    return {"type": "object", "properties": head | parts, "required": ["apiVersion", "kind", "metadata", *parts]}


def _strict(schema: Any) -> Any:
    """A Kubernetes schema as JSON Schema, in which an object has no other keys than its schema names."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {
        key: {name: _strict(part) for name, part in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
    }
    if "properties" in schema:
        found.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        found["type"] = ["integer", "string"]
    elif schema.get("nullable") and "type" in schema:
        found["type"] = [schema["type"], "null"]
    return found


def mistakes(document: Document, schemas: dict[str, jsonschema.Draft202012Validator]) -> list[str]:
    validator = schemas[document["kind"]]
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def render(folder: Path) -> list[Document]:
    """What Kustomize makes of a folder."""
    done = _kustomize(folder)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def _kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    for program, *arguments in (("kubectl", "kustomize"), ("kustomize", "build")):
        if shutil.which(program):
            command = [program, *arguments, str(folder)]
            return subprocess.run(command, capture_output=True, text=True, timeout=60)
    pytest.skip("neither kubectl nor kustomize is installed")


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request: pytest.FixtureRequest) -> list[Document]:
    return render(KUBERAY / str(request.param))


def the(kind: str, documents: list[Document]) -> Document:
    (found,) = (document for document in documents if document["kind"] == kind)
    return found


def inside(value: Any, key: str) -> Iterator[Any]:
    """Every value of a key, at any depth."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name == key:
                yield part
            yield from inside(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from inside(part, key)


def test_the_files_of_the_base_are_valid(schemas: dict[str, jsonschema.Draft202012Validator]) -> None:
    listed = yaml.safe_load((KUBERAY / "base" / "kustomization.yaml").read_text())["resources"]
    documents = [part for name in listed for part in yaml.safe_load_all((KUBERAY / "base" / name).read_text())]
    kinds = {document["kind"] for document in documents}
    assert kinds == {"Namespace", "PersistentVolumeClaim", "Service", "Deployment", "RayCluster", "RayJob"}
    assert [mistake for document in documents for mistake in mistakes(document, schemas)] == []


def test_an_overlay_is_valid(rendered: list[Document], schemas: dict[str, jsonschema.Draft202012Validator]) -> None:
    assert {document["kind"] for document in rendered} == set(schemas)
    assert [mistake for document in rendered for mistake in mistakes(document, schemas)] == []


def test_what_an_overlay_names_is_in_it(rendered: list[Document]) -> None:
    names = {(document["kind"], document["metadata"]["name"]) for document in rendered}
    claims = {claim["claimName"] for claim in inside(rendered, "persistentVolumeClaim")}
    assert {("PersistentVolumeClaim", claim) for claim in claims} <= names
    assert {("ConfigMap", part["name"]) for part in inside(rendered, "configMap")} <= names
    selector = the("RayJob", rendered)["spec"]["clusterSelector"]
    assert ("RayCluster", selector["ray.io/cluster"]) in names
    for pod in (template["spec"] for template in inside(rendered, "template")):
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mounts in inside(pod, "volumeMounts") for mount in mounts} == volumes
    service, deployment = the("Service", rendered), the("Deployment", rendered)
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    namespaces = {document["metadata"].get("namespace") for document in rendered if document["kind"] != "Namespace"}
    assert namespaces == {the("Namespace", rendered)["metadata"]["name"]}


def test_everything_runs_this_version_and_not_as_root(rendered: list[Document]) -> None:
    assert set(inside(rendered, "image")) == {f"metadist:{metadist.__version__}"}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert the("RayCluster", rendered)["spec"]["rayVersion"] == pins["ray"]
    for pod in (template["spec"] for template in inside(rendered, "template")):
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_cluster_asks_for_a_token_and_grows(rendered: list[Document]) -> None:
    spec = the("RayCluster", rendered)["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "workers stay off the driver's node"
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


def test_only_the_workers_of_the_gpu_overlay_are_on_gpus() -> None:
    spec = the("RayCluster", render(KUBERAY / "overlays/gpu"))["spec"]
    (worker,) = spec["workerGroupSpecs"]
    assert list(inside(worker, "nvidia.com/gpu")) == ["1", "1"]
    assert [toleration["key"] for toleration in worker["template"]["spec"]["tolerations"]] == ["nvidia.com/gpu"]
    assert list(inside(spec["headGroupSpec"], "nvidia.com/gpu")) == []
    assert list(inside(render(KUBERAY / "base"), "nvidia.com/gpu")) == []


def test_the_job_is_the_quickstart_in_another_place() -> None:
    there, here = (
        yaml.safe_load(file.read_text()) for file in (KUBERAY / "base/job.yaml", ROOT / "jobs/quickstart.yaml")
    )
    assert there.keys() - here.keys() == {"resources"}
    assert here.keys() - there.keys() == {"storage"}
    assert all(there[key] == here[key] for key in there.keys() & here.keys())
    assert load_job(str(KUBERAY / "base/job.yaml"), []).name == "quickstart"


def _spec(document: Document) -> Document:
    spec: Document = document["spec"]
    return spec


def _rename(old: str, new: str) -> Callable[[Document], None]:
    def change(part: Document) -> None:
        part[new] = part.pop(old)

    return change


def _workers(document: Document) -> Document:
    group: Document = _spec(document)["workerGroupSpecs"][0]
    return group


def _container(document: Document) -> Document:
    container: Document = _spec(document)["template"]["spec"]["containers"][0]
    return container


BROKEN: dict[str, tuple[str, Callable[[Document], object], str]] = {
    "a misspelt key": (
        "RayCluster",
        lambda d: _rename("workerGroupSpecs", "workerGroupSpec")(_spec(d)),
        "workerGroupSpec'",
    ),
    "text for a number": ("RayCluster", lambda d: _workers(d).update(replicas="two"), "workerGroupSpecs[0].replicas"),
    "no template": ("RayCluster", lambda d: _workers(d).pop("template"), "'template' is a required property"),
    "no name of a group": ("RayCluster", lambda d: _workers(d).pop("groupName"), "'groupName' is a required property"),
    "another mode": ("RayCluster", lambda d: _spec(d)["authOptions"].update(mode="tokens"), "authOptions.mode"),
    "a misspelt key of a pod": (
        "RayCluster",
        lambda d: _rename("volumeMounts", "volumeMount")(_workers(d)["template"]["spec"]["containers"][0]),
        "'volumeMount' was unexpected",
    ),
    "a number for a start parameter": (
        "RayCluster",
        lambda d: _spec(d)["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        "0 is not of type 'string'",
    ),
    "a misspelt key of a job": (
        "RayJob",
        lambda d: _rename("backoffLimit", "backOffLimit")(_spec(d)),
        "'backOffLimit'",
    ),
    "a list for the command": ("RayJob", lambda d: _spec(d).update(entrypoint=["metadist"]), "entrypoint"),
    "another version": ("RayJob", lambda d: d.update(apiVersion="ray.io/v2"), "'ray.io/v1' was expected"),
    "no selector": ("Deployment", lambda d: _spec(d).pop("selector"), "'selector' is a required property"),
    "a misspelt key of a container": ("Deployment", lambda d: _rename("args", "arg")(_container(d)), "'arg' was"),
    "a misspelt key of a port": (
        "Service",
        lambda d: _rename("targetPort", "targetport")(_spec(d)["ports"][0]),
        "'targetport' was unexpected",
    ),
    "one access mode": (
        "PersistentVolumeClaim",
        lambda d: _spec(d).update(accessModes="ReadWriteOnce"),
        "is not of type 'array'",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_manifest_is_refused(name: str, schemas: dict[str, jsonschema.Draft202012Validator]) -> None:
    kind, spoil, said = BROKEN[name]
    files = [yaml.safe_load_all(file.read_text()) for file in (KUBERAY / "base").glob("*.yaml")]
    document = next(copy.deepcopy(part) for parts in files for part in parts if part.get("kind") == kind)
    assert mistakes(document, schemas) == []
    spoil(document)
    assert said in "; ".join(mistakes(document, schemas))


def test_a_patch_that_meets_nothing_is_refused(tmp_path: Path) -> None:
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    patch = tmp_path / "kuberay/overlays/gpu/ray-cluster.yaml"
    patch.write_text(patch.read_text().replace("workerGroupSpecs/0/template", "workerGroupSpecs/1/template"))
    refused = _kustomize(tmp_path / "kuberay/overlays/gpu")
    assert refused.returncode != 0
    assert "workerGroupSpecs" in refused.stderr

"""The serving kit: files that TensorFlow Serving's messages take, mounts that exist, metrics that are named alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from tfdlrm.serving.batching import read_parameters
from tfdlrm.serving.text_proto import read_text_proto

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SERVING = DEPLOY / "serving"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes" / "serving.yaml").read_text(encoding="utf-8")))
# What TensorFlow Serving's source calls them; a histogram has `_bucket`, `_sum` and `_count`.
METRICS = {
    ":tensorflow:serving:request_count",
    ":tensorflow:serving:request_latency",
    ":tensorflow:serving:runtime_latency",
}


def kubernetes(kind: str) -> Any:
    (found,) = [manifest for manifest in KUBERNETES if manifest["kind"] == kind]
    return found


def config_files() -> dict[str, str]:
    """Return the text of every configuration file of the kit by where it is."""
    files = {path.name: path.read_text(encoding="utf-8") for path in SERVING.glob("*.config")}
    return files | {f"kubernetes {name}": text for name, text in kubernetes("ConfigMap")["data"].items()}


def server_arguments() -> dict[str, list[str]]:
    container = kubernetes("Deployment")["spec"]["template"]["spec"]["containers"][0]
    return {"compose": COMPOSE["services"]["serving"]["command"], "kubernetes": container["args"]}


@pytest.mark.parametrize("name", sorted(config_files()))
def test_configuration_files_are_what_the_server_reads(name: str, tmp_path: Path) -> None:
    text = config_files()[name]
    file = tmp_path / "file.config"
    file.write_text(text, encoding="utf-8")
    if name.endswith("models.config"):
        models = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
        assert models and all(model.name and model.base_path.startswith("/") for model in models)
    elif name.endswith("monitoring.config"):
        assert read_text_proto("monitoring_config_file", file, "MonitoringConfig").prometheus_config.enable
    else:
        parameters = read_parameters(file)
        assert parameters.max_batch_size > 0 and parameters.max_enqueued_batches > 0


def test_images_are_pinned_and_one_server_everywhere() -> None:
    images = [service["image"] for service in COMPOSE["services"].values()]
    for image in images:
        assert re.fullmatch(r"[a-z/]+:v?[0-9]+\.[0-9]+\.[0-9]+", image), image
    container = kubernetes("Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == COMPOSE["services"]["serving"]["image"]


def test_every_mounted_file_is_there() -> None:
    named = set(COMPOSE["volumes"])
    for name, service in COMPOSE["services"].items():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), (name, source)
            elif not volume.startswith("${MODELS:-"):
                assert source in named, (name, source)
    mounted = {"/etc/serving": SERVING}
    for argument in COMPOSE["services"]["serving"]["command"]:
        path = Path(argument.partition("=")[2])
        if path.parent.as_posix() in mounted:
            assert (mounted[path.parent.as_posix()] / path.name).is_file(), argument
    keys = set(kubernetes("ConfigMap")["data"])
    for argument in server_arguments()["kubernetes"]:
        if "=/etc/serving/" in argument:
            assert Path(argument.partition("=")[2]).name in keys, argument


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_the_local_server_takes_the_same_flags(where: str) -> None:
    from tfdlrm.serving.__main__ import build_parser

    known = {option for action in build_parser()._actions for option in action.option_strings}
    assert {argument.partition("=")[0] for argument in server_arguments()[where]} <= known


def test_only_this_machine_is_listened_to() -> None:
    for service in COMPOSE["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_prometheus_finds_the_metrics() -> None:
    prometheus = yaml.safe_load((SERVING / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = prometheus["scrape_configs"]
    monitoring = read_text_proto("monitoring_config_file", SERVING / "monitoring.config", "MonitoringConfig")
    assert job["metrics_path"] == monitoring.prometheus_config.path
    assert job["static_configs"] == [{"targets": ["serving:8501"]}]
    annotations = kubernetes("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] == monitoring.prometheus_config.path
    rules = [Path(name).name for name in prometheus["rule_files"]]
    assert rules == ["alerts.yml"]


def expressions() -> list[str]:
    alerts = yaml.safe_load((SERVING / "alerts.yml").read_text(encoding="utf-8"))
    board = json.loads((SERVING / "grafana" / "board.json").read_text(encoding="utf-8"))
    found = [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]
    return found + [target["expr"] for panel in board["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("expression", expressions())
def test_alerts_and_board_ask_for_metrics_that_the_server_has(expression: str) -> None:
    for metric in re.findall(r'__name__="([^"]+)"', expression):
        assert re.sub(r"_(bucket|sum|count)$", "", metric) in METRICS or metric in METRICS
    assert "__name__" in expression or "up{" in expression
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")


def test_the_board_has_panels_that_do_not_overlap() -> None:
    board = json.loads((SERVING / "grafana" / "board.json").read_text(encoding="utf-8"))
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
    provider = yaml.safe_load((SERVING / "grafana" / "dashboards.yml").read_text(encoding="utf-8"))
    (folder,) = [p["options"]["path"] for p in provider["providers"]]
    assert any(volume.endswith(f":{folder}/board.json:ro") for volume in COMPOSE["services"]["grafana"]["volumes"])


def test_a_pod_is_ready_when_its_model_answers() -> None:
    pod = kubernetes("Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    models = text_format.Parse(
        kubernetes("ConfigMap")["data"]["models.config"], model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["path"] == f"/v1/models/{models[0].name}/metadata"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert [(p["name"], p["port"]) for p in kubernetes("Service")["spec"]["ports"]] == list(
        sorted(ports.items(), reverse=True)
    )

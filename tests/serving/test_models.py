"""Several models: config files, labels and changes while requests are answered."""

from __future__ import annotations

import shutil
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.serving.conftest import Server, free_port
from tests.serving.test_main import one_line, run
from tests.serving.test_store import load_text, write
from tfdlrm.serving.errors import Code, StatusError
from tfdlrm.serving.model_config import ModelSettings, read_model_config
from tfdlrm.serving.models import Models, find_servable, find_statuses
from tfdlrm.serving.version_policy import All, Latest, Specific
from tfdlrm.spec.errors import ConfigError, DataError


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two models of three versions each."""
    for name in "ab":
        for version in "123":
            write(tmp_path / name, version, f"{name}{version}")
    return tmp_path


def started(*settings: ModelSettings, **options) -> Models:
    models = Models(poll_seconds=0, **options)
    models.start(settings, load_text)
    return models


def model(base: Path, name: str, policy=None, **labels: int) -> ModelSettings:
    return ModelSettings(name, base / name, policy or Latest(), labels)


def texts(models: Models) -> dict[str, list[str]]:
    return {name: [store.servable(v).text for v in sorted(store.available)] for name, store in models.items()}


# --- changes, with models that are a line of text -------------------------------------------------------------------


def test_models_are_added_changed_and_removed(base):
    models = started(model(base, "a"))
    assert texts(models) == {"a": ["a3"]}
    kept = models["a"].servable()
    models.reconfigure([model(base, "a", Latest(2)), model(base, "b", Specific(frozenset({1, 3})))])
    assert texts(models) == {"a": ["a2", "a3"], "b": ["b1", "b3"]}
    assert models["a"].servable() is kept, "what is loaded is not loaded again"
    models.reconfigure([model(base, "b", All())])
    assert texts(models) == {"b": ["b1", "b2", "b3"]}
    models.reconfigure([ModelSettings("b", base / "a")])
    assert texts(models) == {"b": ["a3"]}


def test_labels_follow_loaded_versions(base):
    models = started(model(base, "a", All()))
    models.reconfigure([model(base, "a", All(), stable=1, canary=3)])
    assert find_servable(models, "a", label="stable").version == 1
    models.reconfigure([model(base, "a", All(), stable=3)])
    assert find_servable(models, "a", label="stable").version == 3
    for name, label in (("a", "canary"), ("b", "stable")):
        with pytest.raises(StatusError, match=f"Unrecognized servable version label: {label}") as error:
            find_servable(models, name, label=label)
        assert error.value.code == Code.INVALID_ARGUMENT
    models.reconfigure([model(base, "a", Latest(), stable=1)])
    with pytest.raises(StatusError, match=r"Specific\(a, 1\)"):
        find_servable(models, "a", label="stable")


def test_labels_of_versions_that_are_not_loaded_change_nothing(base):
    models = started(model(base, "a"))
    for settings in ([model(base, "a", All(), old=1)], [model(base, "a"), model(base, "b", new=3)]):
        with pytest.raises(StatusError, match="which is not currently available for inference") as error:
            models.reconfigure(settings)
        assert error.value.code == Code.FAILED_PRECONDITION
        assert texts(models) == {"a": ["a3"]}
    with pytest.raises(StatusError, match="version 3 of model a, which is not currently available"):
        started(model(base, "a", now=3))


def test_labels_of_versions_that_are_not_loaded_where_that_is_allowed(base):
    models = started(model(base, "a", All(), stable=2, later=7), labels_for_unavailable=True)
    assert find_servable(models, "a", label="stable").version == 2
    with pytest.raises(StatusError, match=r"Specific\(a, 7\)"):
        find_servable(models, "a", label="later")
    # A label in use is not moved to a version that is not there.
    with pytest.raises(StatusError, match="which is not currently available"):
        models.reconfigure([model(base, "a", All(), stable=9)])


def test_a_model_with_nothing_to_serve_changes_nothing(base):
    models = started(model(base, "a"))
    write(base / "c", "1", "broken")
    for new in (model(base, "c"), model(base, "nowhere"), model(base, "b", Specific(frozenset({8})))):
        with pytest.raises(StatusError, match="did not become available"):
            models.reconfigure([model(base, "a", All()), new])
        assert texts(models) == {"a": ["a3"]}
        assert models["a"].policy == Latest()
    with pytest.raises(StatusError, match="did not become available: a: Specific"):
        models.reconfigure([model(base, "b"), model(base, "a", Specific(frozenset({8})))])
    assert texts(models) == {"a": ["a3"]}


def test_a_model_that_fails_at_the_start_does_not_stop_the_others(base):
    write(base / "c", "1", "broken")
    models = started(model(base, "c"), model(base, "nowhere"), model(base, "a"))
    assert texts(models) == {"c": [], "nowhere": [], "a": ["a3"]}
    assert [(status.state, status.code) for status in find_statuses(models, "c")] == [("END", Code.DATA_LOSS)]
    with pytest.raises(StatusError, match="Could not find any versions of model nowhere"):
        find_statuses(models, "nowhere")
    with pytest.raises(DataError, match=r"version 1: broken in 1; .*nowhere"):
        started(model(base, "c"), model(base, "nowhere"))


class Looped:
    """A servable that refers to itself, as TensorFlow's do."""

    def __init__(self, version: int, text: str) -> None:
        self.version, self.text, self.itself = version, text, self


@pytest.mark.parametrize(("pause", "least"), [(60, 1), (0.25, 2)], ids=["long", "short"])
def test_a_followed_file_with_a_bad_entry_loads_the_good_ones_once_a_pause(base, pause, least):
    loaded: list[str] = []
    alive: weakref.WeakSet[Looped] = weakref.WeakSet()

    def load(path: Path, version: int) -> Looped:
        one = load_text(path, version)
        loaded.append(one.text)
        kept = Looped(version, one.text)
        alive.add(kept)
        return kept

    def entry(name: str) -> str:
        return f'name: "{name}" base_path: "{base / name}" model_platform: "tensorflow"'

    write(base / "c", "1", "broken")
    config = base / "models.config"
    config.write_text(config_of(entry("a")))
    settings = read_model_config(config)
    models = Models(poll_seconds=0, retry_seconds=pause)
    models.start(settings, load)
    models.follow(config, 0.01, settings)
    try:
        temporary = base / "new.config"
        temporary.write_text(config_of(entry("a"), entry("b"), entry("c")))
        temporary.rename(config)
        end = time.monotonic() + 30
        while loaded.count("b3") < least:
            assert time.monotonic() < end
            time.sleep(0.01)
        before = time.monotonic()
        time.sleep(1.2)
        slept = time.monotonic() - before
        assert loaded.count("b3") <= least + (slept + 1) / pause
        assert len(models) == 1
        assert len(alive) <= 2  # the one that answers, and one that may just be loading
        temporary.write_text(config_of(entry("b")))
        temporary.rename(config)  # a change is looked at, at once
        end = time.monotonic() + 10
        while set(models) != {"b"} or len(alive) > 1:
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        models.stop()


# --- the config file ------------------------------------------------------------------------------------------------


def config_of(*models: str) -> str:
    return "model_config_list {\n" + "\n".join(f"config {{ {text} }}" for text in models) + "\n}\n"


def test_config_file(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(
        "# two models\n"
        + config_of(
            'name: "a" base_path: "/models/a" model_platform: "tensorflow"',
            'name: "b" base_path: "/models/b" model_version_policy { specific { versions: 1 versions: 4 } } '
            'version_labels { key: "stable" value: 1 }',
            'name: "c" base_path: "/models/c" model_version_policy { all {} }',
            'name: "d" base_path: "/models/d" model_version_policy { latest { num_versions: 3 } }',
        )
    )
    assert read_model_config(path) == [
        ModelSettings("a", Path("/models/a"), Latest(1), {}),
        ModelSettings("b", Path("/models/b"), Specific(frozenset({1, 4})), {"stable": 1}),
        ModelSettings("c", Path("/models/c"), All(), {}),
        ModelSettings("d", Path("/models/d"), Latest(3), {}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must list a model"),
        ("model_config_list {", "must be a ModelServerConfig"),
        ('model_config_list { config { nme: "a" } }', 'no field named "nme"'),
        (config_of('name: "a" base_path: "/a"', 'name: "a" base_path: "/b"'), "Illegal to list model a multiple times"),
        (config_of('base_path: "/a"'), "a model without a name"),
        (config_of('name: "a" base_path: "models/a"'), "Expected model a to have an absolute path"),
        (config_of('name: "a" base_path: "/a" model_platform: "torch"'), "must have the platform tensorflow"),
        ("custom_model_config {}", "Only ModelConfigList is currently supported"),
        ("\udcff", "must be a file that can be read"),
    ],
)
def test_config_files_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "models.config"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=message):
        read_model_config(path)


def test_a_config_file_that_is_not_there_is_one_line(tmp_path):
    line = one_line(run("--model_config_file", str(tmp_path / "nowhere")))
    assert "`model_config_file` must be a file that can be read" in line


def test_a_label_of_a_version_that_is_not_loaded_is_one_line(model_path, tmp_path):
    config = tmp_path / "models.config"
    labels = 'version_labels { key: "stable" value: 1 }'
    config.write_text(config_of(f'name: "m" base_path: "{model_path.parent}" {labels}'))
    line = one_line(run("--model_config_file", str(config), "--rest_api_port", str(free_port())))
    assert "`model_config_file` must be valid. Received: Request to assign label to version 1 of model m" in line


# --- a server through its life --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(model_path, forks, tmp_path_factory):
    """A server of the models "one" (versions 1 and 2, both loaded) and "broken", its config file followed."""
    base = tmp_path_factory.mktemp("several")
    for name, version in (("one", 1), ("one", 2), ("other", 5)):
        shutil.copytree(model_path, base / name / str(version))
    (base / "broken" / "1").mkdir(parents=True)
    config = base / "models.config"
    config.write_text(
        config_of(
            f'name: "one" base_path: "{base / "one"}" model_version_policy {{ all {{}} }}',
            f'name: "broken" base_path: "{base / "broken"}"',
        )
    )
    server = Server(
        forks, None, base / "log.txt", f"--model_config_file={config}", "--model_config_file_poll_wait_seconds=0.1"
    )
    yield server, base, config
    server.close()


def until(server: Server, path: str, status: int) -> httpx.Response:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        response = server.client.get(path)
        if response.status_code == status:
            return response
        time.sleep(0.05)
    pytest.fail(f"{path} did not answer {status}: {response.text}")


def test_several_models_over_both_transports(served):
    server, base, config = served
    with grpc.insecure_channel(server.grpc_address) as channel:
        predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        management = model_service_pb2_grpc.ModelServiceStub(channel)

        def reload(*models: str) -> None:
            request = model_management_pb2.ReloadConfigRequest()
            for text in models:
                name, labels = text.split(":")
                one = request.config.model_config_list.config.add(name=name, base_path=str(base / name))
                one.model_version_policy.all.SetInParent()
                for label in filter(None, labels.split(",")):
                    one.version_labels[label.split("=")[0]] = int(label.split("=")[1])
            assert management.HandleReloadConfigRequest(request).status.error_code == 0

        def ask(name: str, **choice) -> int:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            if "label" in choice:
                request.model_spec.version_label = choice["label"]
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1])))
            response = predictions.Predict(request)
            assert list(response.outputs["y"].float_val) == [2.5]
            return response.model_spec.version.value

        def post(path: str) -> int:
            return server.client.post(f"/v1/models/{path}:predict", content=b'{"instances": [1.0]}').status_code

        # A model that fails at the start is shown and does not stop the other.
        assert [post("one"), post("one/versions/1"), post("one/versions/2"), ask("one")] == [200, 200, 200, 2]
        (shown,) = server.client.get("/v1/models/broken").json()["model_version_status"]
        assert (shown["state"], shown["status"]["error_code"]) == ("END", "NOT_FOUND")
        assert post("broken") == 404

        # Labels, on versions that are loaded only.
        reload("one:stable=1,canary=2", "other:")
        assert [ask("one", label="stable"), ask("one", label="canary"), ask("other")] == [1, 2, 5]
        time.sleep(0.3)  # some looks at the file, which has not changed and so undoes nothing
        assert [post("one/labels/stable"), post("one/labels/nope"), post("broken")] == [200, 400, 404]
        assert server.client.get("/v1/models/one/labels/stable/metadata").json()["model_spec"]["version"] == "1"
        with pytest.raises(grpc.RpcError) as error:
            reload("one:stable=7")
        assert error.value.code() == grpc.StatusCode.FAILED_PRECONDITION

        # A model without anything to serve, or none at all: nothing changes.
        for wrong, code in (("nowhere:", grpc.StatusCode.UNKNOWN), ("one:", grpc.StatusCode.INVALID_ARGUMENT)):
            with pytest.raises(grpc.RpcError) as error:
                reload("one:", wrong)
            assert error.value.code() == code
        with pytest.raises(grpc.RpcError) as error:
            management.HandleReloadConfigRequest(model_management_pb2.ReloadConfigRequest())
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert [ask("one", label="stable"), ask("other")] == [1, 5]

        # The set changes under load without an error.
        stop = threading.Event()

        def keep_asking() -> set[int]:
            statuses = set()
            while not stop.is_set():
                statuses.add(post("one"))
            return statuses

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(keep_asking)
            for _ in range(2):
                reload("one:")
                reload("one:stable=2", "other:")
            stop.set()
            assert asking.result() == {200}

    # The file is followed: what is wrong in it changes nothing, what is right does.
    config.write_text("model_config_list {")
    time.sleep(0.3)
    assert post("other") == 200
    config.write_text(config_of(f'name: "other" base_path: "{base / "other"}"'))
    until(server, "/v1/models/one", 404)
    assert post("other") == 200
    assert "models stay as they are" in (base / "log.txt").read_text()

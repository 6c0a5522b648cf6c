"""Weights & Biases and the model hub: what is sent, that keys are written nowhere, and that no failure ends a run."""

import hashlib
import http.server
import json
import shutil
import sys
import threading
import types

import pytest

from engine.errors import EngineError, ProblemsError
from engine.settings import Settings
from engine.settings_io import run_toml
from engine.tracking import public_settings

from .run_support import go

KEY = "0123456789" * 4


class FakeWandb(types.ModuleType):
    """Records what is sent."""

    def __init__(self, *, fails=False):
        super().__init__("wandb")
        self.options, self.sent, self.finished, self.fails = None, [], False, fails

    def init(self, **options):
        if self.fails:
            raise RuntimeError("no such\nhost")
        self.options = options
        return self

    def log(self, scalars, step):
        self.sent.append((step, scalars))

    def finish(self):
        self.finished = True

    def Image(self, path, caption):  # noqa: N802 - wandb's name
        return path, caption


@pytest.fixture
def fake(monkeypatch):
    module = FakeWandb()
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_API_KEY", "")
    return module


def test_steps_samples_and_validations_are_sent(tmp_path, fake):
    """Under TensorBoard's names, with the settings if asked for; the key goes by the environment alone."""
    (tmp_path / "prompts.txt").write_text("a cat --s 1 --w 64 --h 64 --l 1\n")
    (tmp_path / "tracker.toml").write_text('[wandb]\ntags = ["tiny"]\n')

    run = go(
        tmp_path, log_with="wandb", wandb_run_name="first", wandb_api_key=KEY, log_config=True,
        log_tracker_name="my project", log_tracker_config=str(tmp_path / "tracker.toml"), validation_split=0.2,
        sample_prompts=str(tmp_path / "prompts.txt"), sample_every_n_steps=2,
    )  # fmt: skip

    assert (fake.options["project"], fake.options["name"], fake.options["tags"]) == ("my project", "first", ["tiny"])
    assert fake.options["config"]["learning_rate"] == 1e-3
    assert KEY not in json.dumps(fake.options["config"])
    assert str(tmp_path) not in json.dumps(fake.options["config"])
    losses = [(step, scalars["loss"]) for step, scalars in fake.sent if "loss" in scalars]
    assert losses == [(step.step, step.loss) for step in run.steps]
    assert {"loss/validation", "sample_0", "lr/unet"} <= {name for _, scalars in fake.sent for name in scalars}
    assert fake.finished
    for path in run.folder.rglob("*"):
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path


def test_a_tracker_that_fails_is_told_once(tmp_path, fake):
    fake.fails = True

    run = go(tmp_path, log_with="wandb")

    assert run.code == 0
    (warning,) = [event for event in run.of("warning") if event.code == "wandb"]
    assert "no such" in warning.message
    assert "goes on without it" in warning.message


def test_wandb_itself_takes_it_offline(tmp_path, monkeypatch):
    """The real client, which then needs no network; its files are the user's to sync."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    run = go(tmp_path, log_with="all", logging_dir=str(tmp_path / "logs"), max_train_steps=1)

    assert run.code == 0
    assert [event.code for event in run.of("warning") if event.code == "wandb"] == []
    assert list((tmp_path / "logs").rglob("*.wandb"))
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("text", ["[other]\na = 1\n", "wandb = 3\n", "not toml"])
def test_a_tracker_file_of_another_kind_is_refused(tmp_path, fake, text):
    (tmp_path / "t.toml").write_text(text)

    with pytest.raises(EngineError, match="log_tracker_config"):
        go(tmp_path, log_with="wandb", log_tracker_config=str(tmp_path / "t.toml"))


def test_tensorboard_needs_a_folder(tmp_path):
    with pytest.raises(ProblemsError, match="needs logging_dir"):
        go(tmp_path, log_with="tensorboard")


def test_keys_are_in_no_file_and_sent_nowhere(tmp_path):
    """Not even where a file had them before."""
    settings = Settings().replace(wandb_api_key=KEY, huggingface_token="hf_secret", huggingface_repo_id="me/it")

    text = run_toml(settings, folder=tmp_path, existing=f'[logging]\nwandb_api_key = "{KEY}"\n', is_complete=True)

    assert KEY not in text
    assert "hf_secret" not in text
    assert 'huggingface_repo_id = "me/it"' in text
    assert not {"wandb_api_key", "huggingface_token", "output_dir"} & public_settings(settings).keys()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of a hub as the client asks for."""

    made, files, tokens = [], [], []
    refuses = False
    holds = None  # The folder of what can be fetched.

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.append(self.headers.get("Authorization"))
        if self.refuses:
            self._answer(403, {"error": "go away"})
        elif self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            self._answer(200, {"url": f"http://{self.headers['Host']}/me/model", "id": "me/model"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self._answer(
                200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            self.files += [line["value"]["path"] for line in lines if line["key"] == "file"]
            self._answer(
                200,
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/model/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "pullRequestUrl": None,
                    "success": True,
                },
            )

    def do_GET(self):
        if self.path.startswith("/api/models/me/model"):
            names = [path.relative_to(self.holds).as_posix() for path in self.holds.rglob("*") if path.is_file()]
            files = [{"rfilename": name, "size": 1, "blobId": "0"} for name in names]
            self._answer(200, {"id": "me/model", "sha": "1" * 40, "siblings": files})
        elif self.path.startswith(f"/me/model/resolve/{'1' * 40}/"):
            data = (self.holds / self.path.split("/", 5)[5]).read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)
        else:
            self._answer(404, {"error": "not there"})

    do_HEAD = do_GET

    def _answer(self, code, document):
        data = json.dumps(document).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    kind = type("OwnHub", (Hub,), {"made": [], "files": [], "tokens": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("is_async", "visibility", "kind"), [(False, None, None), (True, "public", "dataset")], ids=["plain", "async"]
)
def test_saved_models_are_sent_to_a_repository(tmp_path, hub, is_async, visibility, kind):
    """Each after it was saved, the last before the run ends; nothing else of the run folder. Private unless told."""
    run = go(
        tmp_path, save_every_n_steps=1, huggingface_repo_id="me/model", huggingface_token="hf_secret",
        huggingface_path_in_repo="tiny", async_upload=is_async, huggingface_repo_visibility=visibility,
        huggingface_repo_type=kind,
    )  # fmt: skip

    assert run.code == 0
    assert [(made["visibility"], made["type"]) for made in hub.made] == [(visibility or "private", kind or "model")]
    assert [event for event in run.of("warning") if event.code == "hub"] == []
    assert hub.files == [
        "tiny/last-step00000001.safetensors", "tiny/last-step00000002.safetensors", "tiny/last.safetensors"
    ]  # fmt: skip
    assert set(hub.tokens) == {"Bearer hf_secret"}
    assert [event for event in run.of("warning") if event.code == "hub"] == []


def test_states_are_sent_and_resumed_from_only_if_asked(tmp_path, hub, monkeypatch):
    """Not beside the models unless a setting says so; a run elsewhere goes on from the one that was sent."""
    common = {"save_every_n_steps": 2, "save_state": True, "huggingface_repo_id": "me/model", "max_train_steps": 3}
    go(tmp_path / "quiet", **common)
    assert not [name for name in hub.files if "state" in name]
    run = go(tmp_path / "sent", **common, huggingface_path_in_repo="runs", save_state_to_huggingface=True)
    sent = [name.removeprefix("runs/") for name in hub.files if "state/step-00000002" in name]
    assert {name.rpartition("/")[2] for name in sent} >= {"MANIFEST.json", "unet.safetensors", "optimizer.safetensors"}

    hub.holds = tmp_path / "sent" / "hub"
    (hub.holds / "runs" / "state").mkdir(parents=True)
    shutil.copytree(run.folder / "state" / "step-00000002", hub.holds / "runs" / "state" / "step-00000002")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    resumed = [
        go(tmp_path / name.replace("/", "-"), max_train_steps=3, resume=name, resume_from_huggingface=True)
        for name in ("me/model/runs", "me/model/runs/state/step-00000002:main")
    ]
    assert [again.losses for again in resumed] == [run.losses[2:]] * 2
    for wrong, words in (("me/model/nowhere", "no state"), ("state", "owner/name")):
        with pytest.raises(EngineError, match=words):
            go(tmp_path / "wrong", resume=wrong, resume_from_huggingface=True)


def test_a_hub_that_refuses_costs_a_warning(tmp_path, hub):
    hub.refuses = True

    run = go(tmp_path, huggingface_repo_id="me/model", huggingface_token="hf_secret", max_train_steps=1)

    assert run.code == 0
    told = [event.message for event in run.of("warning") if event.code == "hub"]
    assert len(told) == 2
    assert "was not sent to me/model" in told[1]
    assert (run.folder / "last.safetensors").exists()

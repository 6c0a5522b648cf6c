"""Models come from the hub with only the files that are needed, and when they can't, it says how to go on."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi

from engine.errors import EngineError
from engine.models import hub
from engine.models.sd import StableDiffusion
from engine.models.verify import verify

from .models_support import TINY_SD1

COMMIT = "0" * 40
NEEDED = [str(path.relative_to(TINY_SD1)) for path in sorted(TINY_SD1.rglob("*.*")) if path.is_file()]
BESIDES = ["unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "README.md", "evil.py"]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: `owner/model` is there, `owner/gated` is gated."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        self.server.asked.append(self.path)
        if "gated" in self.path:
            self.reply(403, b"", {"X-Error-Code": "GatedRepo"})
        elif self.path.startswith("/api/models/owner/model"):
            siblings = [{"rfilename": name} for name in [*NEEDED, *BESIDES]]
            self.reply(200, json.dumps({"id": "owner/model", "siblings": siblings, "sha": COMMIT}).encode(), {})
        elif self.path.startswith("/owner/model/resolve/"):
            name = self.path.split("/", 5)[5].split("?")[0]
            content = (TINY_SD1 / name).read_bytes()
            self.reply(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound" if "owner/model" in self.path else "RepoNotFound"})

    def reply(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def network(tmp_path, monkeypatch):
    """A stub of the hub on this machine, and a hub cache of the test's own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    server.api = HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token=False)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_is_fetched_with_only_what_is_needed(network):
    """Safetensors, configs and tokenizer; no pickles, no code, no second precision; progress is told."""
    heard = []
    folder = hub.download("owner/model", network.api, lambda *what: heard.append(what))
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    assert sorted(NEEDED) == sorted(files)
    assert heard[-1][1:] == (len(NEEDED), len(NEEDED))
    assert verify(folder).ok


def test_a_second_download_fetches_nothing(network):
    """Files in the cache are used."""
    hub.download("owner/model", network.api)
    before = len([path for path in network.asked if path.endswith(".safetensors")])
    hub.download("owner/model", network.api)
    after = [path for path in network.asked if path.endswith(".safetensors")][before:]

    assert len(after) <= 3  # One HEAD each at most.


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("owner/gated", "wants its terms accepted"),
        ("owner/unknown", "knows no such model"),
        ("owner/unknown:main", "knows no such model"),
    ],
)
def test_refusals_say_why_and_how_to_go_on(network, source, words):
    """One sentence with cause and remedy."""
    with pytest.raises(EngineError, match=words) as caught:
        hub.download(source, network.api)
    assert "download owner/" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_told(network):
    """No connection, no half model."""
    api = HfApi(endpoint="http://127.0.0.1:9", token=False)

    with pytest.raises(
        EngineError, match=r"not on this machine, and the hub can't be reached .*; download owner/model by other"
    ):
        hub.download("owner/model", api)


def test_offline_mode_asks_nobody(tmp_path, monkeypatch):
    """HF_HUB_OFFLINE is obeyed; what is not in the cache is told."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EngineError, match="can't be reached or is switched off"):
        hub.find_model("owner/model")


def test_local_paths_never_reach_the_hub(tmp_path, monkeypatch):
    """Even one that looks like a hub id."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "model").mkdir()
    monkeypatch.setattr(hub, "download", None)

    assert hub.find_model("owner/model").is_dir()


@pytest.mark.parametrize("source", ["no_such.safetensors", "a/b/c", "../x/y", "/abs/path", "", "C:\\x\\y", "a b/c"])
def test_what_is_neither_path_nor_id_is_refused_at_once(source):
    """A typing error must not become a request."""
    with pytest.raises(EngineError, match="no such model file or folder" if source else "."):
        hub.find_model(source)


def test_models_without_safetensors_are_refused():
    """Pickles are not fetched."""
    with pytest.raises(EngineError, match=r"no unet/diffusion_pytorch_model\.safetensors"):
        hub._needed("owner/model", ["unet/diffusion_pytorch_model.bin", "model_index.json"], is_vae=False)


def test_sharded_and_fp16_files_are_chosen_where_there_is_nothing_better():
    """Every shard with its index."""
    names = [
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "text_encoder/model.fp16.safetensors",
        "text_encoder/model.safetensors",
    ]

    assert set(hub._needed("owner/model", names, is_vae=False)) == set(names) - {"text_encoder/model.fp16.safetensors"}


def test_of_a_vae_only_the_vae_is_fetched(network):
    """From a repository of its own, or from a whole model's."""
    alone = ["config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors", "README.md"]
    folder = hub.download("owner/model", network.api, is_vae=True)
    fetched = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]

    assert hub._needed("owner/vae", alone, is_vae=True) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert sorted(fetched) == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    assert StableDiffusion.load(str(TINY_SD1), vae=str(folder)).family == "sd1"

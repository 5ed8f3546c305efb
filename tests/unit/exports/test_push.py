"""`push=REPO`, against a server on this machine that answers as the Hugging Face Hub does."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from psy_agents_noaug.errors import ConfigError

TOKEN = "hf_made_up"


class Hub(ThreadingHTTPServer):
    """Keeps what is uploaded.

    Attributes:
        created: bodies of the requests for a repository.
        faults: of the model card, as the Hub finds them.
        files: the bytes of each uploaded file.
        tokens: that were sent.
        status: of the answer to a request for a repository; 200 makes it.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.created: list[dict[str, object]] = []
        self.faults: list[dict[str, str]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.status = 200

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.tokens.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        if path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.address}/me/model"}, self.server.status)
        elif path == "/api/validate-yaml":
            found = {"errors": self.server.faults, "warnings": []}
            self._answer(found, 400 if self.server.faults else 200)
        elif path.endswith("/preupload/main"):
            wanted = json.loads(body)["files"]
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            self._answer({"files": [{"path": one["path"], **modes} for one in wanted]})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[line["value"]["path"]] = content
            url = f"{self.server.address}/me/model/commit/1"
            self._answer({"commitUrl": url, "commitOid": "1" * 40})
        else:
            self._answer({"error": f"no such address: {path}"}, 404)

    def do_GET(self) -> None:
        self._answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def _answer(self, content: object, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_every_file_of_the_export_arrives_in_a_private_repository(make_trained, hub):
    folder = make_trained("criteria").exported("huggingface", push="me/model")
    (asked,) = hub.created
    assert (asked["organization"], asked["name"]) == ("me", "model")
    assert asked.get("visibility") == "private" or asked.get("private") is True
    written = {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    assert {"README.md", "model.safetensors", "settings.json"} <= written.keys()
    assert hub.files == written
    assert hub.tokens - {None} == {f"Bearer {TOKEN}"}


def test_a_repository_is_public_only_if_asked(make_trained, hub):
    make_trained("criteria").exported("bundle", push="me/model", private=False)
    assert hub.created[0].get("visibility") == "public" or hub.created[0].get("private") is False
    assert "checkpoints/best_checkpoint.pt" in hub.files


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (409, "exists already. Choose another name, or upload by `hf upload me/model"),
        (403, r"refuses the token \(403\). Log in by `hf auth login`"),
        (500, "the Hub answers 500"),
    ],
)
def test_a_refusal_is_told_with_a_remedy_and_the_folder_stays(make_trained, hub, status, told):
    hub.status = status
    trained = make_trained("criteria")
    with pytest.raises(ConfigError, match=told):
        trained.exported("bundle", push="me/model")
    assert (trained.path.with_suffix("") / "README.md").is_file()
    assert hub.files == {}


def test_a_card_that_the_hub_does_not_accept_is_told_before_a_repository_is_made(make_trained, hub):
    hub.faults = [{"message": '"license" must be one of [mit]'}]
    with pytest.raises(
        ConfigError, match=r"does not accept the model card.*must be one of \[mit\]"
    ):
        make_trained("criteria").exported("bundle", push="me/model", license="mitt")
    assert hub.created == []


def test_without_a_token_nothing_is_written(make_trained, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("psy_agents_noaug.exports.push.get_token", lambda: None)
    trained = make_trained("criteria")
    with pytest.raises(ConfigError, match=r"needs a token of the Hugging Face Hub\. Log in by"):
        trained.exported("bundle", push="me/model")
    assert not trained.path.with_suffix("").exists()
    assert hub.created == []


def test_a_name_that_is_none_is_refused(make_trained, hub):
    with pytest.raises(ConfigError, match="`push` must be the name of a repository"):
        make_trained("criteria").exported("bundle", push="me/mo del!")


def test_without_a_network_the_command_for_later_is_told(make_trained, hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    trained = make_trained("criteria")
    with pytest.raises(
        ConfigError, match=r"cannot be reached.*upload later by `hf upload me/model"
    ):
        trained.exported("bundle", push="me/model")
    assert (trained.path.with_suffix("") / "README.md").is_file()

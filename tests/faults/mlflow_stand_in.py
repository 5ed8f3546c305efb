"""A tracking server with MLflow's REST interface that keeps everything in memory and fails on demand.

python mlflow_stand_in.py PORT

POST /faults takes a list of {"path": part of a path, "after": how many such requests are answered first,
"answer": a status, or "hang"}; GET /state returns the runs.
"""

import json
import sys
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RUNS: dict[str, dict[str, Any]] = {}
FAULTS: list[dict[str, Any]] = []


class Handler(BaseHTTPRequestHandler):
    """Answers the calls that the tracker makes."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        values = dict(urllib.parse.parse_qsl(url.query))
        if url.path == "/faults":
            FAULTS[:] = json.loads(body)
            return self._send(200, {})
        if url.path == "/state":
            return self._send(200, RUNS)
        for fault in FAULTS:
            if fault["path"] in url.path:
                fault["after"] = fault.get("after", 0) - 1
                if fault["after"] < 0:
                    return self._fail(fault["answer"])
        if "/mlflow-artifacts/artifacts" in url.path:
            return self._artifacts(url.path, body, values)
        if self.command == "POST" and body:
            values = json.loads(body)
        method = url.path.rpartition("/mlflow/")[2].replace("/", "_").replace("-", "_")
        return self._send(*getattr(self, f"_{method}", self._unknown)(values))

    def _fail(self, answer: int | str) -> None:
        if answer == "hang":
            time.sleep(600)
        self._send(int(answer), {"error_code": "INTERNAL_ERROR", "message": f"a fault: {answer}"})

    def _send(self, status: int, answer: object) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _unknown(self, values: dict[str, Any]) -> tuple[int, object]:
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": self.path}

    def _experiments_get_by_name(self, values: dict[str, Any]) -> tuple[int, object]:
        experiment = {"experiment_id": "1", "name": values["experiment_name"]}
        return 200, {"experiment": {**experiment, "lifecycle_stage": "active"}}

    def _runs_create(self, values: dict[str, Any]) -> tuple[int, object]:
        run_id = f"{len(RUNS):032x}"
        RUNS[run_id] = {
            "name": values["run_name"],
            "status": "RUNNING",
            "params": {},
            "tags": {tag["key"]: tag["value"] for tag in values.get("tags", [])},
            "metrics": {},
            "artifacts": {},
        }
        return self._runs_get({"run_id": run_id})

    def _runs_get(self, values: dict[str, Any]) -> tuple[int, object]:
        run_id = values["run_id"]
        if run_id not in RUNS:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such run"}
        run = RUNS[run_id]
        last = [points[-1] for points in run["metrics"].values()]
        info = {
            "run_id": run_id,
            "run_name": run["name"],
            "experiment_id": "1",
            "status": run["status"],
            "lifecycle_stage": "active",
            "artifact_uri": f"mlflow-artifacts:/1/{run_id}/artifacts",
        }
        data = {
            "metrics": last,
            "params": [{"key": key, "value": value} for key, value in run["params"].items()],
            "tags": [{"key": key, "value": value} for key, value in run["tags"].items()],
        }
        return 200, {"run": {"info": info, "data": data}}

    def _runs_update(self, values: dict[str, Any]) -> tuple[int, object]:
        if values["run_id"] in RUNS:
            RUNS[values["run_id"]]["status"] = values["status"]
        return self._runs_get(values)

    def _runs_log_batch(self, values: dict[str, Any]) -> tuple[int, object]:
        status, answer = self._runs_get(values)
        if status == 200:
            run = RUNS[values["run_id"]]
            run["params"] |= {entry["key"]: entry["value"] for entry in values.get("params", [])}
            run["tags"] |= {entry["key"]: entry["value"] for entry in values.get("tags", [])}
            for point in values.get("metrics", []):
                run["metrics"].setdefault(point["key"], []).append(point)
        return status, {} if status == 200 else answer

    def _metrics_get_history(self, values: dict[str, Any]) -> tuple[int, object]:
        return 200, {"metrics": RUNS[values["run_id"]]["metrics"].get(values["metric_key"], [])}

    def _artifacts(self, path: str, body: bytes, values: dict[str, str]) -> None:
        if self.command == "PUT":
            _, run_id, _, name = path.rpartition("/mlflow-artifacts/artifacts/")[2].split("/", 3)
            RUNS[run_id]["artifacts"][name] = len(body)
            return self._send(200, {})
        run_id = values["path"].split("/")[1]
        stored = RUNS[run_id]["artifacts"].items()
        files = [{"path": name, "is_dir": False, "file_size": size} for name, size in stored]
        return self._send(200, {"files": files})


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

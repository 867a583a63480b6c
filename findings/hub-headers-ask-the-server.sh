#!/usr/bin/env bash
# huggingface_hub 2.4.0: build_hf_headers(), which makes a dictionary of headers, asks the server something first.
#
# It is a plain function that the documentation offers to build the headers of a request of one's own. The first call in
# a process sends GET /api/agent-harnesses to HF_ENDPOINT, to find out what to call the caller. Where the server does not
# answer, the call waits for it; a program that counts or limits its own requests does not see this one.
# Seen on Linux, Python 3.11, with a local server: 1 request, GET /api/agent-harnesses, before any request was made.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q huggingface_hub==2.4.0 2>/dev/null

HOME="$folder" "$folder/venv/bin/python" - <<'PY'
import http.server
import os
import threading

asked = []


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        asked.append(f"{self.command} {self.path}")
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
import huggingface_hub
from huggingface_hub.utils import build_hf_headers

print("huggingface_hub", huggingface_hub.__version__)
headers = build_hf_headers(token=False)
print("headers:", sorted(headers), "requests:", asked)
raise SystemExit(asked != ["GET /api/agent-harnesses"])
PY

#!/usr/bin/env bash
# huggingface_hub 2.4.0: a download that is cut by the end of its process begins again from byte 0.
#
# Within one call it resumes after a lost connection, so one would expect the same of the next call. But files under way
# have a random part in their names: a second process does not find what the first one left. It asks for the whole file,
# without a Range header, and what lay there stays beside it as blobs/*.incomplete.
# Seen on Linux, Python 3.11: 2 requests for the file, none with a Range header; 1 file *.incomplete left behind.
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q huggingface_hub==2.4.0 2>/dev/null

cat > "$folder/hub.py" <<'PY'
"""A hub with one model of one file of 48 MiB, sent slowly at first; every GET of the file goes to a log."""
import hashlib
import http.server
import sys
import time

DATA = bytes(range(256)) * 196608
COMMIT, NAME = "c" * 40, "/o/m/resolve/" + "c" * 40 + "/weights.bin"


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        if self.path != NAME:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        wanted = self.headers.get("Range")
        begin = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(DATA).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if wanted:
            self.send_header("Content-Range", f"bytes {begin}-{len(DATA) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(DATA) - begin))
        self.end_headers()
        if not body:
            return
        with open(sys.argv[1], "a") as log:
            print(wanted or "whole", file=log)
        for at in range(begin, len(DATA), 2**16):
            self.wfile.write(DATA[at : at + 2**16])
            if sum(1 for _ in open(sys.argv[1])) == 1:
                time.sleep(1 / 256)

    def log_message(self, *arguments):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
print(server.server_address[1], flush=True)
server.serve_forever()
PY
"$folder/venv/bin/python" "$folder/hub.py" "$folder/log" > "$folder/port" 2>/dev/null &
server=$!
for _ in $(seq 100); do if [ -s "$folder/port" ]; then break; fi; sleep 0.1; done

export HF_ENDPOINT="http://127.0.0.1:$(cat "$folder/port")" HF_HUB_CACHE="$folder/cache" HF_HUB_DISABLE_XET=1
download="from huggingface_hub import hf_hub_download as get; print(get('o/m', 'weights.bin', revision='c' * 40))"
"$folder/venv/bin/python" -c "$download" > /dev/null 2>&1 &
first=$!
for _ in $(seq 600); do  # it writes 10 MB at a time
    if find "$folder/cache" -name '*.incomplete' -size +9000k 2>/dev/null | grep -q .; then break; fi
    sleep 0.1
done
kill -KILL "$first"
wait "$first" 2>/dev/null || true
path=$("$folder/venv/bin/python" -c "$download" 2>/dev/null)

requests=$(tr '\n' ' ' < "$folder/log")
left=$(find "$folder/cache" -name '*.incomplete' | wc -l | tr -d ' ')
size=$(wc -c < "$path" | tr -d ' ')
echo "huggingface_hub 2.4.0: requests for the file: $requests; files *.incomplete left: $left; size $size"
[ "$requests" = "whole whole " ] && [ "$left" = 1 ] && [ "$size" = 50331648 ]

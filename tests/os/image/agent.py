"""Runs in the machine: does what the host asks for, a line of JSON each way on a virtio port.

`{"run": shell text, "input": base64, "timeout_s": n}` is answered by `{"code": exit status, "output": both streams}`, a
command that took too long by code 124. `{"ask": text, "at": folder}` goes to the socket in there, as an operator's
request does, without the seconds that a client's start takes here; its answer is in `output`.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import time
from pathlib import Path

PORT = "/dev/virtio-ports/agent"
ASK_TIMEOUT_S = 10


def run(text: str, given: bytes, timeout_s: float) -> dict[str, object]:
    with subprocess.Popen(
        ["/bin/sh", "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(given, timeout_s)
            code = process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            output, _ = process.communicate()
            code = 124
    return {"code": code, "output": output.decode(errors="replace")}


def ask(text: str, folder: str) -> dict[str, object]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(ASK_TIMEOUT_S)
            client.connect(next(map(str, Path(folder).glob("*.sock")), folder))
            client.send(text.encode())
            return {"code": 0, "output": client.recv(8192).decode()}
    except OSError as error:
        return {"code": 1, "output": str(error)}


def answer(request: dict[str, object]) -> dict[str, object]:
    if "ask" in request:
        return ask(str(request["ask"]), str(request["at"]))
    given = base64.b64decode(str(request.get("input", "")))
    return run(str(request["run"]), given, float(str(request.get("timeout_s", 60))))


def serve(fd: int) -> None:
    pending = bytearray()  # a driver hands out 4 KiB at a time, and a request may have megabytes
    while True:
        data = os.read(fd, 65536)
        if not data:  # nobody is at the host's end
            time.sleep(0.02)
        pending += data
        if data.endswith(b"\n"):  # the host waits for an answer before it asks again
            said = json.dumps(answer(json.loads(pending))).encode() + b"\n"
            pending.clear()
            while said:
                said = said[os.write(fd, said) :]


if __name__ == "__main__":
    serve(os.open(PORT, os.O_RDWR))

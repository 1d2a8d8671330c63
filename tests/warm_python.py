"""A Python whose processes begin with the heavy libraries imported, for tests that start many.

The imports are most of a short command's time. One server imports them; each process is a fork of it that has the
arguments, folder, environment and open files of its caller. `test_startup.py` sees to the imports themselves.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

# What the commands import, without this package: the order in which its parts import each other is theirs.
LIBRARIES = [
    "torch",
    "torch.distributed.run",
    "torch._dynamo",
    "transformers",
    "transformers.generation.utils",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.pipelines",
    "datasets",
    "evaluate",
    "accelerate",
    "accelerate.commands.launch",
    "pandas",
    "pyarrow.parquet",
    "sklearn.manifold",
    "matplotlib.figure",
    "scipy.stats",
    "sacrebleu",
    "jsonargparse",
    "huggingface_hub.hf_api",
]
# The caller's side, which imports next to nothing: signals that ask a process to end are passed on, and options of
# Python that the server cannot give a process afterwards get a cold one.
CALLER = """#!{python} -SE
import json, os, signal, socket, sys
if sys.argv[1][:1] == "-" and sys.argv[1] not in ("-u", "-m", "-c"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
words = [*{words!r}, *sys.argv[1:]]
call = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(connection, [len(call).to_bytes(4, "big")], [0, 1, 2])
connection.sendall(call)
child = int(connection.recv(16))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: os.kill(child, number))
code = int(connection.recv(16) or -signal.SIGKILL)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""
COMMANDS = {
    "python": [],
    "accelerate": ["-m", "accelerate.commands.accelerate_cli"],
    "smallm": ["-m", "smallm_hf"],
}


@contextlib.contextmanager
def warm_python() -> Iterator[Path]:
    """A folder for the front of PATH with `python` and `accelerate`, as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    address = str(folder / "socket")
    for name, words in COMMANDS.items():
        text = CALLER.format(python=sys.executable, address=address, words=words)
        (folder / name).write_text(text)
        (folder / name).chmod(stat.S_IRWXU)
    server = subprocess.Popen([sys.executable, __file__, address], stdout=subprocess.PIPE)
    try:
        assert server.stdout.readline() == b"ready\n"
        yield folder
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder)


def serve(address: str) -> None:
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # a process need not look through the libraries, nor copy their pages
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    print("ready", flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who waits for a process is a process of its own
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return attend(connection)
        connection.close()


def attend(connection: socket.socket) -> None:
    """Begins the process that is asked for and, from one above it, says how it ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, files, _, _ = socket.recv_fds(connection, 4, 3)
    call = b""
    while len(call) < int.from_bytes(length, "big"):
        call += connection.recv(1 << 16)
    child = os.fork()
    if child == 0:
        connection.close()
        return become(files, *json.loads(call))
    connection.sendall(str(child).encode())
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(BrokenPipeError):  # the caller was killed
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def become(files: list[int], words: list[str], folder: str, environment: dict[str, str]) -> None:
    """Runs what is asked for and ends without taking the imported libraries apart, which takes two seconds."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.executable = str(Path(sys.argv[1]).with_name("python"))
    code = 0
    try:
        run(words, folder)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if not isinstance(end.code, int | None):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(words: list[str], folder: str) -> None:
    while words[0] == "-u":
        words.pop(0)
    kind, *arguments = words
    if kind == "-m":
        sys.path[0] = folder
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *arguments[1:]]
        exec(compile(arguments[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path[0] = str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    serve(sys.argv[1])

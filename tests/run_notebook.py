"""Execute one notebook as `nbdev_test` does, without the network: run_notebook.py NOTEBOOK SECONDS [FLAG_TO_SKIP ...]

Its last line says how many cells were executed; it exits with 1 if one of them failed. conftest.py starts it.
"""
import atexit
import faulthandler
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCAL = {"localhost", "127.0.0.1", "::1", "0.0.0.0", "::", "", None}


def close_network():
    "Let sockets reach this machine only."
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def local_connect(sock, address):
        if isinstance(address, tuple) and address[0] not in LOCAL:
            raise ConnectionError(f"tests do not use the network, and this one asked for {address[0]}")
        return connect(sock, address)

    def local_getaddrinfo(host, *args, **kw):
        if host not in LOCAL and host != socket.gethostname():
            raise socket.gaierror(f"tests do not use the network, and this one asked for {host}")
        return getaddrinfo(host, *args, **kw)

    socket.socket.connect, socket.getaddrinfo = local_connect, local_getaddrinfo


def main(path, seconds, *skip_flags):
    faulthandler.dump_traceback_later(float(seconds), exit=True)  # says where a notebook hangs
    close_network()
    os.environ["IPYTHONDIR"] = tempfile.mkdtemp(prefix="ipython-")  # nobody's own start-up files and history
    atexit.register(shutil.rmtree, os.environ["IPYTHONDIR"], ignore_errors=True)  # before nbdev: so it runs after IPython's
    import nbdev.test

    executed = 0

    class CountingShell(nbdev.test.CaptureShell):
        def cell(self, cell, **kw):
            nonlocal executed
            executed += cell.cell_type == "code" and bool(cell.source.strip())
            return super().cell(cell, **kw)

    nbdev.test.CaptureShell = CountingShell
    path = Path(path).resolve()
    os.chdir(path.parent)
    passed, _ = nbdev.test.test_nb(path, skip_flags=skip_flags, basepath=ROOT)
    sys.stderr.flush()
    print(f"\nexecuted {executed} cells", flush=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

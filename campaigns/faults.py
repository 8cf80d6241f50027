"""What the campaigns of kills share: the calls of the C library that faults.c stands before."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).with_name("faults.c")
CLASSES = ("open", "write", "rename", "remove", "folder", "sync", "resize", "link")
"""Of changes, in the order of faults.c."""
KILL_RUN, KILL_PROCESS, FULL = 1, 2, 3


class FaultsFile(ctypes.Structure):
    """`struct faults` of faults.c."""

    _fields_ = (
        ("changes", ctypes.c_uint64 * len(CLASSES)),
        ("bytes", ctypes.c_uint64),
        ("fault", ctypes.c_uint64),
        ("at_class", ctypes.c_uint64),
        ("at", ctypes.c_uint64),
        ("torn", ctypes.c_uint64),
        ("group", ctypes.c_int64),
        ("hit", ctypes.c_uint64),
        ("below", ctypes.c_char * 1024),
        ("call", ctypes.c_char * 32),
        ("path", ctypes.c_char * 1024),
    )


def load_before_the_c_library() -> None:
    """Starts this process again with faults.c before the C library; everything is forked of it."""
    if os.environ.get("MM1_FAULTS_LOADED"):
        return
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or not sys.platform.startswith("linux"):
        sys.exit("Found no C compiler on Linux, expected cc, gcc or clang.")
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()
    library = Path(tempfile.gettempdir()) / f"mm1-faults-{os.getuid()}-{digest[:16]}.so"
    if not library.exists():
        made = library.with_suffix(f".{os.getpid()}")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(made), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)
        made.replace(library)
    environment = {
        "LD_PRELOAD": str(library),
        "MM1_FAULTS_LOADED": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "DO_NOT_TRACK": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    os.environ.update(environment)
    os.execv(sys.executable, [sys.executable, *sys.argv])

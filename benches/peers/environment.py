"""What the comparisons share: the peers' virtual environment, and processes that take turns."""

import json
import os
import subprocess
import sys
from pathlib import Path

# The newest pair whose CPU kernels are compiled for the processor: fbgemm-gpu-cpu 1.9.0 falls back to reference kernels in
# backward (0.25 M rows/s where 1.8.0 makes 0.8 M).
PACKAGES = ["torch==2.13.0", "fbgemm-gpu-cpu==1.8.0", "transformers==5.23.0", "numpy"]
REPOSITORY = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "polygram" / "peers"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))

# Memory that was freed is kept, as our own programs do by themselves, and lies on huge pages. It speeds the peers up too.
TUNABLES = ":".join(
    f"glibc.malloc.{name}"
    for name in ("mmap_max=0", "trim_threshold=18446744073709551615", "top_pad=67108864", "hugetlb=1")
)


def environment(folder):
    """The virtual environment's Python; installs the peers where they are missing."""
    python = folder / "bin" / "python"
    mark = folder / "packages"
    if not (mark.exists() and mark.read_text() == "\n".join(PACKAGES)):
        print(f"installing {', '.join(PACKAGES)} into {folder} (several GB, once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]
        subprocess.run([*pip, *PACKAGES], check=True, stdout=sys.stderr)
        mark.write_text("\n".join(PACKAGES))
    return python


class Process:
    """A program that runs one step for each line it is given, and says first, in a line, that it is ready."""

    def __init__(self, command, tunables=None, variables=None):
        env = {**os.environ, **({"GLIBC_TUNABLES": tunables} if tunables else {}), **(variables or {})}
        self.command = [str(part) for part in command]
        self.child = subprocess.Popen(
            self.command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.ready = self.answer()

    def answer(self):
        line = self.child.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(self.command)} ended with {self.child.wait()}")
        return json.loads(line)

    def step(self, order="step"):
        self.child.stdin.write(order + "\n")
        self.child.stdin.flush()
        return self.answer()

    def end(self):
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait()

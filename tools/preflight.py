"""Checks what an installation needs before anything is installed. Standard library, Python 3.8 and newer.

usage: python3 tools/preflight.py demo|test

Prints one line for each missing thing, with the package's name for this machine, and exits 1. libp2p's dependencies
fastecdsa and miniupnpc are compiled where no wheel fits, hence the compiler and the headers of Python and GMP.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile

OLDEST = (3, 11)
DISK_MB = {"demo": 2600, "test": 2800}  # .venv after `make demo` and `make test` on Linux, and room for the downloads
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BREW_PREFIXES = ("/opt/homebrew", "/usr/local")


def main(what):
    missing = [line for line in (check(what) for check in CHECKS) if line]
    for line in missing:
        print("orchd: " + line, file=sys.stderr)
    if missing:
        print("orchd: nothing was installed. Run make again when it is there.", file=sys.stderr)
    return 1 if missing else 0


def check_python(_what):
    if sys.version_info < OLDEST:
        found = f"Python {version()} is too old ({sys.executable}); Python 3.11 or newer is needed"
        return found + packages("python3.11 python3.11-venv python3.11-dev", "python3.11-devel", "python@3.13")
    return None


def check_python_headers(_what):
    if sys.version_info < OLDEST:
        return None  # the headers of a Python that can't be used do not matter
    if os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        return None
    names = packages(f"python{version()}-dev", f"python{version()}-devel", f"python@{version()}")
    return "Python's headers (Python.h) are missing" + names


def check_venv(_what):
    if sys.version_info < OLDEST:
        return None
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        names = packages(f"python{version()}-venv", f"python{version()}", f"python@{version()}")
        return "Python's venv module is missing" + names
    return None


def check_compiler(_what):
    if compiler() is None:
        return "a C compiler (cc) is missing" + packages("gcc", "gcc", "", mac="xcode-select --install")
    return None


def check_gmp(_what):
    command = compiler()
    if command is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "check.c")
        with open(source, "w") as file:
            file.write("#include <gmp.h>\nint main(void) { return 0; }\n")
        include = [f"-I{prefix}/include" for prefix in BREW_PREFIXES if os.path.isdir(f"{prefix}/include")]
        flags = shlex.split(os.environ.get("CFLAGS", "")) + (include if sys.platform == "darwin" else [])
        done = subprocess.run([*command, *flags, "-E", source], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if done.returncode:
        return "the GMP headers (gmp.h) are missing" + packages("libgmp-dev", "gmp-devel", "gmp")
    return None


def check_disk(what):
    free = shutil.disk_usage(ROOT).free // 2**20
    if free < DISK_MB[what] and not os.path.exists(os.path.join(ROOT, ".venv", "bin", "pip")):
        return f"only {free} MB are free on the disk of {ROOT}; {DISK_MB[what]} MB are needed: free some space"
    return None


def version():
    return "{}.{}".format(*sys.version_info)


def compiler():
    """The C compiler's command as a list, or None. `cc` of a Mac without command-line tools exists and fails."""
    for name in [os.environ.get("CC"), "cc", "gcc", "clang"]:
        command = shlex.split(name or "")
        if command and shutil.which(command[0]):
            done = subprocess.run([*command, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if done.returncode == 0:
                return command
    return None


def packages(apt, dnf, brew, mac=None):
    """': apt install …' for the package manager that is here, or for all of them."""
    if sys.platform == "darwin":
        return ": " + (mac or "brew install " + brew)
    lines = [("apt-get", "apt install " + apt), ("dnf", "dnf install " + dnf), ("brew", "brew install " + brew)]
    known = [line for tool, line in lines if shutil.which(tool)][:1]
    return ": " + (known[0] if known else ", ".join(line for _, line in lines if not line.endswith(" ")))


CHECKS = (check_python, check_python_headers, check_venv, check_compiler, check_gmp, check_disk)

if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "demo"))

# ruff: noqa: INP001, T201  # run by make, never imported; it prints what it made
"""Build ferryman_runner for one machine and pack it with all it needs but a kernel: `build.py MACHINE OUT.tar.gz`.

The archive holds one folder, `ferryman-runner`: the launcher, bin/, lib/ (our libraries, ExecuTorch's, and the C and
C++ libraries of the compiler's own system with their loader), licenses/. The same sources and compiler give the same
bytes. Standard library, CMake, binutils, and a C++ compiler for MACHINE.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FOLDER = "ferryman-runner"
LOADER = {"x86_64": "ld-linux-x86-64.so.2", "aarch64": "ld-linux-aarch64.so.1"}
EPOCH_S = 315532800
"""1980-01-01: what every file is dated."""
COMMON_LICENSES = ("GPL-2", "GPL-3", "LGPL-2.1")
"""That the copyright files of the C and C++ libraries name."""


def main() -> None:
    """Build, gather, pack; prints the sizes."""
    machine, out = sys.argv[1], Path(sys.argv[2])
    if machine not in LOADER:
        sys.exit(f"build.py: expected a machine of {', '.join(LOADER)}, found {machine!r}")
    cross = machine != os.uname().machine
    prefix = f"{machine}-linux-gnu-" if cross else ""
    compiler = f"g++-{machine}-linux-gnu".replace("_", "-") if cross else "g++"
    for tool in ("cmake", "readelf", f"{prefix}g++", f"{prefix}strip"):
        if shutil.which(tool) is None:
            sys.exit(f"build.py: {tool} not found; on Debian: apt-get install cmake {compiler}")
    with tempfile.TemporaryDirectory() as scratch:
        build, folder = Path(scratch) / "build", Path(scratch) / FOLDER
        compile_all(build, machine, cross=cross)
        gather(build, folder, machine, prefix)
        out.parent.mkdir(parents=True, exist_ok=True)
        pack(folder, out)
        unpacked = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        own = (folder / "bin" / "ferryman_runner").stat().st_size
    megabytes = f"{out.stat().st_size / 1e6:.1f} MB, unpacked {unpacked / 1e6:.1f} MB"
    print(f"{out}: {megabytes}, the program itself {own / 1e3:.0f} kB")


def compile_all(build: Path, machine: str, *, cross: bool) -> None:
    """The CMake project's target `ferryman_runner` and what it links to."""
    # No name of this machine's folders in what is built.
    flags = f"-ffile-prefix-map={ROOT}=. -ffile-prefix-map={build}=build"
    configure: list[str | Path] = [
        "cmake",
        "-S",
        ROOT,
        "-B",
        build,
        "-DFERRYMAN_RUNNER=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    configure += [f"-DCMAKE_CXX_FLAGS={flags}"]
    if cross:
        configure.append(f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'runtime' / 'native' / f'{machine}.cmake'}")
    make: list[str | Path] = ["cmake", "--build", build, "--target", "ferryman_runner", "--parallel", "2"]
    for command in (configure, make):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)


def gather(build: Path, folder: Path, machine: str, prefix: str) -> None:
    """Lay the folder out."""
    native, lib, licenses = build / "runtime" / "native", folder / "lib", folder / "licenses"
    for made in (lib, folder / "bin", licenses):
        made.mkdir(parents=True)
    program = copy(native / "runner" / "ferryman_runner", folder / "bin" / "ferryman_runner", prefix)
    ours = {file.name: file for file in (*native.glob("*/libferryman_*.so"), *native.glob("executorch/wheel/lib/*.so"))}
    system = []
    wanted, seen = needed(program), {LOADER[machine]}
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in ours:
            wanted += needed(copy(ours[name], lib / name, prefix))
        else:
            system.append(name)
            wanted += needed(copy(system_library(name, prefix), lib / name, None))
    copy(system_library(LOADER[machine], prefix), lib / LOADER[machine], None)
    launcher = folder / "ferryman_runner"
    launcher.write_text((HERE / "ferryman_runner.sh").read_text().replace("@LOADER@", LOADER[machine]))
    launcher.chmod(0o755)
    copy_licenses(native, licenses, [system_library(name, prefix) for name in (LOADER[machine], *system)])


def copy(source: Path, target: Path, prefix: str | None) -> Path:
    """One file, stripped unless `prefix` is None: others' files stay as they were distributed."""
    shutil.copyfile(source, target)
    target.chmod(0o755)
    if prefix is not None:
        subprocess.run([f"{prefix}strip", "--strip-unneeded", target], check=True)
    return target


def needed(file: Path) -> list[str]:
    """Names of the libraries that a program or library asks for."""
    listed = subprocess.run(["readelf", "-d", file], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", listed)


def system_library(name: str, prefix: str) -> Path:
    """Where the compiler's own system has it."""
    command = [f"{prefix}g++", f"-print-file-name={name}"]
    found = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    if not found.is_absolute():
        sys.exit(f"build.py: {prefix}g++ has no {name}")
    return found.resolve()


def copy_licenses(native: Path, licenses: Path, system: list[Path]) -> None:
    """What all of it may be used under, and which Debian packages the C and C++ libraries come from."""
    for text in (ROOT / "runtime" / "native" / "executorch" / "licenses").iterdir():
        shutil.copyfile(text, licenses / text.name)
    shutil.copyfile(native / "executorch" / "wheel" / "LICENSE", licenses / "ExecuTorch.txt")
    shutil.copyfile(ROOT / "LICENSE", licenses / "Apache-2.0.txt")
    packages: dict[str, list[str]] = {}
    for file in system:
        packages.setdefault(package_of(file), []).append(file.name)
    lines = ["Files of lib/ that are Debian's, unchanged; Debian's snapshot archive has their sources.", ""]
    for package, files in sorted(packages.items()):
        asked = "${Version}, source ${source:Package} ${source:Version} ${Built-Using}"
        name = package.partition(":")[0]
        told = dpkg("dpkg-query", "--show", f"--showformat={asked}", package)
        lines.append(f"{name} {told}: {', '.join(sorted(files))}")
        shutil.copyfile(Path("/usr/share/doc") / name / "copyright", licenses / f"{name}.txt")
    for name in COMMON_LICENSES:
        shutil.copyfile(Path("/usr/share/common-licenses") / name, licenses / f"{name}.txt")
    (licenses / "DEBIAN.txt").write_text("\n".join(lines) + "\n")


def package_of(file: Path) -> str:
    """The Debian package that a library belongs to; its files may be recorded without /usr."""
    for path in (file, Path("/") / file.relative_to("/usr") if file.is_relative_to("/usr") else file):
        if found := dpkg("dpkg", "--search", str(path), missing_ok=True):
            return found.rpartition(": ")[0]
    sys.exit(f"build.py: {file} belongs to no Debian package, so its licence is not known; build on Debian or Ubuntu")


def dpkg(*command: str, missing_ok: bool = False) -> str:
    """What Debian's package manager says."""
    if shutil.which(command[0]) is None:
        sys.exit(f"build.py: {command[0]} not found: whose the C library is, is not known; build on Debian")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not missing_ok:
        sys.exit(f"build.py: {' '.join(command)}: {done.stderr}")
    return done.stdout.strip()


def pack(folder: Path, out: Path) -> None:
    """A tar of which every byte follows from the files': order, modes, owners and dates are fixed."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path in (folder, *sorted(folder.rglob("*"))):
            entry = archive.gettarinfo(path, str(Path(FOLDER) / path.relative_to(folder)))
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = "root"
            entry.mtime = EPOCH_S
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            archive.addfile(entry, io.BytesIO(path.read_bytes()) if path.is_file() else None)
    part = out.with_name(f".{out.name}.part")
    with part.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.write(plain.getvalue())
    part.replace(out)


if __name__ == "__main__":
    main()

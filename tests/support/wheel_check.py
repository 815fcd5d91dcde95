"""Whether an aarch64 wheel is what its name says: `python -m tests.support.wheel_check WHEEL...` lists what is wrong.

Which glibc and C++ library it needs, and whether each library that it asks for is in it or on every Linux, is
auditwheel's verdict; the rest is looked up here. What an installer would do with its files is in `wheel_files`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

from tests.support.elf_check import library_problems
from tests.support.wheel_files import NATIVE, file_problems, read_wheel

ROOT = Path(__file__).resolve().parents[2]
OURS = ("executorch", "kernels", "tflite", "weights")
PLATFORM = re.compile(r"manylinux_(\d+)_(\d+)_aarch64")


def wheel_problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel, one sentence each."""
    files, unsafe = read_wheel(wheel)
    libraries = {name: data for name, data in files.items() if name.endswith(".so")}
    found = [*unsafe, *file_problems(wheel, files), *_tag(wheel, files), *_metadata(files), *_contents(files)]
    found += [f"{name} {problem}" for name in libraries for problem in library_problems(name, libraries)]
    return found


def _tag(wheel: Path, files: dict[str, bytes]) -> Iterator[str]:
    _, _, _, tags = parse_wheel_filename(wheel.name)
    said = BytesParser().parsebytes(_of(files, "WHEEL")).get_all("Tag", [])
    if said != [str(tag) for tag in tags] or (len(tags), *((t.interpreter, t.abi) for t in tags)) != (
        1,
        ("py3", "none"),
    ):
        yield f"the name says {', '.join(map(str, tags))}, the metadata {', '.join(said)}; expected one py3-none tag"
        return
    (tag,) = tags
    command = [sys.executable, "-m", "auditwheel", "show", "--json", wheel]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    verdict = json.loads(shown.stdout or "{}").get("overall_tag", shown.stderr)
    named, needed = PLATFORM.fullmatch(tag.platform), PLATFORM.fullmatch(verdict)
    if not (named and needed and _number(needed) <= _number(named)):
        yield f"is tagged {tag.platform}, but auditwheel says {verdict}: {shown.stdout[-1500:]}"


def _number(platform: re.Match[str]) -> tuple[int, int]:
    return int(platform[1]), int(platform[2])


def _metadata(files: dict[str, bytes]) -> Iterator[str]:
    for text in BytesParser().parsebytes(_of(files, "METADATA")).get_all("Requires-Dist", []):
        wanted = Requirement(text)
        if "extra" not in str(wanted.marker or "") and wanted.name in {"torch", "executorch", "tensorflow"}:
            yield f"the device would install {wanted.name}"


def _contents(files: dict[str, bytes]) -> Iterator[str]:
    folder = ROOT / "runtime" / "native" / "executorch" / "licenses"
    licences = {
        f"{NATIVE}licenses/{n}" for n in ("Apache-2.0.txt", "ExecuTorch.txt", *(p.name for p in folder.iterdir()))
    }
    wanted = licences | {f"{NATIVE}libferryman_{n}.so" for n in OURS} | {f"{NATIVE}libexecutorch.so"}
    yield from (f"{name} is missing" for name in sorted(wanted - files.keys()))
    here = (str(ROOT).encode(), str(Path.home()).encode() + b"/")
    for name, data in files.items():
        if "tests" in Path(name).parts or "torch" in Path(name).name.replace("executorch", ""):
            yield f"{name} has no place in a device's wheel"
        yield from (f"{name} names {path.decode()}, where it was built" for path in here if path in data)


def _of(files: dict[str, bytes], what: str) -> bytes:
    (name,) = (n for n in files if n.endswith(f".dist-info/{what}"))
    return files[name]


if __name__ == "__main__":
    wrong = [f"{name}: {problem}" for name in sys.argv[1:] for problem in wheel_problems(Path(name))]
    print("\n".join(wrong) or f"{' '.join(sys.argv[1:])}: nothing wrong")
    sys.exit(bool(wrong))

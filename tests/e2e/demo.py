"""`make demo`: the whole path on this machine, with every part real; ends in minutes and leaves nothing running."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ferryman import AgentClient, compress, open_package, parse_broker
from ferryman.devices.fleet.store.store import open_store
from ferryman.runtime.contracts.errors import FerrymanError
from tests.e2e import digits, over_the_air
from tests.support.broker import running_broker
from tests.support.interpreters import ROOT
from tests.support.mosquitto import free_port
from tests.support.sshd import running_sshd

DEVICE = "pi"
RUNS, STARTS = "200", "3"
HOST_COMMAND = Path(sys.executable).with_name("ferryman")
DEVICE_COMMAND = ROOT / ".venv-device" / "bin" / "ferryman"
_WAIT_S = 120.0
_ROUNDED_MAX = 9
"""Test images, of 450, on which 4-bit weights may answer another class."""


def main(folder: Path = ROOT / ".demo") -> None:
    """Run the demo; files stay in `folder`."""
    started = time.monotonic()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "sshd").mkdir(mode=0o700)
    models = _train(folder)

    _headline("3 convert both to both runtimes; every artifact is proven against eager on the real interpreters")
    packages = {"digits": folder / "digits.ferry", "digits-binary": folder / "digits-binary.ferry"}
    both = ["--form", "fp32", "--form", "4bit", "--calibrate", "tests.e2e.digits:calibration"]
    _ferryman("convert", "tests.e2e.digits:trained", *both, "--name", "digits", "-o", str(folder))
    binary = ["convert", "tests.e2e.digits:trained_binary", "--form", "binary", "--name", "digits-binary"]
    _ferryman(*binary, "-o", str(folder))

    with contextlib.ExitStack() as stack:
        _headline(
            "4 start a broker, an sshd, a collector, a signed repository, and an agent: no torch in its environment"
        )
        broker = stack.enter_context(running_broker(folder))
        sshd = stack.enter_context(running_sshd(folder / "sshd"))
        root = folder / "device"
        devices = folder / "devices.toml"
        settings = {
            "host": sshd.host,
            "user": sshd.user,
            "key": sshd.key,
            "known_hosts": sshd.known_hosts,
            "command": DEVICE_COMMAND,
            "root": root,
            "broker": broker.url,
        }
        lines = [f"[{DEVICE}]", f"port = {sshd.port}", *(f'{name} = "{value}"' for name, value in settings.items())]
        devices.write_text("\n".join(lines) + "\n")
        os.environ["FERRYMAN_DEVICES"] = str(devices)
        database = folder / "ferryman.sqlite"
        stack.enter_context(
            _service(
                folder / "collector.log", [HOST_COMMAND, "collect", "--broker", broker.url, "--database", database]
            )
        )
        over_the_air.make_repository(folder, root, _ferryman)
        port = str(free_port())
        stack.enter_context(
            _service(folder / "serve.log", [HOST_COMMAND, "serve", folder / "repository", "--port", port])
        )
        agent = [DEVICE_COMMAND, "agent", "--device", DEVICE, "--broker", broker.url, "--root", root]
        agent += ["--label", "site=demo", "--repository", f"http://127.0.0.1:{port}", "--sample", "5"]
        stack.enter_context(_service(folder / "agent.log", agent))
        print(f"  {broker.name} at {broker.url}, sshd at {sshd.host}:{sshd.port}")

        _headline("5 push over SSH: write the inactive slot, read back, run golden vectors, switch;")
        print("   then run every test image there, and profile: measurements travel through telemetry as well")
        for name, package in packages.items():
            _ferryman("push", str(package), DEVICE)
            _compare_on_device(models[name], package, broker.url)
            _ferryman("profile", str(package), DEVICE, "--runs", RUNS, "--starts", STARTS, "--operators")

        _headline("6 over the air: sign and publish, roll out; the device fetches what it lacks and serves it on trial")
        over_the_air.show(folder, models["digits"], packages["digits"], broker.url, _ferryman)

        _headline("7 report from what the collector stored")
        _wait_for_measurements(database)
        files = [f"--{kind}={folder / f'report.{kind}'}" for kind in ("html", "csv", "trace")]
        _ferryman("report", "--database", str(database), *files)

        _headline("8 ask how the fleet does: what the agent sampled of itself, package by package, and as a file")
        for asked in ("status", "devices site=demo", "logs", f"export samples --to {folder / 'samples.csv'}"):
            _ferryman("fleet", *asked.split(), "--database", str(database))

    _headline("9 compare here, in turn: are 4 bits slower than floats? (exit code 3: yes, 4: unclear)")
    compare = ["compare", str(packages["digits"]), "--interpreter", "ai-edge-litert", "--rounds", "6", "--runs", RUNS]
    _ferryman(*compare, good=(0, 3, 4))
    print(f"\ndone in {time.monotonic() - started:.0f} s. The page: {folder / 'report.html'}")
    print("What the demo started is stopped again: the commands above show what was run, and need it to run once more.")


def _train(folder: Path) -> dict[str, torch.nn.Module]:
    """A float CNN and its binary copy; their weights go where the factories of `digits` look."""
    os.environ[digits.WEIGHTS] = str(folder / "digits.pt")
    os.environ[digits.BINARY_WEIGHTS] = str(folder / "digits-binary.pt")
    _headline("1 train a small CNN on handwritten digits")
    module = digits.train(lambda epoch, epochs, accuracy: print(f"  epoch {epoch:2}/{epochs}  test {accuracy:.1%}"))
    torch.save(module.state_dict(), os.environ[digits.WEIGHTS])

    _headline("2 compress it: weights and activations of -1 and 1 in the middle layers, then a short fine-tune")
    torch.manual_seed(0)
    made = compress(
        module,
        "binary",
        loader=digits.Batches(),
        progress=lambda epoch, epochs, loss: print(f"  epoch {epoch:2}/{epochs}  loss {loss:.3f}"),
    )
    torch.save(made.model.state_dict(), os.environ[digits.BINARY_WEIGHTS])
    for decision in made.decisions:
        print(f"  {decision.path:12} {decision.decision:8} {decision.reason}")
    print(f"  test accuracy: {digits.accuracy(made.model):.1%}, before {digits.accuracy(module):.1%}")
    return {"digits": module, "digits-binary": made.model}


def _headline(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _ferryman(*arguments: str, good: Sequence[int] = (0,)) -> None:
    print("$ ferryman " + " ".join(arguments), flush=True)
    command = [HOST_COMMAND, *arguments]
    if (code := subprocess.run(command, check=False, cwd=ROOT).returncode) not in good:
        raise subprocess.CalledProcessError(code, command)


@contextlib.contextmanager
def _service(log: Path, command: Sequence[str | Path]) -> Iterator[None]:
    print("$ " + " ".join(["ferryman", *map(str, command[1:])]) + f" 2> {log.name} &", flush=True)
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        yield
        if process.poll() is not None:
            raise RuntimeError(f"it ended early with exit code {process.returncode}: {log.read_text()}")
    finally:
        process.terminate()
        process.wait(timeout=60)


def _compare_on_device(module: torch.nn.Module, package: Path, broker_url: str) -> None:
    _, images, _, labels = digits.images()
    with torch.no_grad():
        eager = module(images).argmax(1).numpy()
    accuracy = float((eager == labels.numpy()).mean())
    print(f"  eager here: {accuracy:.2%} of {len(images)} test images right")
    with open_package(package) as opened:
        variants = opened.manifest.variants
    with AgentClient(parse_broker(broker_url), DEVICE) as client:
        for variant in variants:
            for interpreter in variant.requires.interpreters:
                answers = [
                    client.infer([image.numpy()[None]], variant=variant.name, interpreter=interpreter)
                    for image in images
                ]
                found = np.array([answer.outputs[0].to_array().argmax() for answer in answers])
                differing = int((found != eager).sum())
                if differing > (_ROUNDED_MAX if variant.form == "4bit" else 0):
                    raise RuntimeError(f"{variant.name} on {interpreter} differs from eager on {differing} images")
                on_device = float((found == labels.numpy()).mean())
                what = (
                    f"another class than eager on {differing} images" if differing else "equal to eager on every image"
                )
                print(f"  {variant.name} on {interpreter}: {on_device:.2%}, {what}")


def _wait_for_measurements(database: Path) -> None:
    deadline = time.monotonic() + _WAIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(FerrymanError):
            store = open_store(database, create=False)
            found = store.measurements()
            store.close()
            if found:
                return
        time.sleep(0.2)
    raise RuntimeError(f"no measurement reached {database} in {_WAIT_S:g} s")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))

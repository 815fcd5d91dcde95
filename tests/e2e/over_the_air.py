"""The part of `make demo` in which updates come over the air: signed, as deltas, on trial; a forged one is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional

from tests.e2e import digits

Run = Callable[..., None]
"""Runs `ferryman` with these arguments; `good` are the exit codes that will do."""
HALTED = 3


def make_repository(folder: Path, root: Path, run: Run) -> Path:
    """Keys and an empty repository; the device gets the root, and nothing else."""
    repository = folder / "repository"
    os.environ["FERRYMAN_REPOSITORY"], os.environ["FERRYMAN_KEYS"] = str(repository), str(folder / "keys")
    run("keys", "init", str(folder / "keys"), "--family", "digits", "--offline", str(folder / "offline"))
    (root / "trust").mkdir(parents=True)
    run("keys", "root", "-o", str(root / "trust" / "root.json"))
    return repository


def show(folder: Path, module: torch.nn.Module, package: Path, broker_url: str, run: Run) -> None:
    """Publish, roll out, train one layer on, publish and roll out again; then a repository that was tampered with."""
    rollout = ["--to", "site=demo", "--broker", broker_url, "--database", str(folder / "rollouts.sqlite")]
    # What served before are binary layers, which floats are slower than; and this machine does other work meanwhile.
    rollout += ["--soak", "0", "--watch", "3", "--slower", "off"]
    run("publish", str(package), "--version", "1")
    run("rollout", "start", "digits/1", *rollout)

    print("\n   the last layer is trained on; a device that has version 1 fetches what that changed")
    tune_last_layer(module, Path(os.environ[digits.WEIGHTS]))
    both = ["--form", "fp32", "--form", "4bit", "--calibrate", "tests.e2e.digits:calibration"]
    tuned = folder / "tuned"
    run("convert", "tests.e2e.digits:trained", *both, "--name", "digits", "-o", str(tuned))
    run("publish", str(tuned / "digits.ferry"), "--version", "2")
    run("rollout", "start", "digits/2", *rollout)

    print("\n   somebody changes one bit of what is served: the device refuses it and serves on, the rollout halts")
    run("publish", str(folder / "digits-binary.ferry"), "--family", "digits", "--version", "3")
    newest = max((folder / "repository" / "packs").glob("*/*.pack"), key=lambda path: path.stat().st_mtime_ns)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    run("rollout", "start", "digits/3", *rollout, good=(HALTED,))


def tune_last_layer(module: torch.nn.Module, weights: Path, steps: int = 20) -> None:
    """Train the classifier a little further and write the weights."""
    torch.manual_seed(1)
    module.requires_grad_(False)
    module.classifier.requires_grad_(True)
    optimizer = torch.optim.SGD(module.classifier.parameters(), lr=0.05)
    for _, (batch, labels) in zip(range(steps), digits.Batches(), strict=False):
        optimizer.zero_grad()
        functional.cross_entropy(module(batch), labels).backward()
        optimizer.step()
    module.requires_grad_(True)
    print(f"  test accuracy: {digits.accuracy(module):.1%}")
    torch.save(module.state_dict(), weights)

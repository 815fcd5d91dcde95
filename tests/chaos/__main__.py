"""Everything that can fail is made to fail while samples flow, and the store is compared with what was appended.

`python -m tests.chaos --seed 7 --samples 1000000 --store sqlite`; docs/telemetry/chaos.md says what is done and judged.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import click

from tests.chaos import mutations
from tests.chaos.run import Outcome, run
from tests.chaos.scene import Plan

STORES = ("sqlite", "postgresql")


@click.command()
@click.option("--seed", default=1, show_default=True, help="The first.")
@click.option("--seeds", default=1, show_default=True, help="How many, one after another.")
@click.option("--samples", default=1_000_000, show_default=True, help="Records in each run.")
@click.option(
    "--store", type=click.Choice([*STORES, "both"]), default="both", show_default=True, help="both: they take turns."
)
@click.option("--mutation", type=click.Choice(mutations.NAMES), default=None, help="Break ferryman in this way.")
@click.option("--keep", is_flag=True, help="Keep the folders of runs that went well, too.")
def main(seed: int, seeds: int, samples: int, store: str, mutation: str | None, keep: bool) -> None:
    """Exit with 0 where nothing was lost, doubled, changed or out of order, else with 1; JSON, a line a run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was started is ended, and mounted unmounted
    failed = []
    for number in range(seed, seed + seeds):
        kind = STORES[number % 2] if store == "both" else store
        folder = Path(tempfile.mkdtemp(prefix=f"ferryman-chaos-{number}-"))
        folder.chmod(0o755)  # the database server's user goes through it
        outcome = run(Plan(number, samples, kind, mutation or ""), folder)
        print(json.dumps(outcome.summary()), flush=True)
        _write(outcome, folder)
        if outcome.wrong:
            failed.append(number)
            _tell(outcome, folder)
        elif not keep:
            shutil.rmtree(folder)
    if failed:
        click.echo(f"{len(failed)} of {seeds} failed: seeds {', '.join(map(str, failed))}", err=True)
    sys.exit(bool(failed))


def _write(outcome: Outcome, folder: Path) -> None:
    first = outcome.events[0].start_ns if outcome.events else 0
    lines = [
        f"{(event.start_ns - first) / 1e9:9.3f} {(event.end_ns - first) / 1e9:9.3f} {event.target} {event.kind}\n"
        for event in outcome.events
    ]
    (folder / "events.txt").write_text("".join(lines))
    (folder / "summary.json").write_text(json.dumps(outcome.summary(), indent=2))


def _tell(outcome: Outcome, folder: Path) -> None:
    plan = outcome.plan
    click.echo(f"seed {plan.seed}, {plan.store}: {len(outcome.wrong)} things are wrong", err=True)
    for one in outcome.wrong:
        click.echo(f"  {one}", err=True)
    click.echo(f"events, from when to when in seconds: {folder / 'events.txt'}; the last of them:", err=True)
    click.echo("".join((folder / "events.txt").read_text().splitlines(keepends=True)[-40:]), err=True)
    click.echo(f"journals, outboxes, logs and store are kept in {folder}", err=True)
    again = f"--seed {plan.seed} --samples {plan.samples} --store {plan.store}"
    click.echo(
        f"again: python -m tests.chaos {again}" + (f" --mutation {plan.mutation}" * bool(plan.mutation)), err=True
    )


if __name__ == "__main__":
    main()

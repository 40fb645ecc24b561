"""What is a run, from settings to last checkpoint? (`python -m ien.train --config configs/quickstart.yaml`)

The same command starts a run, goes on with one that was stopped, and says so when it is finished. Under torchrun it
trains in as many processes as were started.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ien import build, checkpoint, config, distributed, ledger, records, stopping
from ien.alignment.warning import alignment_warning
from ien.build import Parts
from ien.config import Config
from ien.distributed import Processes
from ien.engine import set_precision
from ien.errors import InputError, OneLineParser, told_in_one_line
from ien.ledger import Ledger
from ien.records import Record
from ien.runs import Folder
from ien.stopping import STOPPED, Stopped, StopRequest
from ien.tracking import write_json
from ien.trainer import Report, Trainer, say

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)  # what the user mends, not the program


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: `python -m ien.train --config FILE [key=value …]`."""
    parser = OneLineParser(
        prog="python -m ien.train",
        description="Train an implicitly equivariant network, or go on with a run that was stopped.",
        epilog="example: python -m ien.train --config configs/quickstart.yaml beta_weight=0.1 save_dir=beta_0.1",
    )
    parser.add_argument("--config", required=True, type=Path, help="a YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    stopping.hold_back()
    with told_in_one_line():
        given = parser.parse_args(arguments)
        try:
            run(config.load(given.config, given.overrides))
        except KeyboardInterrupt:
            print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
            sys.exit(130)
        except Stopped:
            sys.exit(STOPPED)


def run(settings: Config, report: Report | None = None) -> Record:
    """Train (or, with `training: false`, test) as the settings say; returns what `summary.json` holds.

    `report` is given the record of every evaluation, after its checkpoint is written. Raises `InputError` for settings,
    data or checkpoints that cannot be used, for a full disk, and for a loss that is not finite; `Stopped` when USR1,
    USR2 or TERM, or the end of the job, made it save and leave.
    """
    folder = Folder(config.run_dir(settings))
    book = Ledger(folder.path, *ledger.job_of(os.environ), rank=int(os.environ.get("RANK", 0)))
    with stopping.heeded() as stop, book.failures(InputError, Stopped):
        with distributed.processes(settings.run.device, settings.run.timeout_s, book.lost) as processes:
            book.job = processes.agree(book.job)
            try:
                return _run(settings, folder, processes, stop, book, report)
            except Stopped as request:
                _note_stop(processes, stop, book)
                stopped = request
        raise stopped  # only now: the processes have left one another in order


def _run(
    settings: Config, folder: Folder, processes: Processes, stop: StopRequest, book: Ledger, report: Report | None
) -> Record:
    if processes.first:
        folder.check(settings)
    if processes.agree("finished" if settings.training and folder.finished else ""):
        result = folder.result()
        done = f"{folder.path} is finished after {result['epochs']} epochs"
        say(processes.first, f"{done}\n\n{records.report_table(result)}")
        return result
    set_precision(settings.run.precision)
    parts = build.parts(settings, processes, stop)
    torch.manual_seed(build.mixed(settings.run.seed, processes.rank))  # dropout differs between processes
    if not settings.training:
        return _test_again(parts, folder)
    # Only now is the folder made: settings that cannot be used leave none behind.
    lock = folder.open(settings, processes.device, book.job, book.restart) if processes.first else None
    everyone = processes.told(_described_process(processes))
    say(processes.first, _described(parts, folder, everyone))
    if lock:
        gpus = sum(one["gpu"] is not None for one in everyone)
        nodes = sorted({one["host"] for one in everyone})
        facts = {"nodes": nodes, "processes": len(everyone), "gpus": gpus, "previous_alive": lock.previous_alive}
        startup = round(time.time() - float(os.environ.get(stopping.TASK_START, time.time())), 1)
        book.add("started", **facts, startup_s=startup, of=settings.tot_epochs * parts.batches.steps_per_epoch)
    try:
        result = Trainer(parts, folder, book, lock, report).train()
        if lock:
            book.add("finished", step=lock.of)
            cost = ledger.cost(ledger.read(folder.path))
            if cost.attempts > 1 or stopping.TASK_START in os.environ:
                say(processes.first, f"cost: {cost}")
        return result
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        raise InputError(
            f"cannot write into {folder.path}: {error.strerror}; its checkpoints are untouched: make room and give the "
            "same command again"
        ) from error
    finally:
        if lock:
            lock.release()


def _note_stop(processes: Processes, stop: StopRequest, book: Ledger) -> None:
    """One line for all processes: which were asked, by what, how long before the end."""
    asked = {one["rank"]: one["signal"] for one in processes.told({"rank": processes.rank, "signal": stop.signal})}
    signals = sorted({name for name in asked.values() if name})
    remaining = stop.remaining()
    if processes.first and book.folder.exists():
        book.add(
            "stopped",
            signals=signals,
            ranks=[rank for rank, name in asked.items() if name],
            remaining_s=None if remaining is None else round(remaining, 1),
        )
    say(processes.first, f"stopped: {stop.why()}; saved, and the same command goes on from here")


def _test_again(parts: Parts, folder: Folder) -> Record:
    """`training: false`: test the best weights of a run; writes `evaluation.json`."""
    path = folder.checkpoints / checkpoint.BEST
    if not path.exists():
        raise InputError(f"{folder.path} holds no trained network yet ({path} is missing); train it with training=true")
    try:
        best = checkpoint.load(path)
    except checkpoint.DamagedError as damage:
        raise InputError(f"{path}: {damage}; train the run again in another save_dir") from damage
    tested = records.test(parts, best["model"], best["record"]["epoch"], best["record"]["step"], "test")
    if parts.processes.first:
        write_json(folder.path / "evaluation.json", tested)
    say(parts.processes.first, records.report_table(tested))
    return tested


def _described(parts: Parts, folder: Folder, everyone: list[dict[str, Any]]) -> str:
    settings, data, processes = parts.settings, parts.data, parts.processes
    parameters = sum(p.numel() for p in parts.tapped.parameters())
    lines = [
        f"{folder.path}: {settings.model}, {parameters:,} parameters, group {parts.engine.objective.group.name}, "
        f"beta_weight {settings.beta_weight:g}",
        f"{data.name}: {len(data.train):,} images to train on, {len(data.val):,} held out, {len(data.test):,} to test; "
        f"{parts.batches.steps_per_epoch:,} steps of {settings.batch_size} an epoch on {processes.count} × "
        f"{processes.device.type}",
    ]
    if settings.pretrained:
        anew = f"; {', '.join(parts.anew)} start anew for {len(data.classes)} classes" if parts.anew else ""
        lines.append(f"weights from {settings.pretrained}{anew}")
    if processes.count > 1:
        lines += [_described_host(host, [one for one in everyone if one["host"] == host]) for host in _hosts(everyone)]
    readers = settings.data.workers if not parts.batches.resident else 0
    short = next((one for one in everyone if one["cpus"] < readers + 1), None)
    if short:
        lines.append(
            f"warning: a process on {short['host']} sees {short['cpus']} CPUs for itself and {readers} data-loader "
            "workers; ask for more with launch.cpus_per_task, or write data.workers=0"
        )
    if settings.beta_weight > 0 or parts.symmetry:
        side, group = build.image_side(settings), parts.engine.objective.group
        subject = str(folder.path) if side else f"{folder.path} --size {data.side}"
        lines += filter(None, [alignment_warning(parts.tapped.model, side or data.side, data.channels, group, subject)])
    return "\n".join(lines)


def _hosts(everyone: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(one["host"] for one in everyone))


def _described_host(host: str, ranks: list[dict[str, Any]]) -> str:
    devices = ", ".join(f"{one['rank']} {one['gpu'] or one['device']}" for one in ranks)
    asked = f" ({ranks[0]['cpus_asked']} asked for)" if ranks[0]["cpus_asked"] else ""
    return f"  {host}: rank {devices}; {ranks[0]['cpus']} CPUs for each{asked}"


def _described_process(processes: Processes) -> dict[str, Any]:
    cuda = processes.device.type == "cuda"
    return {
        "rank": processes.rank,
        "host": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "device": str(processes.device),
        "gpu": f"{processes.device} {torch.cuda.get_device_name(processes.device)}" if cuda else None,
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "cpus_asked": os.environ.get("SLURM_CPUS_PER_TASK"),
    }


if __name__ == "__main__":
    main()

"""Is what was found fit to train with? (facts → rows of the doctor's table; nothing is asked or tried here)"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.doctor_node import SIGNALS
from launch.doctor_together import MIB, SEEN_WITHIN_S

OK, WARN, FAIL = "ok", "warn", "FAIL"
Report = Mapping[str, Any]

CLOCK_FAIL_MS, CLOCK_WARN_MS = 1000, 100  # make and files' times lie; a job's end is compared with a node's clock
SHARED_WARN_S = 5.0  # a requeued run looks for its newest checkpoint at once
SLOW_MB_S = 100  # one gigabit: the 45 MB of a Resnet18's gradients would take half a second at every step
SLOW_GPU_MB_S = 1000  # what NCCL has left when it found no fast interface
SPACE_WARN, SPACE_FAIL = 1 << 30, 50 << 20  # where the size of a checkpoint is not known


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    check: str
    where: str
    verdict: str
    value: str
    advice: str = ""


@dataclass(frozen=True)
class Asked:
    """What the place must have."""

    root: str
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int = 0
    checkpoint_bytes: int | None = None  # all that a run keeps at the same time

    @property
    def count(self) -> int:
        return self.nodes * self.tasks_per_node


def of_login(login: Report, asked: Asked) -> Iterator[Row]:
    """Rows of the machine on which the doctor was started. `login`: node, versions, folder, quota (None: unknown)."""
    where = login["node"]
    yield from _versions(where, login["versions"], login["versions"])
    yield from _folder(where, login["folder"], asked)
    if login["quota"] is not None:
        over = bool(login["quota"])
        yield Row("quota", where, WARN if over else OK, login["quota"] or "not exceeded", "free some" if over else "")


def of_nodes(reports: Mapping[int, Report], asked: Asked, login: Report, ended: str) -> Iterator[Row]:
    """Rows of the nodes, check by check. `ended`: why there are not all reports, if so."""
    tasks: dict[str, list[Report]] = {}
    for _, report in sorted(reports.items()):
        if "node" in report:
            tasks.setdefault(report["node"], []).append(report)
    nodes = [_Node(name, own, asked, login, ended) for name, own in tasks.items()]
    silent = [rank for rank in range(asked.count) if "node" not in reports.get(rank, {})]
    yield from _answer(nodes, silent, asked, ended)
    for check in _CHECKS:
        for node in nodes:
            yield from check(node)


@dataclass(frozen=True)
class _Node:
    """What the tasks of one node told; the first of them spoke for it."""

    name: str
    tasks: Sequence[Report]
    asked: Asked
    login: Report
    ended: str

    def spoken(self, fact: str) -> Any:
        """A fact that the speaker alone tells; None where it is missing."""
        return next((task[fact] for task in self.tasks if fact in task), None)

    def failed(self, stage: str) -> str:
        """How a task failed at a stage; empty where none did."""
        return next((str(task["failed"][stage]) for task in self.tasks if stage in task.get("failed", {})), "")

    def missing(self, check: str, stage: str, advice: str) -> Iterator[Row]:
        """The row of a check whose facts were not told; none where the end of the whole job says why."""
        if told := self.failed(stage):
            yield Row(check, self.name, FAIL, told, advice)
        elif not self.ended:
            last = ", ".join(dict.fromkeys(str(task.get("stage")) for task in self.tasks))
            yield Row(check, self.name, FAIL, f"no answer; the last was at: {last}", advice)

    @property
    def alone(self) -> bool:
        """Whether it could not meet the others, which other lines tell."""
        return self.lacks("torch") or bool(self.failed("meeting"))

    def lacks(self, fact: str) -> bool:
        return any(fact not in task for task in self.tasks)


def _answer(nodes: Sequence[_Node], silent: Sequence[int], asked: Asked, ended: str) -> Iterator[Row]:
    why, _, advice = ended.partition("; ")
    if silent:
        some = f"task {', '.join(map(str, silent[:8]))}{' …' if silent[8:] else ''}"
        value = f"{some if nodes else 'all tasks'} said nothing: {why or 'they ended without a word'}"
        yield Row("answer", "nodes", FAIL, value, advice or "can the nodes see the run folder and this Python?")
    elif ended:
        yield Row("answer", "nodes", FAIL, why, advice or "read the last words of the log, and try again")
    elif len(nodes) < asked.nodes:
        yield Row("answer", "nodes", FAIL, f"{len(nodes)} nodes instead of {asked.nodes}", "see: scontrol show job")


def _versions(where: str, found: Mapping[str, str | None], expected: Mapping[str, str | None]) -> Iterator[Row]:
    value = ", ".join(f"{name} {found[name]}" for name in ("python", "torch", "numpy", "ien") if found.get(name))
    if absent := [name for name, version in found.items() if version is None]:
        advice = f"python -m pip install {' '.join(absent)}"
        yield Row("versions", where, FAIL, f"not installed: {', '.join(absent)}", advice)
    elif changed := [name for name in expected if found.get(name) != expected[name]]:
        told = ", ".join(f"{name} {found.get(name)}, here {expected[name]}" for name in changed)
        yield Row("versions", where, FAIL, told, "use one environment, on a disk that all nodes see")
    else:
        yield Row("versions", where, OK, value)


def _same_versions(node: _Node) -> Iterator[Row]:
    yield from _versions(node.name, node.tasks[0]["versions"], node.login["versions"])


def _torch(node: _Node) -> Iterator[Row]:
    if node.lacks("torch"):
        yield from node.missing("torch", "torch", "try there: python -c 'import torch'")
        return
    slowest = max(task["torch"]["seconds"] for task in node.tasks)
    advice = "keep the environment on a faster disk" if slowest > 30 else ""
    yield Row("torch", node.name, WARN if advice else OK, f"loaded in {slowest:.1f} s", advice)


def _gpus(node: _Node) -> Iterator[Row]:
    told = [task["torch"] for task in node.tasks if "torch" in task]
    if not told:
        return
    seen = {gpu["id"]: gpu for torch in told for gpu in torch["gpus"]}
    kinds = sorted({f"{gpu['name']} {gpu['gib']} GiB" for gpu in seen.values()})
    value = f"{len(seen)} × {', '.join(kinds)}" if seen else "none, CPU only"
    listed = [gpu for torch in told for gpu in torch["smi"] or []]
    mine = [gpu for gpu in listed if gpu["id"].removeprefix("GPU-") in seen]
    broken = sorted({gpu["id"] for gpu in mine if gpu["errors"].isdecimal() and int(gpu["errors"])})
    if len(seen) < node.asked.gpus_per_node:
        built = "" if told[0]["cuda"] else "; this torch was built without CUDA"
        advice = "see there: nvidia-smi, echo $CUDA_VISIBLE_DEVICES; install a torch for its driver"
        yield Row("devices", node.name, FAIL, f"{value}, asked for {node.asked.gpus_per_node}{built}", advice)
    elif listed and not seen:
        advice = "ask for them (--gpus-per-node), or install a torch for the driver"
        yield Row("devices", node.name, WARN, f"{value}, but nvidia-smi lists GPUs", advice)
    elif broken:
        yield Row("devices", node.name, FAIL, f"memory errors in {', '.join(broken)}", _bad(node))
    else:
        yield Row("devices", node.name, OK, value)


def _cores(node: _Node) -> Iterator[Row]:
    seen, count, each = [task["cpus"] for task in node.tasks], len(node.tasks), node.asked.cpus_per_task or 1
    fewest, together = min(map(len, seen)), len(set().union(*seen))
    value = f"{fewest} for each of {count} tasks, {together} in all" if count > 1 else f"{fewest}"
    if fewest < each:
        advice = "hand --cpus-per-task to srun too, and see the site's CPU binding"
        yield Row("CPUs", node.name, FAIL, f"{value}, asked for {each}", advice)
    elif together < each * count:
        verdict = FAIL if node.asked.cpus_per_task else WARN
        advice = f"ask for {count} × {each} of them, or for fewer tasks"
        yield Row("CPUs", node.name, verdict, f"{value}: tasks share cores", advice)
    else:
        yield Row("CPUs", node.name, OK, value)


def _tools(node: _Node) -> Iterator[Row]:
    for tool in node.tasks[0].get("tools", []):
        yield Row(tool, node.name, WARN, "not on the node", "a run cannot requeue itself there; give the command again")


def _node_folder(node: _Node) -> Iterator[Row]:
    facts = node.spoken("folder")
    if not facts:
        yield from node.missing("run folder", "run folder", f"try there: ls {node.asked.root}")
    elif not facts.get("error") and not facts["login"]:
        value = f"{node.asked.root} is another folder there: what this machine wrote is not in it"
        yield Row("run folder", node.name, FAIL, value, "take a --root on a disk that all nodes see")
    else:
        yield from _folder(node.name, facts, node.asked)


def _folder(where: str, facts: Report, asked: Asked) -> Iterator[Row]:
    root = asked.root
    if facts.get("error"):
        advice = _FOLDER_ADVICE.get(facts.get("errno") or 0, "mend that, or take another --root")
        yield Row("run folder", where, FAIL, f"{root}: {facts['error']}", advice)
    else:
        value = f"visible, writable, renamable; 1 MiB with fsync in {1000 * facts['seconds']:.0f} ms"
        yield Row("run folder", where, OK, value)
    if "mode" in facts:
        yield _private(where, facts, root)
        yield _space(where, facts, asked)


_FOLDER_ADVICE = {
    errno.ENOSPC: "the disk is full; delete old runs, or take another --root",
    errno.EDQUOT: "your quota is used up; delete old runs, or take another --root",
    errno.EROFS: "the disk is read-only there; take another --root",
    errno.ENOENT: "take a --root that all nodes see",
    errno.EACCES: "you may not write there; take another --root",
}


def _private(where: str, facts: Report, root: str) -> Row:
    mode, text = facts["mode"], f"mode {facts['mode']:04o}"
    if not facts["mine"]:
        return Row("private", where, FAIL, f"{root} belongs to another user", "take a --root of your own")
    if mode & 0o022 and mode & stat.S_ISVTX:
        return Row(
            "private", where, WARN, f"{text}: others can take the name of a run first", "take a --root of your own"
        )
    if mode & 0o022:
        return Row("private", where, FAIL, f"{text}: other users can write", f"chmod 700 {root}")
    if mode & 0o055:
        return Row("private", where, WARN, f"{text}: other users can read", f"chmod 700 {root}")
    return Row("private", where, OK, text)


def _space(where: str, facts: Report, asked: Asked) -> Row:
    free, need = facts["free"], asked.checkpoint_bytes
    value = f"{_bytes(free)} free" + (f", a run keeps {_bytes(need)} of checkpoints" if need else "")
    if facts["no_files"]:
        return Row(
            "space", where, FAIL, "no more files can be made (inodes)", "delete old runs, or take another --root"
        )
    if free < (need or SPACE_FAIL):
        return Row("space", where, FAIL, value, "delete old runs, or take another --root")
    if free < (2 * need if need else SPACE_WARN):
        return Row("space", where, WARN, value, "soon full; delete old runs")
    return Row("space", where, OK, value)


def _shared(node: _Node) -> Iterator[Row]:
    if node.asked.nodes < 2 or node.alone:
        return
    facts = node.spoken("shared")
    if facts is None:
        yield from node.missing("shared", "shared", _LATER)
    elif facts["missing"]:
        value = f"files of {', '.join(facts['missing'])} not seen within {SEEN_WITHIN_S:.0f} s"
        yield Row("shared", node.name, FAIL, value, "take a --root on a disk that all nodes see")
    else:
        slow = facts["seconds"] > SHARED_WARN_S
        value = f"files of other nodes seen after {facts['seconds']:.2f} s"
        advice = "the disk tells other nodes late; ask the site for another" if slow else ""
        yield Row("shared", node.name, WARN if slow else OK, value, advice)


def _lock(node: _Node) -> Iterator[Row]:
    found = node.spoken("lock")
    if node.asked.nodes < 2 or found is None:
        return
    if found in ("held", "kept"):
        yield Row("lock", node.name, OK, "holds between nodes" if found == "kept" else "held for the others to try")
    else:
        value = "two nodes get the same lock" if found == "lost" else found
        yield Row(
            "lock", node.name, WARN, value, "runs fall back on their heartbeat, which takes half a minute to judge"
        )


def _ports(node: _Node) -> Iterator[Row]:
    if node.asked.count < 2 or node.lacks("torch"):
        return  # told already
    unreached = node.spoken("unreached")
    advice = "ask the site which interface and ports nodes may use (GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
    if unreached is None:
        stage = "meeting" if node.failed("meeting") else "ports"
        yield from node.missing("ports", stage, f"{_LATER}; else {advice}")
    elif unreached:
        yield Row("ports", node.name, FAIL, f"cannot reach {', '.join(unreached)}", advice)
    else:
        yield Row("ports", node.name, OK, "reaches all nodes" if node.asked.nodes > 1 else "processes meet")


def _clock(node: _Node) -> Iterator[Row]:
    ahead = node.spoken("clock_ms")
    if node.asked.nodes < 2 or ahead is None:
        return
    verdict = FAIL if abs(ahead) > CLOCK_FAIL_MS else WARN if abs(ahead) > CLOCK_WARN_MS else OK
    advice = "" if verdict == OK else f"ask the site to set the clock of {node.name} (NTP), or exclude it"
    yield Row("clock", node.name, verdict, f"{abs(ahead):.1f} ms from the first node's", advice)


def _all_reduce(node: _Node) -> Iterator[Row]:
    if node.alone:
        return  # told already
    if node.lacks("all_reduce"):
        advice = "try NCCL_DEBUG=INFO, and the interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)"
        yield from node.missing("all-reduce", "all-reduce", advice)
        return
    told = [task["all_reduce"] for task in node.tasks]
    slowest, gpu = max(facts["seconds"] for facts in told), told[0]["device"] == "cuda"
    backend, wrong = "NCCL" if gpu else "gloo", sum(facts["wrong"] for facts in told)
    speed = MIB * 1.048576 / slowest
    value = f"{speed:.0f} MB/s over {node.asked.count} tasks ({MIB} MiB, {backend})"
    if wrong:
        yield Row("all-reduce", node.name, FAIL, f"{wrong} of the sums are wrong", _bad(node))
    elif node.asked.count == 1:
        yield Row("all-reduce", node.name, OK, "one task has nothing to reduce; --tasks-per-node=2 tries it")
    elif speed < (SLOW_GPU_MB_S if gpu else SLOW_MB_S):
        advice = f"{'NCCL' if gpu else 'GLOO'}_SOCKET_IFNAME chooses the network; this one slows every step"
        yield Row("all-reduce", node.name, WARN, value, advice)
    else:
        yield Row("all-reduce", node.name, OK, value)


def _signals(node: _Node) -> Iterator[Row]:
    if node.lacks("torch"):
        return  # told already
    if node.lacks("workers"):
        advice = "runs are not told of their end there: what is done since the last checkpoint is lost; tell the site"
        if all(name in task for name in SIGNALS for task in node.tasks):
            advice = "a run that is told to stop there fails instead; try data.workers=0, and report this"
        yield from node.missing("signals", "signals", advice)
    elif dead := sum(task["workers"]["dead"] for task in node.tasks):
        yield Row("signals", node.name, FAIL, f"{dead} data-loader workers died of them", "write data.workers=0")
    else:
        yield Row("signals", node.name, OK, f"{' and '.join(SIGNALS)} seen, data-loader workers survive them")


def _bad(node: _Node) -> str:
    return f"tell the site, and exclude {node.name}"


_LATER = "mend the other lines first"
_CHECKS = (
    *(_same_versions, _torch, _gpus, _cores, _tools, _node_folder, _shared, _lock, _ports, _clock),
    *(_all_reduce, _signals),
)


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"

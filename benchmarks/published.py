"""How fast is the published code itself? (the training loop of a clone's `main.py`, as it stands there)

The script is run as it is, with three changes: its settings are those of the row, its batches are given, and it shows
no progress bar. It has no function for a step, so it runs in a thread of its own, which waits at its data loader until
the next step is asked for.
"""

from __future__ import annotations

import ast
import sys
import threading
import types
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor

from ien.errors import InputError

_MODULES = ("utils", "models")  # what the script imports from beside itself
Batch = tuple[Tensor, Tensor]


class PublishedLoop:
    """`step()` lets `main.py` of `clone` see one batch: images (B, C, S, S), labels (B,); then it waits.

    `params` replaces some of its settings. Raises `InputError` if there is no such script, and what it raises itself.
    """

    def __init__(self, clone: Path, device: torch.device, batch: Batch, params: Mapping[str, str | bool]):
        self._code = _with_settings(clone / "main.py", device, params)
        self._clone, self._batch = clone, batch
        self._asked: SimpleQueue[bool] = SimpleQueue()  # False: leave
        self._told: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._heard()

    def step(self) -> None:
        self._asked.put(True)
        self._heard()

    def close(self) -> None:
        self._asked.put(False)
        self._thread.join()

    def _heard(self) -> None:
        error = self._told.get()
        if error is not None:
            raise RuntimeError(f"the published code: {type(error).__name__}: {error}") from error

    def _batches(self) -> Iterator[Batch]:
        while True:
            self._told.put(None)
            if not self._asked.get():
                raise _LeaveError
            yield self._batch

    def _run(self) -> None:
        stand_in: Any = types.ModuleType("tqdm")
        stand_in.tqdm, stand_in.__spec__ = iter, ModuleSpec("tqdm", None)
        put_aside = {name: sys.modules.pop(name, None) for name in ("tqdm", *_MODULES)}
        sys.modules["tqdm"] = stand_in
        sys.path.insert(0, str(self._clone))
        try:
            import utils  # type: ignore[import-not-found]

            images = len(self._batch[0])
            utils.DatasetLoader = lambda *_, **__: {"train_loader": self._batches(), "train_size": 1000 * images}
            exec(self._code, {"__name__": "__main__", "print": lambda *_: None})
            raise ValueError("main.py ended without another step")
        except _LeaveError:
            pass
        except BaseException as error:
            self._told.put(error)
        finally:
            sys.path.remove(str(self._clone))
            for name in [name for name in sys.modules if name.partition(".")[0] in ("tqdm", *_MODULES)]:
                del sys.modules[name]
            sys.modules.update({name: module for name, module in put_aside.items() if module})


class _LeaveError(Exception):
    pass


def _with_settings(script: Path, device: torch.device, params: Mapping[str, str | bool]) -> types.CodeType:
    if not script.is_file():
        raise InputError(f"--published: {script} is not there; give the folder of a clone of {HOME}")
    tree, found = ast.parse(script.read_text(), str(script)), False
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id == "device":
                node.value = ast.Constant(device.type)
            if node.targets[0].id == "params" and isinstance(node.value, ast.Dict):
                found = True
                names = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
                for name, value in params.items():
                    node.value.values[names.index(name)] = ast.Constant(value)
    if not found:
        raise InputError(f"--published: {script} sets no `params`; give the folder of a clone of {HOME}")
    return compile(ast.fix_missing_locations(tree), str(script), "exec")


HOME = "https://github.com/transmuteAI/implicit-networks"

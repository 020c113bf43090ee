"""Callbacks that wait on a disk and on a network, one after the other and at the same time."""

from __future__ import annotations

import os
import socketserver
import tempfile
import threading
from pathlib import Path
from socket import create_connection
from time import perf_counter
from typing import Any

import torch

from fabric_lite import Callback, Fabric, Read, SerialExecutor, State, ThreadedExecutor, Write

STEPS = 20
DELAY = 0.02  # seconds that the server takes to answer: a tracking service on another continent


class Answer(socketserver.BaseRequestHandler):
    """Keeps the last number that it was sent, and takes its time to say so."""

    def handle(self) -> None:
        self.request.recv(64)
        threading.Event().wait(DELAY)
        self.request.sendall(b"ok")


class Report(Callback):
    """Sends the loss to a server, and waits until it has arrived."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.sent = 0

    def stateaccess(self) -> dict[str, Any]:
        return {"step.loss": Read()}

    def on_step_end(self, learner: Any) -> None:
        with create_connection(self.address) as connection:
            connection.sendall(f"{float(learner.step.loss):.6f}".encode())
            self.sent += connection.recv(2) == b"ok"


class Journal(Callback):
    """Writes the loss to a file, and waits until it is on the disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def stateaccess(self) -> dict[str, Any]:
        return {"step.loss": Read()}

    def on_step_end(self, learner: Any) -> None:
        with self.path.open("a") as file:
            file.write(f"{float(learner.step.loss):.6f}\n")
            file.flush()
            os.fsync(file.fileno())


class Mean(Callback):
    """Keeps the mean loss: the others do not read it, so nobody waits for anybody."""

    def stateaccess(self) -> dict[str, Any]:
        return {"step.loss": Read(), "cbstate.mean": Write()}

    def on_step_end(self, learner: Any, step: int) -> None:
        before = learner.cbstate.mean if step else 0.0
        learner.cbstate.mean = before + (float(learner.step.loss) - before) / (step + 1)


def train(executor: Any, address: tuple[str, int], folder: Path) -> tuple[float, float]:
    """Train with four callbacks that wait, and return the seconds that it took and the mean loss."""
    callbacks = [Report(address), Report(address), Report(address), Journal(folder / "journal.txt"), Mean()]
    fabric = Fabric(accelerator="cpu", devices=1, callbacks=callbacks, executor=executor)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.05))
    learner = State(step=State(), cbstate=State())
    begin = perf_counter()
    for step in range(STEPS):
        xs = torch.randn(16, 8)
        optimizer.zero_grad()
        loss = (model(xs) - xs.sum(dim=1, keepdim=True)).square().mean()
        fabric.backward(loss)
        optimizer.step()
        learner.step = State(loss=loss.detach())
        fabric.call("on_step_end", learner=learner, step=step)
    seconds = perf_counter() - begin
    lines = (folder / "journal.txt").read_text().splitlines()
    if len(lines) != STEPS or any(report.sent != STEPS for report in callbacks[:3]):
        raise RuntimeError(f"of {STEPS} losses, {len(lines)} were written and {[r.sent for r in callbacks[:3]]} sent")
    return seconds, learner.cbstate.mean


def main() -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Answer) as server, tempfile.TemporaryDirectory() as folder:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        threaded = ThreadedExecutor(max_workers=5)
        try:
            results = {}
            for name, executor in (("serial", SerialExecutor()), ("threaded", threaded)):
                (own := Path(folder) / name).mkdir()
                results[name] = train(executor, server.server_address, own)
        finally:
            threaded.close()
            server.shutdown()
            thread.join()
    (serial, mean), (parallel, same) = results["serial"], results["threaded"]
    print(f"one after the other: {1000 * serial / STEPS:.1f} ms per step")
    print(f"at the same time:    {1000 * parallel / STEPS:.1f} ms per step, {serial / parallel:.1f} times as fast")
    print(f"mean loss: {mean:.6f} and {same:.6f}")


if __name__ == "__main__":
    main()

"""The process of one rank: one response line for each request line, until the supervisor closes the pipe."""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from typing import BinaryIO, NoReturn

import msgspec
import torch

from bench import protocol
from bench.rank.worker import Worker


def run(requests: BinaryIO, responses: BinaryIO) -> NoReturn:
    """Runs a rank to its end, in a fresh fork whose stderr is its log and that has not touched a GPU."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    serve(requests, responses)
    os._exit(0)  # destructors of CUDA libraries may wait for ranks that are already gone


def serve(requests: BinaryIO, responses: BinaryIO) -> None:
    """Responds to each line until the input ends; an exception is a response as well."""
    decoder = msgspec.json.Decoder(protocol.Request)
    worker: Worker | None = None
    for line in requests:
        try:
            worker, response = _respond(worker, decoder.decode(line))
        except Exception as error:  # noqa: BLE001  (the rank's edge: every exception becomes a Failed record)
            response = _describe_error(error)
        responses.write(msgspec.json.encode(response) + b"\n")
        responses.flush()


def _respond(worker: Worker | None, request: protocol.Request) -> tuple[Worker | None, protocol.Response]:
    if isinstance(request, protocol.Setup):
        worker = Worker(request)
        return worker, worker.ready()
    assert worker is not None
    response: protocol.Response
    if isinstance(request, protocol.SelfTest):
        response = worker.self_test(request)
    elif isinstance(request, protocol.Align):
        response = worker.align(request)
    elif isinstance(request, protocol.Warm):
        response = worker.warm(request)
    elif isinstance(request, protocol.Check):
        response = worker.check(request)
    elif isinstance(request, protocol.Copy | protocol.Exchange):
        response = worker.move(request)
    else:
        response = worker.time(request)
    return worker, response


def _describe_error(error: Exception) -> protocol.Raised:
    text = str(error) or type(error).__name__
    is_cuda = isinstance(error, torch.AcceleratorError) or "CUDA" in text
    return protocol.Raised(f"{type(error).__name__}: {text}", is_cuda, traceback.format_exc())

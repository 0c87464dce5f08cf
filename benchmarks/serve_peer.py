"""infinity-emb and Clipette on the same weights: open_clip's ViT-B-32, untrained, for that changes no cost.

infinity-emb serves it from a folder of transformers, as it serves models of a hub; Clipette from a bundle of the same
weights. It asks for old versions of what we need new: it lives in an environment of its own, whose interpreter
``benchmarks/serve.py --infinity`` names. Both get all cores, batches of 32 and the same requests.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import open_clip
from safetensors.torch import save_file

from clipette.data.dataset import Dataset
from clipette.export.bundle import export_bundle
from clipette.export.peers import export_folder
from clipette.index.build import build_index
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve
from common import say
from load import ask_all
from serve_server import BATCH, Server, embedding_requests, served, throughput

# The seconds in which a server must be ready; transformers takes its time.
PATIENCE = 300
LARGE = "ViT-B-32"
NAME = "peer"
TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
CLIP_PIXELS = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


def same_weights(folder: Path, smoke: bool) -> tuple[Path, Path]:
    """(bundle, transformers folder) of one model."""
    config = TINY if smoke else open_clip.get_model_config(LARGE)
    made = open_clip.CLIP(**config).eval()
    source = folder / "open_clip"
    source.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in made.state_dict().items()}, source / "open_clip_model.safetensors"
    )
    (source / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": CLIP_PIXELS}))
    encoder = resolve(f"open_clip:local-dir:{source}", device="cpu")
    assert isinstance(encoder, TorchEncoder)
    bundle = export_bundle(encoder, folder / "peer.bundle").path
    return bundle, export_folder(encoder, folder / "transformers", "hf").path


@contextmanager
def infinity(python: Path, model: Path) -> Iterator[Server]:
    """``infinity_emb`` of another interpreter on loopback, ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [str(python.absolute().with_name("infinity_emb")), "v2", "--model-id", str(model)]
    command += ["--served-model-name", NAME, "--engine", "torch", "--device", "cpu", "--dtype", "float32"]
    command += ["--batch-size", str(BATCH), "--host", "127.0.0.1", "--port", str(port), "--url-prefix", "/v1"]
    command += ["--no-bettertransformer", "--log-level", "warning"]
    quiet = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = model.parent / "infinity.log"
    with log.open("w") as written:
        process = subprocess.Popen(command, env={**clean, **quiet}, stdout=written, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"infinity_emb did not start: {log.read_text()[-2000:]}")
            time.sleep(1)
        yield Server(process, "127.0.0.1", port)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _ready(port: int) -> bool:
    for path in ("/health", "/v1/health"):
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    return False


async def arms_of(server: Server, data: Dataset, seconds: float) -> dict[str, Any]:
    """One client; as many as a batch holds; whole batches in one request; and the vectors of the first batch."""
    one, whole = (embedding_requests(data, each, model=NAME) for each in (1, BATCH))
    found: dict[str, Any] = {}
    for name in ("text", "image"):
        found[name] = {
            "one_by_one": await throughput(server, one[name], 1, seconds, 1),
            "limit": await throughput(server, one[name], BATCH, seconds, 1),
            "bulk": await throughput(server, whole[name], 2, seconds, BATCH),
        }
        answer = (await ask_all(server.host, server.port, whole[name][:1]))[0]
        rows = np.stack([np.frombuffer(base64.b64decode(each["embedding"]), np.float32) for each in answer["data"]])
        found[name]["vectors"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


async def beside_infinity(python: Path, data: Dataset, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Both servers in turn, and how near their vectors are: the least cosine of the first batch."""
    bundle, hub = same_weights(folder / "peer", options.smoke)
    index = folder / "peer.index"
    build_index(replace(data, samples=data.samples[:BATCH]), resolve(str(bundle)), index).close()
    found = {}
    say("beside infinity-emb: theirs")
    with infinity(python, hub) as server:
        found["infinity"] = await arms_of(server, data, options.seconds)
    say("beside infinity-emb: ours")
    with served(index, bundle) as server:
        found["clipette"] = await arms_of(server, data, options.seconds)
    told: dict[str, Any] = {"model": "tiny" if options.smoke else LARGE, "version": _version(python)}
    for name in ("text", "image"):
        rows = [found[server][name].pop("vectors") for server in ("clipette", "infinity")]
        ours, theirs = found["clipette"][name], found["infinity"][name]
        ratios = {arm: round(ours[arm]["items_s"] / theirs[arm]["items_s"], 2) for arm in ours}
        cosine = float(np.sum(rows[0] * rows[1], axis=1).min())
        told[name] = {"clipette": ours, "infinity": theirs, "ratio": ratios, "least_cosine": round(cosine, 6)}
    return told


def _version(python: Path) -> str:
    asked = "from importlib.metadata import version; print(version('infinity-emb'))"
    return subprocess.run([str(python), "-c", asked], capture_output=True, text=True, check=True).stdout.strip()

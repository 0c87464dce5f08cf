"""The server under load on loopback: batching against one by one, overload, memory over time, exactness of its search.

One machine: the load's own work and the server share its cores. Vectors and answers are not cached here, every request
is computed. ``limit``: the latency with as many clients as one batch holds, that is the most that is served without a
queue; at three times the rate that was reached there, requests that are accepted should take at most twice as long.
``half``: the latency at half that rate, where next to nothing waits: a ratio to it is told too, and is a harder one,
for at half load batches are small and soon done.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipette.data.dataset import Dataset
from clipette.data.sources import load_data
from clipette.evaluate.retrieval import retrieval
from clipette.export.bundle import export_bundle
from clipette.index.build import build_index
from clipette.io import write_json
from clipette.models.inference import TorchEncoder
from clipette.resolve import resolve
from clipette.runtime import is_bundle
from clipette.types import Encoder
from common import arguments, bench_cache, finish, machine, say, shared_folder
from load import ask_all, closed_loop, cycled, open_loop, post, sampled
from serve_peer import beside_infinity
from serve_server import BATCH, SMALL_CACHES, Server, embedding_requests, served, throughput

KS = (1, 5, 10)
OVERLOAD, HALF, ROUNDS = 3.0, 0.5, 3
UNTRAINED = {
    "dim": 32,
    "image": {"kind": "timm", "name": "test_efficientnet", "size": 48},
    "text": {"kind": "small", "width": 32, "layers": 2, "heads": 2, "tokenizer": "words", "vocabulary": 400},
}


async def batched_arms(server: Server, data: Dataset, seconds: float) -> dict[str, Any]:
    """With batching: one client, as many as a batch holds, whole batches in one request, half load; then overload.

    The limit and the overload are measured in turns, for what is asked is their ratio: the median of ``ROUNDS``.
    """
    one, whole = embedding_requests(data, 1), embedding_requests(data, BATCH)
    found: dict[str, Any] = {}
    for name in ("text", "image"):
        say(f"{name}: with batching")
        arms: dict[str, Any] = {
            "idle": await throughput(server, one[name], 1, seconds, 1),
            "bulk": await throughput(server, whole[name], 2, seconds, BATCH),
        }
        limits, overloads = [], []
        for turn in range(ROUNDS):
            limits.append(await throughput(server, one[name], BATCH, seconds, 1))
            rate = OVERLOAD * limits[-1]["items_s"]
            say(f"{name}: overload {turn + 1} of {ROUNDS}, {rate:.0f} requests a second")
            overloads.append(await arriving(server, one[name], rate, seconds))
        ratios = [over["p99_ms"] / limit["p99_ms"] for over, limit in zip(overloads, limits, strict=True)]
        middle = int(np.argsort(ratios)[len(ratios) // 2])
        arms |= {"limit": limits[middle], "overload": overloads[middle]}
        arms["half"] = await arriving(server, one[name], HALF * arms["limit"]["items_s"], seconds)
        arms["overload"]["p99_over_limit"] = [round(ratio, 3) for ratio in sorted(ratios)]
        arms["overload"]["p99_over_half"] = round(arms["overload"]["p99_ms"] / arms["half"]["p99_ms"], 3)
        found[name] = arms
    return found


async def arriving(server: Server, bodies: Sequence[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """An open loop of ``rate`` requests a second."""
    load = await open_loop(server.host, server.port, cycled(bodies), rate=rate, seconds=2 * seconds)
    return {**load.summary(), "asked_s": round(rate, 2)}


async def unbatched_arms(server: Server, data: Dataset, seconds: float) -> dict[str, Any]:
    """Batches of one: a client alone, and as many clients as a batch would hold."""
    one = embedding_requests(data, 1)
    found = {}
    for name in ("text", "image"):
        say(f"{name}: one by one")
        found[name] = {
            "one_by_one": await throughput(server, one[name], 1, seconds, 1),
            "unbatched": await throughput(server, one[name], BATCH, seconds, 1),
        }
    return found


async def soak(server: Server, data: Dataset, seconds: float) -> dict[str, Any]:
    """Mixed requests for a while; resident memory before, after a tenth, and at the end.

    ``growth``: the slope of a line through the second half, by which a leak differs from what settles.
    """
    one = embedding_requests(data, 1)
    searches = [post("/v1/search", {"text": c, "k": 20}) for s in data.samples[:200] for c in s.captions[:1]]
    mixed = [each for three in zip(one["text"], cycled(one["image"]), cycled(searches), strict=False) for each in three]
    before = server.rss()
    readings: list[float] = []
    watch = asyncio.create_task(sampled(max(0.05, seconds / 200), server.rss, readings))
    load = await closed_loop(server.host, server.port, cycled(mixed), clients=8, seconds=seconds)
    watch.cancel()
    settled, last = readings[len(readings) // 10 :], readings[-max(1, len(readings) // 10) :]
    half = np.asarray(readings[len(readings) // 2 :])
    slope = np.polyfit(np.arange(len(half)), half, 1)[0] if len(half) > 1 else 0.0
    return {
        "seconds": seconds,
        **load.summary(),
        "rss_before_mib": round(before, 1),
        "rss_settled_mib": round(float(np.median(settled[: len(last)])), 1),
        "rss_end_mib": round(float(np.median(last)), 1),
        "rss_most_mib": round(max(readings), 1),
        "growth_mib_per_minute": round(float(slope) * 60 * len(readings) / load.seconds, 3),
    }


async def exactness(server: Server, data: Dataset, encoder: Encoder) -> dict[str, Any]:
    """Text-to-image hit@k through ``/v1/search`` beside the offline evaluation of the same model on the same data."""
    pairs = [(caption, sample.key) for sample in data.samples for caption in sample.captions]
    requests = [post("/v1/search", {"text": caption, "k": max(KS)}) for caption, _ in pairs]
    answers = await ask_all(server.host, server.port, requests, clients=8)
    ranked = [[hit["key"] for hit in answer["hits"]] for answer in answers]
    found = [(keys, key) for keys, (_, key) in zip(ranked, pairs, strict=True)]
    through = {f"hit@{k}": float(np.mean([key in keys[:k] for keys, key in found])) for k in KS}
    measured_ = retrieval(encoder, data).t2i
    offline = {name: float(measured_[name].value) for name in through}
    return {
        "queries": len(pairs),
        "served": through,
        "offline": offline,
        "largest_difference": max(abs(through[name] - offline[name]) for name in through),
    }


def prepared(options: argparse.Namespace, folder: Path) -> tuple[Path, Dataset]:
    """The bundle and the data to serve with."""
    shared = shared_folder()
    if options.data:
        data = load_data(options.data)
    elif shared is not None and not options.smoke:
        data = load_data(f"wds:{shared / 'data' / 'flickr8k-test-000.tar'}")
    else:
        data = load_data("world:test?n=48&size=48&captions=2")
    if options.model is not None:
        if not is_bundle(options.model):
            raise SystemExit(f"{options.model}: no bundle; make one with clipette export")
        return options.model, data
    if shared is not None and not options.smoke:
        from flickr8k import Bench, train

        run = train(Bench(shared, bench_cache("flickr8k"), None, None), "A", 0)
        encoder = resolve(str(run), device="cpu")
    else:
        from clipette.models.spec import ModelSpec
        from clipette.models.students import build_model

        words = [caption for sample in data.samples for caption in sample.captions]
        spec = ModelSpec.model_validate(UNTRAINED)
        encoder = TorchEncoder(build_model(spec, captions=words), name="untrained", device="cpu")
    assert isinstance(encoder, TorchEncoder)
    return export_bundle(encoder, folder / "student.bundle").path, data


async def exactness_of(index: Path, model: Path, data: Dataset) -> dict[str, Any]:
    """``exactness`` of another index of the same data."""
    with served(index, model) as server:
        return await exactness(server, data, resolve(str(model)))


async def measured(index: Path, model: Path, data: Dataset, options: argparse.Namespace) -> dict[str, Any]:
    """Every arm."""
    with served(index, model, "batch_size=1", "batch_wait=0") as server:
        found = await unbatched_arms(server, data, options.seconds)
    with served(index, model) as server:
        for name, arms in (await batched_arms(server, data, options.seconds)).items():
            found[name] |= arms
        say("exactness")
        exact = await exactness(server, data, resolve(str(model)))
    with served(index, model, *SMALL_CACHES) as server:
        say(f"soaking for {options.soak:g} s")
        memory = await soak(server, data, options.soak)
    for arms in found.values():
        alone = arms["one_by_one"]["items_s"]
        arms["gain"] = {name: round(arms[name]["items_s"] / alone, 2) for name in ("unbatched", "limit", "bulk")}
    return {**found, "memory": memory, "exactness": exact}


def main() -> None:
    parser = arguments(__doc__, "bench-serve")
    parser.add_argument("--model", type=Path, help="a bundle; by default Flickr8k's student A, exported")
    parser.add_argument("--data", help="captioned images; by default Flickr8k's test split")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each arm")
    parser.add_argument("--soak", type=float, default=600.0, help="seconds of mixed load while memory is watched")
    parser.add_argument("--infinity", type=Path, help="an interpreter that has infinity-emb: both serve one model")
    options = parser.parse_args()
    if options.smoke:
        options.seconds, options.soak = 1.0, 2.0
    with tempfile.TemporaryDirectory(prefix="clipette-bench-serve-") as name:
        folder = Path(name)
        model, data = prepared(options, folder)
        say(f"indexing {len(data)} images")
        encoder = resolve(str(model))
        build_index(data, encoder, folder / "my.index").close()
        found: dict[str, Any] = {"machine": machine(), "model": model.name, "data": data.name, "batch": BATCH}
        found |= asyncio.run(measured(folder / "my.index", model, data, options))
        write_json(options.out / "summary.json", found)
        say("approximate search: a vector store of the same rows")
        with build_index(data, encoder, folder / "approximate.index", exact_rows=0) as collection:
            effort = collection.facts["recall"]
        found["approximate"] = asyncio.run(exactness_of(folder / "approximate.index", model, data)) | {"recall": effort}
        write_json(options.out / "summary.json", found)
        if options.infinity:
            found["infinity"] = asyncio.run(beside_infinity(options.infinity, data, folder, options))
    finish(found, options.out)


if __name__ == "__main__":
    main()

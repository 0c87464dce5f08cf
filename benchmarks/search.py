"""Vector search side by side: Clipette's index, bare LanceDB, FAISS HNSW and FAISS Flat on the same vectors in one run.

Rows are clustered synthetic vectors with real CLIP image vectors mixed in (where the shared data are); queries are half
synthetic, half real CLIP text vectors. Each arm is a process of its own, so that its peak memory is its own. Of bare
LanceDB and FAISS HNSW a sweep of settings is timed; compared is the fastest that finds as much as Clipette does.
A size that is finished is kept (``CLIPETTE_CACHE``) and read again, so that the whole may run in pieces; its arms are
always of one run. ``python benchmarks/search.py --rows 100000 1000000 --out DIR`` prints one JSON object as its last
line; ``--again`` measures anew.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = str(Path(__file__).resolve().parents[1] / "src")
sys.path.insert(0, SOURCE)

from clipette.index.filters import BUCKET, Compare, Filter  # noqa: E402
from clipette.store.rows import hash_keys  # noqa: E402
from clipette.types import Floats  # noqa: E402
from search_vectors import CHUNK, FILTERS, K, draw, keys_of, real_vectors, truth  # noqa: E402

WARM, ROUNDS = 10, 3
EXACT_ROWS = 50_000
EFFORTS = (32, 48, 64, 96, 128, 192, 256, 512)
# Recall that counts as equal: three times the standard error of 200 queries' recall@10 at 0.98.
EQUAL = 0.003
Found = Callable[[Floats], Sequence[str]]


# ---------------------------------------------------------------- measuring


def timed(ask: Found, queries: Floats) -> tuple[list[Sequence[str]], dict[str, float]]:
    """What each query found, asked one by one, and how long that took in milliseconds."""
    for query in queries[:WARM]:
        ask(query)
    found, seconds = [], []
    for query in queries:
        begun = time.perf_counter()
        found.append(ask(query))
        seconds.append(time.perf_counter() - begun)
    return found, _percentiles(seconds)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    return {"p50_ms": round(float(p50), 3), "p99_ms": round(float(p99), 3)}


def measured(work: Path, ask: Callable[[str], Found], names: Sequence[str] = tuple(FILTERS)) -> dict[str, Any]:
    """Per filter: recall@10 against the truth, and times. ``ask(name)`` searches under that filter."""
    queries = np.load(work / "queries.npy")
    told: dict[str, Any] = {}
    with np.load(work / "truth.npz") as exact:
        for name in names:
            found, times = timed(ask(name), queries)
            wanted = [{f"image/{row:08d}" for row in rows if row >= 0} for rows in exact[name].tolist()]
            shares = [len(set(some) & best) / max(1, len(best)) for some, best in zip(found, wanted, strict=True)]
            told[name] = {"recall@10": round(float(np.mean(shares)), 4), **times}
    return told


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- the arms


def ours(work: Path, recall: float) -> dict[str, Any]:
    """Clipette's index: rows written, vector store made, effort raised until the asked recall is met."""
    from clipette.index import Row, create
    from clipette.index.recall import raise_until

    vectors, folder = np.load(work / "rows.npy", mmap_mode="r"), work / "ours.index"
    keys, begun = keys_of(len(vectors)), time.perf_counter()
    with create(folder, space="bench", dim=vectors.shape[1], exact_rows=EXACT_ROWS, ready=False) as index:
        for start in range(0, len(keys), CHUNK):
            some = keys[start : start + CHUNK]
            index.add_rows([Row(key, "image") for key in some], vectors[start : start + CHUNK])
        wrote = time.perf_counter() - begun
        index.finish()
        build = time.perf_counter() - begun
        raised = raise_until(index, recall)
        tuned = time.perf_counter() - begun - build

        def ask(name: str) -> Found:
            where = None if name == "all" else Filter(Compare(BUCKET, "<", FILTERS[name]))
            return lambda query: index.search_vectors(query[None], K, where).keys[0]

        found = measured(work, ask)
    told = {"rows_s": round(wrote, 1), "build_s": round(build, 1), "tuning_s": round(tuned, 1), "said": raised}
    return {**told, "bytes": size_of(folder), **found}


def lancedb(work: Path, recall: float) -> dict[str, Any]:
    """LanceDB as its documentation says: IVF_HNSW_SQ with one partition, the filter before the search; ``ef`` swept."""
    import lancedb as library
    import pyarrow as pa
    from lancedb.index import HnswSq

    vectors, folder = np.load(work / "rows.npy", mmap_mode="r"), work / "bare.lance"
    keys, dim = keys_of(len(vectors)), vectors.shape[1]
    buckets = (hash_keys(keys) % 1000).astype(np.int16)
    begun = time.perf_counter()
    fields = [("key", pa.string()), ("bucket", pa.int16()), ("vector", pa.list_(pa.float32(), dim))]
    table = library.connect(str(folder)).create_table("t", schema=pa.schema(fields))
    for start in range(0, len(keys), CHUNK):
        some = slice(start, start + CHUNK)
        flat = pa.array(np.ascontiguousarray(vectors[some]).reshape(-1))
        lists = pa.FixedSizeListArray.from_arrays(flat, dim)
        table.add(pa.table([pa.array(keys[some]), pa.array(buckets[some]), lists], schema=pa.schema(fields)))
    table.create_index("vector", config=HnswSq(distance_type="cosine", num_partitions=1))
    table.optimize()
    build = time.perf_counter() - begun

    sweep = {f"ef={ef}, refine={refine}": measured(work, _bare(table, ef, refine), ["all"])["all"]
             for refine in (1, 3) for ef in EFFORTS}  # fmt: skip
    chosen = _fastest(sweep, recall)
    effort, refine = (int(part.partition("=")[2]) for part in chosen.split(", "))
    (work / "bare.json").write_text(json.dumps({"effort": effort, "refine": refine}))
    return {
        "build_s": round(build, 1), "bytes": size_of(folder), "setting": chosen, "sweep": sweep,
        **measured(work, _bare(table, effort, refine)),
    }  # fmt: skip


def _bare_table(work: Path) -> Any:
    import lancedb as library

    return library.connect(str(work / "bare.lance")).open_table("t")


def _bare(table: Any, effort: int, refine: int) -> Callable[[str], Found]:
    """Searches of the bare table, by filter."""

    def ask(name: str) -> Found:
        def one(query: Floats) -> Sequence[str]:
            asked = table.search(query).distance_type("cosine").limit(K).select(["key", "_distance"]).ef(effort)
            if refine > 1:
                asked = asked.refine_factor(refine)
            if name != "all":
                asked = asked.where(f"bucket < {FILTERS[name]}", prefilter=True)
            return list(asked.to_arrow().column("key").to_pylist())

        return one

    return ask


def _fastest(sweep: Mapping[str, Mapping[str, float]], recall: float) -> str:
    """The fastest setting whose recall is not below ``recall``; where none reaches it, the one nearest to it."""
    good = [name for name, told in sweep.items() if told["recall@10"] >= recall - EQUAL]
    if good:
        return min(good, key=lambda name: sweep[name]["p50_ms"])
    return max(sweep, key=lambda name: sweep[name]["recall@10"])


def faiss_hnsw(work: Path, recall: float) -> dict[str, Any]:
    """FAISS HNSW32, efConstruction 80; filters by an ``IDSelectorBatch``; ``efSearch`` swept."""
    import faiss

    vectors = np.load(work / "rows.npy", mmap_mode="r")
    buckets = hash_keys(keys_of(len(vectors))) % 1000
    begun = time.perf_counter()
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 80
    for start in range(0, len(vectors), CHUNK):
        index.add(np.ascontiguousarray(vectors[start : start + CHUNK]))
    build = time.perf_counter() - begun
    selectors = {name: None if n == 1000 else faiss.IDSelectorBatch(np.flatnonzero(buckets < n))
                 for name, n in FILTERS.items()}  # fmt: skip

    def asking(effort: int) -> Callable[[str], Found]:
        def ask(name: str) -> Found:
            sel = selectors[name]
            how = faiss.SearchParametersHNSW(efSearch=effort) if sel is None else faiss.SearchParametersHNSW(
                efSearch=effort, sel=sel
            )  # fmt: skip
            return lambda query: [f"image/{row:08d}" for row in index.search(query[None], K, params=how)[1][0]]

        return ask

    sweep = {str(effort): measured(work, asking(effort), ["all"])["all"] for effort in EFFORTS}
    chosen = _fastest(sweep, recall)
    faiss.write_index(index, str(work / "hnsw.faiss"))
    return {
        "build_s": round(build, 1), "bytes": (work / "hnsw.faiss").stat().st_size, "setting": f"ef={chosen}",
        "sweep": sweep, **measured(work, asking(int(chosen))),
    }  # fmt: skip


def faiss_flat(work: Path, recall: float) -> dict[str, Any]:
    """FAISS Flat: every row compared."""
    import faiss

    vectors = np.load(work / "rows.npy", mmap_mode="r")
    buckets = hash_keys(keys_of(len(vectors))) % 1000
    begun = time.perf_counter()
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), CHUNK):
        index.add(np.ascontiguousarray(vectors[start : start + CHUNK]))
    build = time.perf_counter() - begun

    def ask(name: str) -> Found:
        how = faiss.SearchParameters()
        if name != "all":
            how = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.flatnonzero(buckets < FILTERS[name])))
        return lambda query: [f"image/{row:08d}" for row in index.search(query[None], K, params=how)[1][0]]

    return {"build_s": round(build, 1), "bytes": int(vectors.nbytes), **measured(work, ask)}


def duel(work: Path, recall: float) -> dict[str, Any]:
    """Clipette's index and the bare table that stand in ``work``, in one process, query by query in turns.

    Times of two processes minutes apart tell more about the machine than about them.
    """
    from clipette.index import open_index

    setting = json.loads((work / "bare.json").read_text())
    queries = np.load(work / "queries.npy")
    table = _bare_table(work)
    with open_index(work / "ours.index") as index:
        arms: dict[str, Found] = {
            "clipette": lambda query: index.search_vectors(query[None], K).keys[0],
            "lancedb": _bare(table, setting["effort"], setting["refine"])("all"),
        }
        for ask in arms.values():
            for query in queries[:WARM]:
                ask(query)
        seconds: dict[str, list[float]] = {name: [] for name in arms}
        for turn in range(ROUNDS):
            for number, query in enumerate(queries):
                names = list(arms) if (turn + number) % 2 else list(arms)[::-1]
                for name in names:
                    begun = time.perf_counter()
                    arms[name](query)
                    seconds[name].append(time.perf_counter() - begun)
    told: dict[str, Any] = {name: _percentiles(values) for name, values in seconds.items()}
    told["p50_ratio"] = round(told["clipette"]["p50_ms"] / told["lancedb"]["p50_ms"], 3)
    return told


ARMS: dict[str, Callable[[Path, float], dict[str, Any]]] = {
    "clipette": ours, "lancedb": lancedb, "faiss_hnsw": faiss_hnsw, "faiss_flat": faiss_flat, "duel": duel,
}  # fmt: skip


# ---------------------------------------------------------------- the runs


def run_arm(arm: str, work: Path, recall: float) -> dict[str, Any]:
    """One arm in a process of its own. ``peak_bytes``: the most memory it held, mapped files included."""
    command = [sys.executable, __file__, "--arm", arm, str(work), str(recall), str(EXACT_ROWS)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": SOURCE}, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"the arm {arm} failed with {done.returncode}: {done.stdout[-1000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def one_size(rows: int, dim: int, queries: int, recall: float, seed: int, root: Path) -> dict[str, Any]:
    """All arms on one collection."""
    from common import say

    work = Path(tempfile.mkdtemp(prefix=f"rows{rows}-", dir=root))
    try:
        real = draw(work, rows, dim, queries, seed)
        truth(work)
        told: dict[str, Any] = {"real_vectors": real}
        for arm in ("clipette", "faiss_flat", *(("lancedb", "duel", "faiss_hnsw") if rows > EXACT_ROWS else ())):
            reached = told["clipette"]["all"]["recall@10"] if "clipette" in told else recall
            told[arm] = run_arm(arm, work, reached)
            shown = {name: told[arm][name] for name in FILTERS} if arm != "duel" else told[arm]
            say(f"{rows:,} rows, {arm}: " + json.dumps(shown))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    mine = told["clipette"]["all"]["p50_ms"]
    told["ratios"] = {
        f"p50 clipette/{arm}": round(mine / told[arm]["all"]["p50_ms"], 3)
        for arm in ARMS
        if arm in told and arm not in ("clipette", "duel")
    }
    if "duel" in told:
        # In turns, so that it is not the machine's moods that are compared.
        told["ratios"]["p50 clipette/lancedb"] = told["duel"]["p50_ratio"]
    return told


def _set_exact_rows(count: int) -> None:
    global EXACT_ROWS
    EXACT_ROWS = count


def main(given: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if given is None else given)
    if words[:1] == ["--arm"]:
        _set_exact_rows(int(words[4]))
        found = ARMS[words[1]](Path(words[2]), float(words[3]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**found, "peak_bytes": peak}))
        return 0
    from clipette.io import digest_json, write_json
    from common import arguments, bench_cache, finish, machine

    parser = arguments(__doc__, "bench-search")
    parser.add_argument("--rows", type=int, nargs="+", default=[EXACT_ROWS, 100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--recall", type=float, default=0.98, help="recall@10 that Clipette's index is asked for")
    parser.add_argument("--work", type=Path, default=None, help="where the vectors and indexes are kept meanwhile")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="measure also what is kept")
    options = parser.parse_args(words)
    sizes, dim, queries = options.rows, options.dim, options.queries
    if options.smoke:
        sizes, dim, queries = [1500], 64, 20
        _set_exact_rows(1000)
    where = {"cpu": machine()["cpu"], "cores": machine()["cores"], **_versions()}
    told = {}
    for rows in sorted(sizes):
        what = [rows, dim, queries, options.recall, options.seed, EXACT_ROWS, real_vectors(dim) is not None, where]
        kept = bench_cache("search") / f"rows{rows}-{digest_json(what)[:8]}.json"
        if kept.is_file() and not options.again:
            told[str(rows)] = json.loads(kept.read_text())
            continue
        with tempfile.TemporaryDirectory(prefix="clipette-bench-search-", dir=options.work) as root:
            measured_ = one_size(rows, dim, queries, options.recall, options.seed, Path(root))
        told[str(rows)] = {**measured_, "machine": machine()}
        write_json(kept, told[str(rows)])
    summary = {"rows": told, "dim": dim, "queries": queries, "asked_recall": options.recall, "seed": options.seed}
    finish({**summary, "libraries": _versions(), "machine": machine()}, options.out)
    return 0


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("lancedb", "faiss-cpu", "numpy", "pyarrow")}


if __name__ == "__main__":
    sys.exit(main())

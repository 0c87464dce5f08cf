from __future__ import annotations

import errno
import itertools
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

import clipette
from clipette.cli.app import VERBS, app, main
from clipette.errors import ConfigError, InternalError, StoreError

RUNNER = CliRunner()
PACKAGE_PARENT = str(Path(clipette.__file__).parents[1])


class FakeVerbs(ModuleType):
    """Stands for ``clipette.verbs``: records calls, and answers or raises what a test wants."""

    def __init__(self) -> None:
        super().__init__("clipette.verbs")
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.answer: Any = Path("somewhere")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def verb(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return verb


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> FakeVerbs:
    fake = FakeVerbs()
    # Serving needs no PyTorch, so its verbs are not among those that do.
    for name in ("verbs", "serving"):
        monkeypatch.setitem(sys.modules, f"clipette.{name}", fake)
        monkeypatch.setattr(clipette, name, fake, raising=False)
    return fake


def python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": PACKAGE_PARENT, **environment}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)


# ---------------------------------------------------------------- verbs


def test_pour_passes_everything_on(verbs: FakeVerbs) -> None:
    line = (
        "pour runs/t --data wds:a.tar --data folder:b --out s --no-captions --no-classes --templates single --views 3 "
        "--view-policy '{scale: [0.3, 1.0], flip: 0}' --batch-size 8 --device cpu --precision bf16 --max-failures 0.2 "
        "--seed 4 --text-corpus text:x.txt --for r.yaml"
    )
    assert main(shlex.split(line)) == 0
    assert verbs.calls == [
        (
            "pour",
            ("runs/t", ["wds:a.tar", "folder:b"], Path("s")),
            {
                "captions": False,
                "classes": False,
                "templates": "single",
                "recipe": "r.yaml",
                "views": 3,
                "view_policy": {"scale": [0.3, 1.0], "flip": 0},
                "batch_size": 8,
                "device": "cpu",
                "precision": "bf16",
                "max_failures": 0.2,
                "seed": 4,
                "text_corpus": ["text:x.txt"],
            },
        )
    ]


def test_pretrain_passes_everything_on(verbs: FakeVerbs, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.answer = Path("runs/x")
    assert main(shlex.split("pretrain r.yaml --set a.b=1 --set c=2 --data d --dev e --out runs/x --no-resume")) == 0
    name, args, options = verbs.calls[0]
    assert (name, args) == ("pretrain", ("r.yaml",))
    assert options == {
        "overrides": ["a.b=1", "c=2"],
        "data": "d",
        "dev": "e",
        "out": Path("runs/x"),
        "resume": False,
        "device": None,
    }
    assert capsys.readouterr().out == "runs/x\n"


def test_distill_passes_everything_on(verbs: FakeVerbs) -> None:
    line = "distill r.yaml --teacher t --student s --store st --teacher-online --budget 1h --set k=v --out o --dev d"
    assert main(shlex.split(line)) == 0
    _, args, options = verbs.calls[0]
    assert args == ("r.yaml",)
    assert options == {
        "teacher": "t",
        "data": None,
        "dev": "d",
        "student": "s",
        "store": Path("st"),
        "teacher_online": True,
        "budget": "1h",
        "overrides": ["k=v"],
        "out": Path("o"),
        "resume": True,
        "device": None,
    }


@pytest.mark.parametrize(
    ("line", "verb", "expected"),
    [
        (
            "evaluate m --data a --data b --teacher t --descriptions d.json --corruptions --out o",
            "evaluate",
            {"teacher": "t", "descriptions": Path("d.json"), "corruptions": True, "out": Path("o"), "batch_size": 64},
        ),
        ("compare a b c --data x --out o", "compare", {"out": Path("o"), "templates": "auto"}),
        (
            "classify p.jpg --model m --labels 'dog, cat' --labels horse",
            "classify",
            {"labels": ["dog", "cat", "horse"], "question": None, "answers": [], "out": None},
        ),
        (
            "classify p.jpg --model m --question 'what is it doing?' --answers running,sleeping --out b.png",
            "classify",
            {"labels": [], "question": "what is it doing?", "answers": ["running", "sleeping"], "out": Path("b.png")},
        ),
    ],
)
def test_measuring_verbs_end_with_one_json_line(
    verbs: FakeVerbs, capsys: pytest.CaptureFixture[str], line: str, verb: str, expected: dict[str, object]
) -> None:
    verbs.answer = {"accuracy": 0.5, "name": "né"}
    assert main(shlex.split(line)) == 0
    name, _, options = verbs.calls[0]
    assert name == verb
    assert expected.items() <= options.items()
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == verbs.answer


def test_classify_gives_model_and_image_in_order(verbs: FakeVerbs) -> None:
    verbs.answer = {}
    main(["classify", "p.jpg", "--model", "m", "--labels", "a"])
    assert verbs.calls[0][1] == ("m", Path("p.jpg"))


def test_prune_passes_everything_on(verbs: FakeVerbs) -> None:
    verbs.answer = {}
    line = "prune m -o o --macs 0.3 --size 160 --calibrate c --data d --towers image --by norm --no-gate --milder"
    assert main([*line.split(), "--depth", "0.9", "--width", "0.8", "--hidden", "0.7", "--cosine", "0.5"]) == 0
    name, args, options = verbs.calls[0]
    assert (name, args) == ("prune", ("m", Path("o")))
    assert options == {
        "depth": 0.9,
        "width": 0.8,
        "hidden": 0.7,
        "macs": 0.3,
        "size": 160,
        "towers": ["image"],
        "by": "norm",
        "data": "d",
        "calibrate": "c",
        "gate": False,
        "milder": True,
        "cosine": 0.5,
        "loss": 0.01,
    }


def test_demo_has_defaults(verbs: FakeVerbs) -> None:
    verbs.answer = {}
    assert main(["demo"]) == 0
    assert verbs.calls == [("demo", (Path("runs/demo"), 0), {})]


def test_a_view_policy_that_is_no_mapping_is_refused(verbs: FakeVerbs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pour", "t", "--data", "d", "--out", "o", "--view-policy", "0.5"]) == 2
    assert "--view-policy '0.5': expected keys and values" in capsys.readouterr().err
    assert not verbs.calls


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_has_help_and_an_example_that_parses(
    verb: str, verbs: FakeVerbs, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = RUNNER.invoke(app, [verb, "--help"]).output
    assert "Examples:\n" in shown
    examples = VERBS[verb][1].splitlines()
    assert all(example in shown for example in examples)
    if verb in ("render", "recipes", "doctor", "store"):  # these do real work when run
        return
    verbs.answer = {}
    for example in examples:
        words = shlex.split(example)
        assert main(words[words.index("clipette") + 1 :]) == 0, example
    assert len(verbs.calls) == len(examples)


def test_examples_set_keys_that_recipes_have() -> None:
    from clipette.config import _places, dotted
    from clipette.train.recipe import Recipe

    words = [word for _, examples in VERBS.values() for word in shlex.split(examples)]
    keys = {after.partition("=")[0] for word, after in itertools.pairwise(words) if word == "--set"}
    assert keys
    assert keys <= {dotted(place) for place in _places(Recipe)}


def test_version_is_the_projects(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["clipette", clipette.__version__]


def test_help_loads_nothing_heavy() -> None:
    done = python(
        "import sys; from clipette.cli import main; code = main(['pour', '--help']);"
        "heavy = {'torch', 'numpy', 'pyarrow', 'PIL', 'rich', 'yaml'} & set(sys.modules);"
        "print(sorted(heavy), code)"
    )
    assert done.stdout.splitlines()[-1] == "[] 0", done.stdout + done.stderr


def test_a_module_can_be_run_for_torchrun() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clipette", "distill", "--nonsense"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
    )
    assert done.returncode == 2
    assert "--nonsense" in done.stderr


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("r.yaml:3: unknown key 'lrr'"), 2, "clipette: r.yaml:3: unknown key 'lrr'"),
        (StoreError("stores/t: of another teacher"), 2, "clipette: stores/t: of another teacher"),
        (InternalError("row lost"), 1, "internal error: row lost"),
        (OSError(errno.ENOSPC, "No space left on device", "s/000.npy"), 2, "the disk is full while writing s/000.npy"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/x"), 2, "/proc/x: No such file or"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/x"), 2, "/root/x: permission denied"),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 2, "pip install 'clipette[train]'"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_one_message_and_a_code(
    verbs: FakeVerbs, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    verbs.answer = error
    assert main(["demo"]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("line", [["--debug", "demo"], ["demo", "--debug"]])
def test_debug_shows_the_traceback(verbs: FakeVerbs, capsys: pytest.CaptureFixture[str], line: list[str]) -> None:
    verbs.answer = ConfigError("no")
    assert main(line) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("clipette: no\n")


def test_a_bug_shows_its_traceback_once(verbs: FakeVerbs, capsys: pytest.CaptureFixture[str]) -> None:
    verbs.answer = ZeroDivisionError("division by zero")
    assert main(["demo"]) == 1
    err = capsys.readouterr().err
    assert err.count("Traceback") == 1
    assert "please report" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["distil"], "distill"),
        (["pour", "t", "--out", "o"], "--data"),
        (["pour", "t", "--data", "d", "--out", "o", "--views", "-1"], "--views"),
        (["demo", "--sede", "3"], "--seed"),
    ],
)
def test_wrong_usage_is_explained(capsys: pytest.CaptureFixture[str], line: list[str], message: str) -> None:
    assert main(line) == 2
    assert message in capsys.readouterr().err


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    """A real ENOSPC, from the device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    done = python(
        "import sys, types; import clipette; fake = types.ModuleType('clipette.verbs')\n"
        "def demo(out, seed):\n    open('/dev/full', 'wb', buffering=0).write(b'x')\n"
        "fake.demo = demo; sys.modules['clipette.verbs'] = clipette.verbs = fake\n"
        "from clipette.cli import main; sys.exit(main(['demo']))"
    )
    assert done.returncode == 2
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_leaves_is_no_error() -> None:
    program = "from clipette.cli import main; import sys; sys.exit(main(['doctor', '--help']))"
    done = subprocess.run(
        f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} | head -c 1",
        shell=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PACKAGE_PARENT},
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


# ---------------------------------------------------------------- recipes, doctor, render


def test_recipes_lists_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from clipette import config

    (tmp_path / "clip.yaml").write_text("about: CLIP's own recipe\nsteps: 3\n")
    monkeypatch.setattr(config, "RECIPES", tmp_path)
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.split(maxsplit=1) == ["clip", "CLIP's own recipe\n"]
    assert main(["recipes", "clip"]) == 0
    assert capsys.readouterr().out == "about: CLIP's own recipe\nsteps: 3\n"
    assert main(["recipes", "clp"]) == 2
    assert "did you mean 'clip'?" in capsys.readouterr().err


def test_every_shipped_recipe_says_what_it_is() -> None:
    from clipette.config import describe_recipes

    assert all(describe_recipes().values()), describe_recipes()


def test_doctor_speaks_lines_json_and_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cores"]["status"] == "ok"
    assert main(["doctor", str(tmp_path / "absent")]) == 1
    assert "no such folder" in capsys.readouterr().out


def test_render_writes_tars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "world"
    assert main(["render", str(out), "--split", "test", "--n", "5", "--size", "16"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert written
    assert all(path.suffix == ".tar" and path.parent == out for path in written)
    assert main(["render", str(out), "--split", "tets"]) == 2
    assert "did you mean 'test'" in capsys.readouterr().err


def test_store_shows_checks_and_exchanges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.store.helpers import small_store

    path = small_store(tmp_path / "s")
    assert main(["store", str(path), "--verify", "--export-clip-retrieval", str(tmp_path / "emb")]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert shown["rows"]["texts"] == 2
    assert shown["failures"] == []
    assert (tmp_path / "emb" / "img_emb" / "img_emb_0.npy").is_file()
    assert main(["store", str(tmp_path / "back"), "--import-clip-retrieval", str(tmp_path / "emb")]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]["images"] == shown["rows"]["images"]

    assert (shown["finished"], shown["shards"]["missing"]) == (True, 0)
    (path / "manifest.json").unlink()
    assert main(["store", str(path)]) == 0
    assert not json.loads(capsys.readouterr().out)["finished"]
    assert main(["store", str(path), "--export-clip-retrieval", str(tmp_path / "half")]) == 2
    assert "has not finished" in capsys.readouterr().err

    shard = path / "images" / "000001.npy"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["store", str(path)]) == 2
    assert "clipette store DIR --repair" in capsys.readouterr().err
    assert main(["store", str(path), "--repair"]) == 0
    assert "dropped 1 damaged shard" in capsys.readouterr().out
    assert main(["store", str(tmp_path / "none")]) == 2

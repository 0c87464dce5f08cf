"""One place that knows what a reference means."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.models.encoders import write_bert
from tests.train import tiny

from clipette.errors import ClipetteError, ConfigError
from clipette.models.inference import TorchEncoder
from clipette.models.saved import save_model
from clipette.models.stored import StoredEncoder
from clipette.resolve import KINDS, resolve
from clipette.tasks.pour import PourPlan, pour


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of every kind, without a network."""
    base = tmp_path_factory.mktemp("references")
    teacher = tiny.teacher()
    save_model(teacher.model, base / "run" / "model", name="teacher")
    pour(teacher, tiny.dataset(8), base / "store", PourPlan(), progress=False)
    np.savez(base / "t.npz", x=np.eye(3, dtype=np.float32), k=np.array(["a", "b", "c"]))
    np.save(base / "t.npy", np.eye(3, dtype=np.float32))
    (base / "keys.txt").write_text("a\nb\nc\n")
    write_bert(base / "bert")
    (base / "pair.yaml").write_text(
        "dim: 6\nimage: {kind: timm, name: test_resnet, size: 32}\ntext: {kind: hf, path: bert}\n"
    )
    return base


@pytest.mark.parametrize(
    ("reference", "kind", "dim"),
    [
        ("{}/run", TorchEncoder, 24),
        ("{}/run/model", TorchEncoder, 24),
        ("run:{}/run", TorchEncoder, 24),
        ("{}/store", StoredEncoder, 24),
        ("stored:{}/store", StoredEncoder, 24),
        ("stored:{}/t.npz?images=x&image_keys=k", StoredEncoder, 3),
        ("stored:{}/t.npy?keys={}/keys.txt", StoredEncoder, 3),
        ("{}/pair.yaml", TorchEncoder, 6),
        ("lit:{}/pair.yaml", TorchEncoder, 6),
        ("open_clip:test-tiny", None, 0),
    ],
)
def test_every_kind_of_reference(folder: Path, reference: str, kind: type, dim: int) -> None:
    if kind is None:
        # The name reaches open_clip, which does not know it.
        with pytest.raises(ClipetteError, match="test-tiny"):
            resolve(reference, device="cpu")
        return
    encoder = resolve(reference.replace("{}", str(folder)), device="cpu")
    assert isinstance(encoder, kind)
    assert encoder.dim == dim


def test_a_run_is_what_was_saved(folder: Path) -> None:
    encoder, teacher = resolve(str(folder / "run"), device="cpu"), tiny.teacher()
    assert (encoder.name, encoder.space) == ("teacher", teacher.space)
    texts = ["a red picture", "another"]
    np.testing.assert_array_equal(encoder.encode_texts(texts), teacher.encode_texts(texts))


def test_a_path_is_a_reference_too(folder: Path) -> None:
    # What `clipette.distill` returns goes into `clipette.load` as it is.
    assert resolve(folder / "run", device="cpu").space == resolve(str(folder / "run"), device="cpu").space


def test_a_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert resolve("~/run", device="cpu").dim == 24
    assert resolve("lit:~/pair.yaml", device="cpu").dim == 6
    assert resolve("run:~/run", device="cpu").dim == 24


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("openclip:ViT-B-16", "unknown kind 'openclip'; did you mean 'open_clip:'"),
        ("quux:thing", "unknown kind 'quux'; known kinds: open_clip, hf, lit, stored, run"),
        ("./no/such/run", "'./no/such/run': no such folder; a run directory, or one of open_clip:, hf:"),
        ("", "no such folder"),
        ("lit:absent.yaml", r"absent\.yaml: no such file"),
        ("stored:absent", "no stored embeddings there"),
    ],
)
def test_what_is_no_reference_is_refused_in_words(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(reference, device="cpu")


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClipetteError, match=r"holds no model: model\.json is missing"):
        resolve(str(tmp_path))


def test_a_precision_reaches_the_model(folder: Path) -> None:
    encoder = resolve(str(folder / "run"), device="cpu", precision="bf16")
    assert isinstance(encoder, TorchEncoder)
    assert encoder.precision == "bf16"


def test_kinds_are_loaded_only_when_asked_for(folder: Path, project: Path) -> None:
    """Stored embeddings need no PyTorch; the list of kinds needs nothing."""
    program = (
        "import sys; sys.path.insert(0, 'src'); from clipette.resolve import resolve;"
        f"assert resolve('stored:{folder}/store').dim == 24; assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(KINDS) == {"open_clip", "hf", "lit", "stored", "run"}

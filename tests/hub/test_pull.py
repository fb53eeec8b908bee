"""Downloads against a real server on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mdi.errors import HubError, ModelError
from mdi.hub.cache import HubCache
from mdi.hub.client import Hub
from mdi.hub.pull import obtain, pull
from mdi.hub.reference import parse
from mdi.model.quantise import Quant
from mdi.model.source import Model, resolve
from tests.checkpoints import edit_json
from tests.hub_server import Fault, HubServer

from .conftest import NAME, Puller

NEEDED = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"}


def names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


def test_a_model_comes_whole_and_runs_as_from_its_own_directory(puller: Puller, checkpoint: Path) -> None:
    path = puller()
    for name in names(path):
        assert (path / name).read_bytes() == (checkpoint / name).read_bytes()
    model = Model(resolve(str(path)))
    assert model.source.name == "tiny"
    assert model.weights(Quant.AUTO).fingerprint() == Model(resolve(str(checkpoint))).weights(Quant.AUTO).fingerprint()
    assert model.encode_chat([]) is not None


def test_only_what_is_needed_comes(puller: Puller, checkpoint: Path) -> None:
    got = names(puller())
    shards = {name for name in got if name.endswith(".safetensors")}
    assert shards == {path.name for path in checkpoint.glob("model-*.safetensors")}
    assert got - shards == NEEDED & names(checkpoint)
    asked = {asked.path.rpartition("/")[2] for asked in puller.server.asked}
    assert not asked & {"consolidated.safetensors", "README.md", "consolidated.00.pth", "pytorch_model-00001-of-00001.bin"}


def test_every_byte_comes_once(puller: Puller) -> None:
    path = puller()
    files = [path / name for name in names(path)]
    content = [asked for asked in puller.server.asked if not asked.path.startswith("/api/models") and asked.sent >= 0]
    assert sum(asked.sent for asked in content) == sum(file.stat().st_size for file in files)
    assert len(content) == len(files)


def test_progress_counts_files_and_bytes_over_the_whole_download(puller: Puller) -> None:
    path = puller()
    total = sum((path / name).stat().st_size for name in names(path))
    seen = puller.progress
    assert [row.bytes_done for row in seen] == sorted(row.bytes_done for row in seen)
    assert {row.n_bytes for row in seen} == {total}
    assert (seen[0].bytes_done, seen[0].files_done) == (0, 0)
    assert (seen[-1].bytes_done, seen[-1].files_done) == (total, len(names(path)))


def test_a_second_pull_asks_only_whether_there_is_something_newer(puller: Puller) -> None:
    path = puller()
    puller.server.asked.clear()
    assert puller() == path
    assert {asked.path.rpartition("/")[2] for asked in puller.server.asked} <= {
        "main",
        "config.json",
        "model.safetensors.index.json",
    }
    puller.server.asked.clear()
    assert obtain(parse(NAME), puller.cache, puller.progress.append, offline=True) == path
    assert puller.server.asked == []


def test_a_new_commit_brings_only_what_changed(puller: Puller, checkpoint: Path) -> None:
    old = puller()
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()}
    puller.server.publish(NAME, files | {"generation_config.json": b'{"bos_token_id": 0, "eos_token_id": 2}'})
    puller.server.asked.clear()
    new = puller()
    assert new != old
    assert [asked.path for asked in puller.server.asked if asked.host == "cdn"] == []
    assert puller.cache.find(parse(NAME)) == new
    assert json.loads((new / "generation_config.json").read_text())["eos_token_id"] == 2


def test_a_revision_and_a_commit_can_be_asked_for(puller: Puller, checkpoint: Path) -> None:
    commit = puller.server.publish(NAME, checkpoint, "v1/old")
    path = puller(f"{NAME}@v1/old")
    assert puller.cache.find(parse(f"{NAME}@v1/old")) == path
    assert puller.cache.find(parse(NAME)) is None
    assert puller(f"{NAME}@{commit}") == path
    with pytest.raises(ModelError, match="no revision 'v9'"):
        puller(f"{NAME}@v9")


def test_without_weights_the_small_files_come_and_do_not_count_as_the_model(puller: Puller) -> None:
    path = puller(weights=False)
    assert not [name for name in names(path) if "safetensors" in name]
    assert Model(resolve(str(path))).config.n_blocks == 2
    assert puller.cache.find(parse(NAME)) is None


def test_a_model_that_cannot_be_run_is_refused_before_its_weights_come(puller: Puller, checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text()) | {"architectures": ["MambaForCausalLM"]}
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()}
    puller.server.publish("house/mamba", files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(ModelError, match="MambaForCausalLM"):
        puller("house/mamba")
    assert not [asked for asked in puller.server.asked if asked.host == "cdn"]
    assert not puller.cache.root.exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json", "pytorch_model.bin"}, "only pickled weights"),
        ({"README.md"}, "no model that can be run"),
        ({"config.json", "model.safetensors"}, "no tokenizer"),
    ],
)
def test_a_repository_that_is_no_model_is_refused(puller: Puller, checkpoint: Path, files: set[str], said: str) -> None:
    config = (checkpoint / "config.json").read_bytes()
    puller.server.publish("house/other", dict.fromkeys(files, config))
    with pytest.raises(ModelError, match=said):
        puller("house/other")


def test_an_index_cannot_reach_outside_the_model(puller: Puller, checkpoint: Path) -> None:
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()}
    index = {"weight_map": {"model.norm.weight": "../../../evil.safetensors"}}
    puller.server.publish("house/evil", files | {"model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(ModelError, match="no plain safetensors file name"):
        puller("house/evil")


def test_a_listing_cannot_reach_outside_the_model(puller: Puller) -> None:
    puller.server.publish("house/evil", {"../evil.gguf": b"GGUF"})
    with pytest.raises(HubError, match="outside"):
        puller("house/evil:evil.gguf")


GGUFS = {
    "a-Q4_K_M.gguf": b"GGUF4",
    "a-Q8_0.gguf": b"GGUF8",
    "big/b-00001-of-00002.gguf": b"GGUFb1",
    "big/b-00002-of-00002.gguf": b"GGUFb2",
}


@pytest.mark.parametrize(
    ("file", "got"),
    [
        ("a-Q4_K_M.gguf", ["a-Q4_K_M.gguf"]),
        ("q8_0", ["a-Q8_0.gguf"]),
        ("big/b-00001-of-00002.gguf", ["big/b-00001-of-00002.gguf", "big/b-00002-of-00002.gguf"]),
    ],
)
def test_a_gguf_model_comes_with_all_its_parts_and_nothing_else(puller: Puller, file: str, got: list[str]) -> None:
    puller.server.publish("house/ggufs", GGUFS)
    path = puller(f"house/ggufs:{file}")
    snapshot = path.parents[got[0].count("/")]
    assert sorted(found.relative_to(snapshot).as_posix() for found in snapshot.rglob("*.gguf")) == got
    assert path == snapshot / got[0]
    assert resolve(str(path)).gguf == path
    assert puller.cache.find(parse(f"house/ggufs:{file}")) == path


@pytest.mark.parametrize(
    ("file", "said"),
    [("", "holds 3 GGUF models"), (":a-q", "holds 2 GGUF models called like 'a-q'"), (":x", "holds no file 'x'")],
)
def test_a_choice_among_gguf_models_is_asked_for_with_their_names(puller: Puller, file: str, said: str) -> None:
    puller.server.publish("house/ggufs", GGUFS)
    with pytest.raises(ModelError, match=said) as refused:
        puller(f"house/ggufs{file}")
    assert "a-Q4_K_M.gguf" in str(refused.value.hint)


def test_a_quantised_model_cannot_be_planned_without_its_weights(puller: Puller, checkpoint: Path, tmp_path: Path) -> None:
    puller.server.publish("house/ggufs", GGUFS)
    with pytest.raises(ModelError, match="only its weights tell"):
        puller("house/ggufs:q8_0", weights=False)
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "awq", "bits": 4})
    files = {file.name: file.read_bytes() for file in checkpoint.iterdir() if file.is_file()}
    puller.server.publish("house/awq", files | {"config.json": (tmp_path / "config.json").read_bytes()})
    with pytest.raises(ModelError, match="only its weights tell"):
        puller("house/awq", weights=False)


def test_offline_a_missing_model_is_a_sentence(cache: HubCache) -> None:
    with pytest.raises(ModelError, match="not on this device") as refused:
        obtain(parse("tinyllama"), cache, lambda _: None, offline=True)
    assert "mdi models pull tinyllama" in str(refused.value.hint)


def test_a_login_page_is_no_hub(published: HubServer, cache: HubCache) -> None:
    published.fail("info", Fault(alter=lambda _: b"<html>log in</html>"))
    with pytest.raises(HubError, match="no model hub"):
        pull(parse(NAME), Hub(published.endpoint), cache, lambda _: None)

"""The cache is the one of `huggingface_hub`: what that library finds and makes there is the oracle."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache

from mdi.errors import ModelError, UserError
from mdi.hub.cache import HubCache, explain
from mdi.hub.reference import Reference, parse
from mdi.hub.stored import remove, stored_models
from tests.hub_server import HubServer

from .conftest import NAME, Puller

GGUFS = {"a-Q4.gguf": b"GGUF4", "a-Q8.gguf": b"GGUF88"}


def test_what_we_download_the_library_finds(puller: Puller) -> None:
    path = puller()
    assert snapshot_download(NAME, cache_dir=puller.cache.root, local_files_only=True) == str(path)
    assert try_to_load_from_cache(NAME, "config.json", cache_dir=puller.cache.root) == str(path / "config.json")
    scanned = scan_cache_dir(puller.cache.root)
    assert not scanned.warnings
    (repository,) = scanned.repos
    (ours,) = stored_models(puller.cache)
    assert (repository.repo_id, repository.size_on_disk) == (ours.repository, ours.n_bytes)
    assert {revision.commit_hash for revision in repository.revisions} == {path.name}


def test_what_the_library_downloads_we_find(puller: Puller, checkpoint: Path) -> None:
    for file in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        hf_hub_download(NAME, file, cache_dir=puller.cache.root, endpoint=puller.server.endpoint)
    assert puller.cache.find(parse(NAME)) is None  # not all of it
    for shard in checkpoint.glob("model-*.safetensors"):
        hf_hub_download(NAME, shard.name, cache_dir=puller.cache.root, endpoint=puller.server.endpoint)
    found = puller.cache.find(parse(NAME))
    assert found is not None
    assert (
        found == Path(hf_hub_download(NAME, "config.json", cache_dir=puller.cache.root, endpoint=puller.server.endpoint)).parent
    )
    puller.server.asked.clear()
    assert puller() == found
    assert not [asked for asked in puller.server.asked if asked.host == "cdn"]


def test_the_library_takes_our_blobs_for_its_own(puller: Puller) -> None:
    path = puller()
    shard = next(file.name for file in path.iterdir() if file.name.startswith("model-"))
    shutil.rmtree(path)
    puller.server.asked.clear()
    hf_hub_download(NAME, shard, cache_dir=puller.cache.root, endpoint=puller.server.endpoint)
    assert (path / shard).is_file()
    assert not [asked for asked in puller.server.asked if asked.host == "cdn"]


def test_a_file_system_without_links_holds_the_files_themselves(puller: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: str) -> None:
        raise PermissionError(1, "Operation not permitted", str(self))  # as exFAT does

    monkeypatch.setattr(Path, "symlink_to", refuse)
    path = puller()
    assert not any(file.is_symlink() for file in path.iterdir())
    assert puller.cache.find(parse(NAME)) == path
    puller.server.asked.clear()
    assert puller() == path
    assert not [asked for asked in puller.server.asked if asked.host == "cdn"]
    (stored,) = stored_models(puller.cache)
    assert stored.n_bytes == sum(file.stat().st_size for file in path.iterdir())


def test_stored_models_tell_what_can_be_typed_and_what_is_unfinished(puller: Puller) -> None:
    path = puller()
    puller.server.publish("house/ggufs", GGUFS)
    puller("house/ggufs:a-Q4.gguf")
    unfinished = puller.cache.folder("house/begun") / "blobs" / ("0" * 64 + ".incomplete")
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"12345")
    begun, ggufs, tiny = stored_models(puller.cache)
    assert (begun.repository, begun.n_bytes, begun.unfinished_bytes, begun.paths) == ("house/begun", 0, 5, ())
    assert [str(reference) for reference, _ in ggufs.paths] == ["house/ggufs:a-Q4.gguf"]
    assert tiny.paths == ((Reference(NAME), path),)


def test_removing_a_model_leaves_nothing_of_it(puller: Puller) -> None:
    path = puller()
    size = sum(file.stat().st_size for file in path.iterdir())
    assert remove(puller.cache, parse(NAME)) >= size
    assert stored_models(puller.cache) == []
    assert not [path for path in puller.cache.root.rglob("*") if path.is_file()]
    with pytest.raises(ModelError, match="is not here"):
        remove(puller.cache, parse(NAME))


def test_one_gguf_model_can_be_removed_alone(puller: Puller) -> None:
    puller.server.publish("house/ggufs", GGUFS)
    for file in GGUFS:
        puller(f"house/ggufs:{file}")
    with pytest.raises(ModelError, match="is not here"):
        remove(puller.cache, parse("house/ggufs:a-Q6.gguf"))
    assert remove(puller.cache, parse("house/ggufs:a-Q8.gguf")) == len(GGUFS["a-Q8.gguf"])
    assert puller.cache.find(parse("house/ggufs:a-Q8.gguf")) is None
    assert puller.cache.find(parse("house/ggufs")) is not None


def test_a_blob_that_two_revisions_share_stays_while_one_has_it(puller: Puller) -> None:
    puller.server.publish("house/ggufs", GGUFS)
    puller.server.publish("house/ggufs", GGUFS | {"README.md": b"new"}, "v2")
    puller("house/ggufs:a-Q8.gguf")
    other = puller("house/ggufs@v2:a-Q8.gguf")
    remove(puller.cache, parse("house/ggufs:a-Q8.gguf"))
    assert other.read_bytes() == GGUFS["a-Q8.gguf"]


def test_the_place_is_that_of_every_program(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/data/models")
    assert HubCache.default().root == Path("/data/models")


def test_a_cache_that_cannot_be_written_is_a_sentence(published: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be used: Not a directory"):
        Puller(published, HubCache(tmp_path / "file" / "hub"))()
    assert "HF_HOME" in str(explain(PermissionError(13, "Permission denied", "/x"), tmp_path).hint)

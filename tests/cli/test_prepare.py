from __future__ import annotations

from pathlib import Path

from mdi.cluster.home import Home
from mdi.cluster.key import ClusterKey
from tests.cli.programs import mdi, started


def test_a_new_cluster_is_told_once_and_kept(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").create()
    first = mdi(home, "node", "prepare", "--into", str(tmp_path))
    key = ClusterKey.parse((tmp_path / "cluster.key").read_text())
    assert f"mdi node start --join {key.text}" in first.stdout
    again = mdi(home, "node", "prepare", "--into", str(tmp_path))
    assert (again.returncode, again.stdout) == (0, "")
    assert "keeps the cluster key" in again.stderr


def test_a_key_from_stdin_is_kept_and_one_with_a_typing_error_is_not(tmp_path: Path) -> None:
    home, key = Home(tmp_path / "home").create(), ClusterKey.generate()
    wrong = mdi(home, "node", "prepare", "--into", str(tmp_path), "--key-file", "-", stdin=key.text[:-1])
    assert (wrong.returncode, (tmp_path / "cluster.key").exists()) == (2, False)
    right = mdi(home, "node", "prepare", "--into", str(tmp_path), "--key-file", "-", stdin=f" {key.text.upper()}\n")
    assert right.returncode == 0
    assert ClusterKey.parse((tmp_path / "cluster.key").read_text()) == key
    assert key.text not in right.stdout + right.stderr


def test_a_card_is_taken_over(tmp_path: Path) -> None:
    boot, etc, key = tmp_path / "boot", tmp_path / "etc", ClusterKey.generate()
    boot.mkdir()
    etc.mkdir()
    (boot / "mdi.toml").write_text('key_file = "k"')
    (boot / "k").write_text(key.text)
    done = mdi(Home(tmp_path / "home").create(), "node", "prepare", "--from", str(boot / "mdi.toml"), "--into", str(etc))
    assert done.returncode == 0, done.stderr
    assert ClusterKey.parse((etc / "cluster.key").read_text()) == key


def test_a_group_that_is_not_here_is_named(tmp_path: Path) -> None:
    done = mdi(Home(tmp_path / "home").create(), "node", "prepare", "--into", str(tmp_path), "--group", "no-such-group")
    assert done.returncode == 2
    assert "no group 'no-such-group'" in done.stderr


def test_a_node_takes_from_the_file_what_its_command_line_leaves_out(tmp_path: Path) -> None:
    home, key = Home(tmp_path / "home").create(), ClusterKey.generate()
    (tmp_path / "cluster.key").touch(mode=0o600)
    (tmp_path / "cluster.key").write_text(key.text)
    config = tmp_path / "mdi.toml"
    config.write_text('name = "cellar"\nkey_file = "cluster.key"\nthreads = 0\npeers = ["10.0.0.7"]')
    here = ("--no-discovery", "--host", "127.0.0.1", "--config", str(config))
    refused = mdi(home, "node", "start", *here)
    assert refused.returncode == 2
    assert f"{config}: --threads 0 leaves nobody to compute" in refused.stderr
    config.write_text(config.read_text().replace("threads = 0", "threads = 1"))
    with started(home, "node", "start", *here) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("node cellar ")
        assert f"serves cluster {key.fingerprint}" in line
        assert home.read_peers() == ("10.0.0.7",)
    assert not (home.path / "cluster.key").exists()

"""Hub names, read from caches as they lie on a machine without network."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from helpers.hub_cache import COMMIT, cached_by_datasets, downloaded

from grpovi_lightning.data.reading import read_table
from grpovi_lightning.errors import UserError

TRAIN = [{"question": f"q{i}", "answer": i} for i in range(10)]
TEST = [{"question": f"t{i}", "answer": i} for i in range(4)]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches of a machine that must not ask the hub."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


WAYS = {
    "datasets": lambda caches: cached_by_datasets(caches / "datasets", "own", "sums", {"train": TRAIN, "test": TEST}),
    "hf download": lambda caches: downloaded(caches / "hub", "own", "sums", {"train": TRAIN, "test": TEST}),
}


def rows_of(**settings):
    return list(read_table({"path": "own/sums", **settings}, []))


def refused(**settings):
    with pytest.raises(UserError) as error:
        rows_of(**settings)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_name_is_read_from_the_cache_with_its_split_slice_and_names(caches, way, streaming):
    WAYS[way](caches)
    found = rows_of(split="train[2:7]", rename={"answer": "solution"}, max_rows=3, streaming=streaming)
    assert found == [{"question": f"q{i}", "solution": i, "_row": i} for i in (2, 3, 4)]


@pytest.mark.parametrize("way", WAYS)
def test_a_split_has_to_be_named_where_there_are_several(caches, way):
    WAYS[way](caches)
    assert "data set own/sums: holds several splits (test, train); set `split`" in refused()
    assert "got split 'dev', it has test, train" in refused(split="dev")
    assert [row["question"] for row in rows_of(split="test")] == ["t0", "t1", "t2", "t3"]


def test_a_data_set_that_is_nowhere_says_how_to_get_it(caches):
    line = refused(revision="v2")
    assert "data set own/sums: no such file is here, and of the hub: Couldn't reach" in line
    assert "run `hf download --repo-type dataset own/sums --revision v2` where there is a network" in line


def test_a_name_without_an_owner_is_a_hub_name_too(caches):
    with pytest.raises(UserError, match=r"data set sums: no such file is here.*--repo-type dataset sums`"):
        read_table("sums", [])


def test_a_configuration_that_is_not_there_says_which_are(caches):
    for config in ("easy", "hard"):
        cached_by_datasets(caches / "datasets", "own", "sums", {"train": TRAIN}, config)
    assert len(rows_of(name="hard")) == 10
    for line in (refused(name="medium"), refused()):
        assert "data set own/sums: " in line and "easy" in line and "hard" in line


@pytest.mark.parametrize("way", WAYS)
def test_a_commit_is_read_where_the_cache_has_it_and_no_other(caches, way):
    WAYS[way](caches)
    assert len(rows_of(split="train", revision=COMMIT)) == 10
    assert "--revision " + "b" * 40 in refused(split="train", revision="b" * 40)


def test_a_branch_that_was_downloaded_comes_before_another_commit_in_the_cache(caches):
    WAYS["datasets"](caches)
    downloaded(caches / "hub", "own", "sums", {"train": TEST}, commit="b" * 40, branch="v2")
    assert [row["question"] for row in rows_of(revision="v2")] == ["t0", "t1", "t2", "t3"]


def test_a_file_comes_before_a_hub_name(caches):
    (caches / "own").mkdir()
    (caches / "own" / "sums").mkdir()
    (caches / "own" / "sums" / "a.csv").write_text("question\nhere\n")
    assert rows_of() == [{"question": "here", "_row": 0}]


@pytest.mark.parametrize("path", ["./own/sums", "/own/sums", "own/more/sums", "own/sums.jsonl", "own/*.csv"])
def test_what_can_only_be_a_path_is_no_hub_name(caches, path):
    with pytest.raises(UserError, match="no such file; expected JSON"):
        read_table(path, [])


class _Hub(BaseHTTPRequestHandler):
    """Answers as the hub does about a data set that is gated, or that is not there."""

    def do_HEAD(self):
        gated = "/secret" in self.path
        self.send_response(401 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", address)
        yield
        server.shutdown()


@pytest.mark.parametrize("path", ["own/secret", "own/gone"])
def test_a_data_set_that_the_hub_does_not_hand_out_is_refused_with_its_reason(hub, path):
    line = refused(path=path)
    assert f"data set {path}: Dataset '{path}' " in line and "that you may read it (`hf auth login`)" in line
    assert ("gated" if path == "own/secret" else "doesn't exist") in line or "cannot be accessed" in line

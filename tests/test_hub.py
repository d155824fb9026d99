"""Models and data of the hub: pinned, found offline, recorded by commit; every way to fail is one sentence."""

import json
import os
import subprocess
import sys
import time

import huggingface_hub
import pyarrow as pa
import pyarrow.parquet
import pytest
from huggingface_hub import constants

from bitdistiller.check import hub_notes
from bitdistiller.config import TaskParams
from bitdistiller.data import hub
from bitdistiller.data.hub import AbsentError, Repository, UnreachableError, commit_of, download, filled, hub_data
from bitdistiller.data.text import document_id, load_text, text_provenance
from bitdistiller.errors import UserError
from bitdistiller.evaluate import tasks
from bitdistiller.evaluate.benchmarks import rows
from bitdistiller.models import load_model, random_model
from bitdistiller.reasoning.instruction_text import prompt_tokens
from bitdistiller.reasoning.prompts import instruction_provenance, instructions
from tests.hub_world import COMMIT, OTHER, cache_repository, folder_files, serve

NAME = "owner/tiny"
ADDRESS = "/{repo_id}/resolve/{revision}/{filename}"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def server(cache, monkeypatch):
    """A hub on this machine that is asked."""
    with serve() as running:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", running.endpoint + ADDRESS)
        monkeypatch.setattr(time, "sleep", lambda _: None)  # between the client's own attempts
        huggingface_hub.close_session()  # of the client that another test made
        yield running
    huggingface_hub.close_session()


@pytest.fixture
def model_files(tiny_model):
    return folder_files(tiny_model)


def sentence(caught) -> str:
    """The message, which is one line."""
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, repository",
    [
        ("owner/name", Repository("owner/name", None)),
        ("owner/name@main", Repository("owner/name", "main")),
        ("o-w.n/na.me_1@refs/pr/3", Repository("o-w.n/na.me_1", "refs/pr/3")),
        (f"owner/name@{COMMIT}", Repository("owner/name", COMMIT)),
        ("name", None),
        ("a/b/c", None),
        ("./nowhere", None),
        ("owner/name@", None),
        ("owner/name@a b", None),
        ("@main", None),
    ],
)
def test_a_name_is_taken_apart(name, repository):
    assert hub.model_repository(name) == repository
    assert repository is None or str(repository) == name


def test_only_a_whole_commit_is_pinned():
    assert Repository("o/n", COMMIT).pinned
    moving = (None, "main", "v1.0", COMMIT[:7], COMMIT.upper())
    assert not any(Repository("o/n", revision).pinned for revision in moving)


# --- offline ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["", "@main", "@v2", "@refs/pr/1", f"@{COMMIT}"])
def test_a_model_in_the_cache_is_read_offline_and_its_commit_recorded(cache, model_files, revision):
    cache_repository(cache, NAME, model_files, ref=(revision.strip("@") or "main"))
    loaded = load_model(NAME + revision)
    assert loaded.name == NAME + revision
    assert f"{NAME} at commit {COMMIT}" in loaded.origin and "hub" in loaded.origin
    assert COMMIT in random_model(NAME + revision, 0).origin


def test_the_revision_that_is_named_is_the_one_that_is_read(cache, model_files):
    cache_repository(cache, NAME, model_files)
    config = json.loads(model_files["config.json"]) | {"rms_norm_eps": 0.25}
    cache_repository(cache, NAME, model_files | {"config.json": json.dumps(config).encode()}, OTHER, "v2")
    for revision, eps in ((COMMIT, 1e-6), (OTHER, 0.25), ("main", 1e-6), ("v2", 0.25)):
        assert load_model(f"{NAME}@{revision}").model.config.rms_norm_eps == eps


def test_a_local_folder_comes_before_the_hub(cache, model_files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, data in model_files.items():
        path = tmp_path / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    assert load_model(NAME).origin.endswith(f"the local folder {NAME}")


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_offline_the_missing_file_has_a_name(cache, model_files, missing):
    files = {name: data for name, data in model_files.items() if name != missing}
    cache_repository(cache, NAME, files)
    with pytest.raises(UserError) as caught:
        load_model(NAME)
    text = sentence(caught)
    assert f"{missing} of {NAME}" in text and str(cache) in text and "HF_HUB_OFFLINE=0" in text


def test_offline_a_missing_shard_has_a_name(cache, model_files):
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"metadata": {}, "weight_map": dict(zip("ab", shards, strict=True))}
    files = model_files | {"model.safetensors.index.json": json.dumps(index).encode()}
    files[shards[0]] = files.pop("model.safetensors")
    cache_repository(cache, NAME, files)
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors of owner/tiny"):
        load_model(NAME)


@pytest.mark.parametrize("revision, named", [("", "main"), ("@v9", "v9"), (f"@{OTHER}", "config.json")])
def test_offline_a_repository_or_revision_that_is_not_there(cache, model_files, revision, named):
    if revision:
        cache_repository(cache, NAME, model_files)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=0") as caught:
        load_model(NAME + revision)
    assert named in sentence(caught) and NAME in str(caught.value)


def test_code_of_a_repository_is_never_run(cache, model_files):
    config = json.loads(model_files["config.json"])
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.C", "AutoModelForCausalLM": "foreign.M"}}
    files = model_files | {"config.json": json.dumps(config).encode(), "foreign.py": b"raise SystemExit('was run')"}
    cache_repository(cache, NAME, files)
    for load in (load_model, lambda name: random_model(name, 0)):
        with pytest.raises(UserError, match=r"'foreign', which only custom code .*trust_remote_code"):
            load(NAME)


def test_a_known_architecture_is_read_without_the_code_that_lies_beside_it(cache, model_files):
    config = json.loads(model_files["config.json"]) | {"auto_map": {"AutoModelForCausalLM": "foreign.M"}}
    files = model_files | {"config.json": json.dumps(config).encode(), "foreign.py": b"raise SystemExit('was run')"}
    cache_repository(cache, NAME, files)
    assert load_model(NAME).model.config.model_type == "llama"


@pytest.mark.parametrize("name, ends", [("WizardLMTeam/WizardCoder-Python-7B-V1.0", "### Response:"),
                                        ("meta-math/MetaMath-7B-V1.0@main", "Let's think step by step."),
                                        (NAME, None)])  # fmt: skip
def test_models_older_than_chat_templates_get_that_of_their_card(cache, model_files, name, ends):
    cache_repository(cache, name.split("@")[0], model_files)
    tokenizer = load_model(name).tokenizer
    if ends is None:
        assert tokenizer.chat_template is None
        return
    text = tokenizer.decode(prompt_tokens(tokenizer, "Add two numbers.", raw=True))
    assert text.endswith(ends) and text.count("### Instruction:\nAdd two numbers.\n\n### Response:") == 1


# --- the hub is asked -------------------------------------------------------------------------------------------


def test_a_model_is_fetched_once_and_only_what_is_needed(server, model_files):
    extra = {"pytorch_model.bin": b"pickle", "original/params.json": b"{}", "original/consolidated.00.pth": b"pickle"}
    server.files[NAME] = model_files | extra
    assert COMMIT in load_model(f"{NAME}@v1.0").origin
    fetched = {path.rsplit("/", 1)[1] for path in server.asked if path.startswith("GET /owner")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "params.json", "consolidated.00.pth"}
    server.asked.clear()
    load_model(f"{NAME}@{COMMIT}")
    assert server.asked == []  # a commit that is complete in the cache is not asked for again


def test_a_random_model_fetches_no_weights(server, model_files):
    server.files[NAME] = model_files
    random_model(NAME, 0)
    assert not any("safetensors" in path for path in server.asked)


@pytest.mark.parametrize(
    "status, code, words",
    [
        (401, "GatedRepo", ["gated", "licence", "hf auth login"]),
        (403, "GatedRepo", ["gated", "licence", "hf auth login"]),
        (401, "RepoNotFound", ["spelling", "owner/name"]),
        (404, "RepoNotFound", ["spelling", "owner/name"]),
        (404, "RevisionNotFound", ["no revision v1.0", "commit, tag or branch"]),
        (403, "Forbidden", ["rights"]),
    ],
)
@pytest.mark.parametrize("pinned", [True, False])
def test_what_the_hub_refuses_is_explained(server, model_files, status, code, words, pinned):
    server.files[NAME], server.errors[NAME] = model_files, (status, code)
    name = f"{NAME}@{COMMIT}" if pinned and code != "RevisionNotFound" else f"{NAME}@v1.0"
    with pytest.raises(UserError) as caught:
        load_model(name)
    assert all(word in sentence(caught) for word in [NAME, *words])


def test_a_gated_file_of_an_open_page_is_explained(server, model_files):
    """Metadata of a gated repository is public; only its files are refused."""
    server.files[NAME] = model_files
    commit_of(Repository(NAME, None))
    server.errors[NAME] = (403, "GatedRepo")
    with pytest.raises(UserError, match="is gated: accept its licence"):
        load_model(f"{NAME}@{COMMIT}")


def test_a_repository_without_safetensors_says_what_to_do(server, model_files):
    server.files[NAME] = {name: data for name, data in model_files.items() if name != "model.safetensors"}
    server.files[NAME]["pytorch_model.bin"] = b"pickle"
    with pytest.raises(UserError) as caught:
        load_model(NAME)
    assert all(word in sentence(caught) for word in ("safetensors", "refs/pr", "folder"))
    assert not any("pytorch_model" in path for path in server.asked if "/resolve/" in path)


def test_a_download_that_breaks_is_explained_and_goes_on(server, model_files):
    server.files[NAME], server.cuts["model.safetensors"] = model_files, 6  # the client itself tries six times
    with pytest.raises(UserError) as caught:
        load_model(NAME)
    assert "the same command, run again, fetches the rest" in sentence(caught)
    server.asked.clear()
    assert COMMIT in load_model(NAME).origin
    assert [path for path in server.asked if path.startswith("GET /owner")] == [
        f"GET /{NAME}/resolve/{COMMIT}/model.safetensors"
    ]  # the other files were kept


def test_a_hub_that_cannot_be_reached_leaves_what_is_cached(server, model_files, cache, monkeypatch):
    cache_repository(cache, NAME, model_files)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    assert COMMIT in load_model(NAME).origin
    with pytest.raises(UserError, match=r"cannot be reached; run the same command again"):
        load_model("owner/other")


def test_absent_and_unreachable_files_are_told_apart(server, cache, monkeypatch):
    server.files[NAME] = {"config.json": b"{}", "other.json": b"{}"}
    repository = Repository(NAME, None)
    download(repository, ["config.json"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableError, match=r"other\.json"):
        download(repository, ["other.json"], ["other.json"])
    with pytest.raises(AbsentError, match=r"nothing\.json"):
        download(repository, ["nothing.json"], ["nothing.json"])


def test_the_endpoint_and_the_cache_are_those_of_the_environment(server, model_files, tmp_path):
    """The command as a user runs it: variables of the environment, one sentence on stderr, exit status 2."""
    server.files[NAME], server.errors["owner/gated"] = model_files, (401, "GatedRepo")
    environment = os.environ | {
        "HF_ENDPOINT": server.endpoint, "HF_HUB_CACHE": str(tmp_path / "other"), "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    code = "from bitdistiller.data.hub import *; print(commit_of(Repository('owner/tiny', None)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == COMMIT
    assert (tmp_path / "other" / "models--owner--tiny" / "refs" / "main").read_text() == COMMIT


# --- check ------------------------------------------------------------------------------------------------------


def test_check_names_what_is_not_pinned_and_the_commit_it_has(server, model_files):
    server.files[NAME] = model_files
    notes = list(hub_notes([Repository(NAME, None), Repository(NAME, "v1.0"), Repository(NAME, COMMIT)]))
    assert len(notes) == 2
    assert all(f"write {NAME}@{COMMIT}" in note for note in notes)
    assert "main may move" in notes[0] and "v1.0 may move" in notes[1]


def test_check_says_offline_what_it_cannot_see_and_is_silent_about_pins(cache, model_files):
    notes = list(hub_notes([Repository(NAME, None), Repository("owner/pinned", COMMIT)]))
    assert len(notes) == 1 and NAME in notes[0] and "cannot be seen" in notes[0]
    cache_repository(cache, NAME, model_files)
    assert COMMIT in next(hub_notes([Repository(NAME, None)]))


@pytest.mark.parametrize("revision", [None, COMMIT])
def test_check_fails_on_what_the_hub_refuses(server, revision):
    server.errors[NAME] = (401, "GatedRepo")
    with pytest.raises(UserError, match="gated"):
        list(hub_notes([Repository(NAME, revision)]))


def test_check_goes_on_when_the_hub_does_not_answer(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert len(list(hub_notes([Repository(NAME, COMMIT), Repository(NAME, None)]))) == 2


# --- data sets --------------------------------------------------------------------------------------------------


def parquet(records: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


def cache_data(cache, name: str, files: dict[str, bytes]) -> None:
    data = hub_data()[name]
    cache_repository(cache, data.id, files, data.revision or COMMIT, kind="dataset")


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    """A place of its own for what ``datasets`` prepares; the wheels stay where they are."""
    monkeypatch.setattr(hub, "cache_dir", lambda: tmp_path / "prepared")


WIKI = ["", " = Robert <unk> = \n", "", " He acts . " * 100, " She sings . \n", "x" * 512, "y" * 513]


@pytest.fixture
def wikitext(cache):
    files = {
        "wikitext-2-raw-v1/train-00000-of-00001.parquet": parquet([{"text": text} for text in WIKI]),
        "wikitext-2-raw-v1/test-00000-of-00001.parquet": parquet([{"text": text} for text in WIKI[:3]]),
    }
    other = {"wikitext-103-raw-v1/train-00000-of-00002.parquet": parquet([{"text": "of another data set"}])}
    cache_data(cache, "wikitext-2", files | other)


def test_wikitext_is_one_document_joined_by_blank_lines(wikitext):
    (train,), (test,) = load_text("wikitext-2", "train"), load_text("wikitext-2", "test")
    assert train.text == "\n\n".join(WIKI) and test.text == "\n\n".join(WIKI[:3])
    assert train.id == document_id(train.text)
    (origin,) = text_provenance(["wikitext-2"], [train])["origins"]
    assert "Salesforce/wikitext" in origin and hub_data()["wikitext-2"].revision in origin


def test_paragraphs_to_go_on_from_are_the_long_ones(wikitext):
    found = instructions(["wikitext-2-paragraphs"])
    assert [one.text for one in found] == [WIKI[3][:128], "y" * 128]
    assert all(one.raw for one in found)
    splits = [d.text for split in ("train", "validation", "test") for d in load_text("wikitext-2-paragraphs", split)]
    assert sorted(splits) == sorted([WIKI[3].strip(), WIKI[6]])


def test_instructions_of_alpaca_stand_as_bitdistiller_gives_them(cache):
    records = [
        {"instruction": "Name {a} tree.", "input": "", "output": "Oak."},
        {"instruction": "Sort.", "input": "b a", "output": "a b"},
    ]
    cache_data(cache, "alpaca", {"alpaca_data_cleaned.json": json.dumps(records).encode()})
    assert [one.text for one in instructions(["alpaca"])] == ["Name {a} tree.\n", "Sort.\nb a\n"]
    texts = {d.text for split in ("train", "validation", "test") for d in load_text("alpaca", split)}
    assert texts == {"Name {a} tree.\nOak.", "Sort.\nb a\na b"}
    assert "yahma/alpaca-cleaned" in instruction_provenance(["alpaca"], [])["origins"][0]
    assert instruction_provenance(["alpaca"], [])["assets"] == {}


def test_a_data_set_that_is_not_pinned_records_the_commit_that_was_read(cache):
    records = [{"instruction": "Write a loop.", "output": "for"}]
    cache_data(cache, "evol-instruct-code", {"EvolInstruct-Code-80k.json": json.dumps(records).encode()})
    assert hub_data()["evol-instruct-code"].revision is None
    assert COMMIT in instruction_provenance(["evol-instruct-code"], [])["origins"][0]


def test_data_that_is_not_in_the_cache_says_so(cache):
    with pytest.raises(
        UserError, match=r"wikitext-2-raw-v1/test-\*\.parquet of Salesforce/wikitext@b08.* HF_HUB_OFFLINE=0"
    ):
        load_text("wikitext-2", "test")
    with pytest.raises(UserError, match="revision main of nickrosh/Evol-Instruct-Code-80k-v1"):
        instructions(["evol-instruct-code"])


def test_damaged_data_says_so(cache):
    cache_data(cache, "alpaca", {"alpaca.json": b"{nothing"})
    with pytest.raises(UserError, match="the files of alpaca cannot be read"):
        load_text("alpaca", "train")


def test_a_template_leaves_out_lines_without_content():
    assert filled("{a}\n{b}\nc", {"a": "1", "b": None}) == "1\nc"


def test_every_data_set_is_pinned_or_says_that_no_commit_was_found():
    for name, data in hub_data().items():
        assert data.files and data.license and data.found
        assert data.repository.pinned or data.found == "no public file with its commit was found", name
        assert "join" not in data.model_fields_set or data.text
        assert set(data.files) <= {"train", "validation", "test"} and len(set(data.files.values())) == len(data.files)


# --- benchmarks -------------------------------------------------------------------------------------------------


def test_official_items_of_the_hub_give_the_task_that_our_own_file_gives(cache, monkeypatch, tmp_path):
    items = rows("piqa")[:40]
    cache_data(cache, "piqa", {"piqa_train.parquet": parquet(items[:10]), "piqa_validation.parquet": parquet(items)})
    monkeypatch.setattr(tasks, "folder", lambda: tmp_path)
    with tasks.quiet():
        official = tasks.load_tasks({"piqa": TaskParams(limit=10, shots=1, source="hub")}, seed=0)["piqa"]
    assert [dict(doc) for doc in official.eval_docs] == items
    own = tasks.load_tasks({"piqa": TaskParams(limit=10, shots=0)}, seed=0)["piqa"]
    assert official.doc_to_text(items[0]) == own.doc_to_text(items[0])
    assert official.fewshot_context(items[3], 1).count("Question:") == 2


def test_benchmarks_of_the_hub_that_cannot_be_had_say_so(cache):
    with pytest.raises(UserError, match=r"train\*\.parquet of baber/piqa@142f6d73.* HF_HUB_OFFLINE=0"):
        tasks.load_tasks({"piqa": TaskParams(limit=10, shots=0, source="hub")}, seed=0)
    with pytest.raises(UserError, match=r"hub\.yaml pins no data of it"):
        tasks.load_tasks({"continuation": TaskParams(limit=10, shots=0, source="hub")}, seed=0)

"""A repository of the Hugging Face hub at one commit -> a folder on this machine, or one sentence why not.

Names of branches and tags move; a commit does not. So whatever a name asks for (``owner/name@revision``, or the main
branch without ``@``), it is resolved to a commit first, that commit's files are fetched into the hub's own cache
(``HF_HUB_CACHE``), and everything is read from the folder of that commit: results record what was read, not what was
asked for. Fetching by folder has three more uses. Only wanted files are fetched (a repository often holds its weights
two or three times). What is missing offline has a name. And ``transformers`` and ``datasets`` are handed a local
folder, so neither can turn to another revision, or run code of the repository.

Data sets are named in ``hub.yaml``: id, commit, files of each split, and how a record becomes text.

A download that breaks keeps the files that were complete; the hub's client fetches a file that was cut off anew.
"""

import errno
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import yaml
from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from pydantic import BaseModel, ConfigDict

from bitdistiller.assets import cache_dir
from bitdistiller.config import entry
from bitdistiller.errors import UserError


class AbsentError(UserError):
    """The hub was asked, and the repository has no such file."""


class UnreachableError(UserError):
    """The hub could not be asked, or gave way, and its cache does not hold what is wanted."""


_ID = r"\w[\w.-]*/\w[\w.-]*"
_NAME = re.compile(rf"(?P<id>{_ID})(?:@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FIELD = re.compile(r"{(\w+)}")
_SECTION = {"model": "", "dataset": "datasets/"}  # of the hub, in the address of a page


@dataclass(frozen=True)
class Repository:
    """What a name asks for: a model or a data set of the hub, and a commit, tag or branch of it (None: main)."""

    id: str
    revision: str | None
    kind: Literal["model", "dataset"] = "model"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


@dataclass(frozen=True)
class Snapshot:
    """Files of a repository at a commit, in a folder of the hub's cache."""

    repository: Repository
    commit: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.repository.id} at commit {self.commit}"


def model_repository(name: str) -> Repository | None:
    """The repository that a model's name asks for, or None if it cannot be one: ``owner/name`` or ``owner/name@tag``.

    >>> model_repository("owner/name@v1.0")
    Repository(id='owner/name', revision='v1.0', kind='model')
    """
    found = _NAME.fullmatch(name)
    return Repository(found["id"], found["revision"]) if found else None


def commit_of(repository: Repository) -> str:
    """The commit that the revision has now: from the hub, or offline from the hub's cache.

    Raises:
        UserError: the repository is gated, unknown or has no such revision; or there is no answer and no copy.
    """
    try:
        found = HfApi().resolve_revision(
            repository.id,
            revision=repository.revision,
            repo_type=repository.kind,
            local_files_only=constants.HF_HUB_OFFLINE,
        )
    except (HFValidationError, HTTPError, OSError, RevisionResolutionError) as error:
        raise _explained(repository, error) from error
    return found.resolved


def require_access(repository: Repository) -> None:
    """Refuse a repository whose files may not be read from here; without a network nothing is asked.

    Raises:
        UserError: the repository is gated or unknown; or the hub does not answer.
    """
    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().auth_check(repository.id, repo_type=repository.kind)
    except (HFValidationError, HTTPError, OSError) as error:
        raise _explained(repository, error) from error


def download(repository: Repository, wanted: Sequence[str], required: Sequence[str] = ()) -> Snapshot:
    """The wanted files of a repository in the hub's cache, fetched if they are not there yet.

    Args:
        wanted: patterns of file names; where none has a slash, only files at the top are taken.
        required: patterns of which each must match a file, without which the rest is no use.

    Raises:
        UserError: as ``commit_of``; or a required file is not in the cache and cannot be fetched; or the network or
            the disk gave way.
    """
    commit, refused = commit_of(repository), None
    elsewhere = [] if any("/" in pattern for pattern in wanted) else ["*/*"]
    try:
        folder = Path(
            snapshot_download(
                repository.id,
                revision=commit,
                repo_type=repository.kind,
                allow_patterns=list(wanted),
                ignore_patterns=elsewhere,
            )
        )
    except LocalEntryNotFoundError as error:  # offline, or there is no answer; what is there may be enough
        folder, refused = _cached_folder(repository, commit), error.__cause__
        required = required or wanted
    except (HTTPError, OSError) as error:
        raise _explained(repository, error) from error
    if missing := [pattern for pattern in required if not any(folder.glob(pattern))]:
        if isinstance(refused, HfHubHTTPError):
            raise _explained(repository, refused)
        raise _missing(repository, commit, folder, missing[0])
    return Snapshot(repository, commit, folder)


def _cached_folder(repository: Repository, commit: str) -> Path:
    name = "--".join([f"{repository.kind}s", *repository.id.split("/")])
    return Path(constants.HF_HUB_CACHE) / name / "snapshots" / commit


def _missing(repository: Repository, commit: str, folder: Path, pattern: str) -> UserError:
    """Whether the repository lacks a file or only the cache does; the hub's client keeps listings of commits."""
    try:
        listed = get_cached_repo_tree(repository.id, repo_type=repository.kind, revision=commit)
    except CachedRepoTreeNotFoundError:
        listed = None
    if listed is not None and not any(fnmatch(file.path, pattern) for file in listed):
        return AbsentError(f"{repository.id} has no file {pattern} at commit {commit}")
    return UnreachableError(f"{pattern} of {repository} is not in the hub's cache ({folder}), and {_no_network()}")


def _no_network() -> str:
    if constants.HF_HUB_OFFLINE:
        return "the hub may not be asked (HF_HUB_OFFLINE=1); run once with HF_HUB_OFFLINE=0 to fetch it"
    return f"the hub ({constants.ENDPOINT}) cannot be reached; run the same command again when there is a network"


def _explained(repository: Repository, error: Exception) -> UserError:
    kind, page = repository.kind, f"{constants.ENDPOINT}/{_SECTION[repository.kind]}{repository.id}"
    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError
        return UserError(
            f"{repository.id} is gated: accept its licence at {page}, log in with `hf auth login` (or set HF_TOKEN) "
            "with that account, and run the same command again"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"the hub has no {kind} {repository.id}, or it is private: check the spelling (owner/name), or log in with "
            "`hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(
            f"{repository.id} has no revision {repository.revision} on the hub: name a commit, tag or branch that "
            f"{page} lists"
        )
    if isinstance(error, RevisionResolutionError | LocalEntryNotFoundError):
        wanted = f"revision {repository.revision or constants.DEFAULT_REVISION} of {repository.id}"
        return UnreachableError(f"{wanted} is not in the hub's cache, and {_no_network()}")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return UserError(
            f"the disk of {constants.HF_HUB_CACHE} is full while {repository} is fetched: make room (`hf cache`), or "
            "set HF_HUB_CACHE to another disk, and run the same command again"
        )
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if isinstance(error, HFValidationError) or (isinstance(error, HfHubHTTPError) and error.response.status_code < 500):
        return UserError(f"the hub refuses {repository} ({reason}); check the name and your rights at {page}")
    return UnreachableError(
        f"the network gave way while {repository} was fetched ({reason}): files that were complete are kept, and the "
        "same command, run again, fetches the rest"
    )


# --- data sets ------------------------------------------------------------------------------------------------


class HubData(BaseModel):
    """A data set of the hub as ``hub.yaml`` describes it. Templates hold a record's fields in braces.

    Attributes:
        id: owner/name.
        revision: commit; None where none is known, and then the main branch is read.
        found: where the commit was found, and whatever else a reader should know.
        files: pattern of the files of each split, which are Parquet or JSON.
        license: its licence, as the repository states it.
        text: a record as text. A line whose fields are empty is left out.
        longer_than: records whose text has at most so many characters are left out.
        join: all records of a split become one document, joined by this, in the published splits.
        prompt: what a generator is given of a record, where it is to go on from it or to answer.
        head: characters of a prompt that are kept.
        python: what is asked for is a program in Python.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str
    revision: str | None = None
    found: str
    files: dict[str, str]
    license: str
    text: str | None = None
    longer_than: int = 0
    join: str | None = None
    prompt: str | None = None
    head: int | None = None
    python: bool = False

    @property
    def repository(self) -> Repository:
        """Where it is on the hub."""
        return Repository(self.id, self.revision, "dataset")

    @property
    def loader(self) -> str:
        """Which packaged loader of ``datasets`` reads its files."""
        return "parquet" if all(pattern.endswith(".parquet") for pattern in self.files.values()) else "json"


@cache
def hub_data() -> dict[str, HubData]:
    """Every data set of ``hub.yaml``, by the name that parameters use."""
    table = yaml.safe_load(resources.files("bitdistiller.data").joinpath("hub.yaml").read_text())
    return {name: HubData(**fields) for name, fields in table.items()}


def data_files(name: str, splits: Sequence[str]) -> dict[str, list[str]]:
    """Paths of the files of some splits of a data set.

    Raises:
        UserError: an unknown name or split, or as ``download``.
    """
    data = entry(hub_data(), "data sets of the hub", name)
    required = [entry(data.files, f"data set {name}", split) for split in splits]
    folder = download(data.repository, list(data.files.values()), required).folder
    return {split: sorted(map(str, folder.glob(data.files[split]))) for split in splits}


def data_origin(name: str) -> str:
    """In a phrase, what a data set is, with its commit.

    Raises:
        UserError: as ``commit_of``.
    """
    data = entry(hub_data(), "data sets of the hub", name)
    return f"{name}: {data.id} on the Hugging Face hub, commit {commit_of(data.repository)}"


def records(name: str, split: str) -> Iterator[dict]:
    """The records of a split of a data set, in their order.

    Raises:
        UserError: as ``data_files``; or the files cannot be read.
    """
    import datasets

    files, bars = data_files(name, [split])[split], datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()  # for splits of a few megabytes
    try:
        yield from datasets.load_dataset(
            hub_data()[name].loader, data_files=files, split="train", cache_dir=str(cache_dir() / "datasets")
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise UserError(f"the files of {name} cannot be read ({reason}); delete {files[0]} and run again") from None
    finally:
        if bars:
            datasets.enable_progress_bars()


def texts(name: str, split: str) -> Iterator[str]:
    """The records of a split as text: one for all where they are joined."""
    data = hub_data()[name]
    if data.join is not None:
        yield data.join.join(data.text.format(**record) for record in records(name, split))
        return
    found = (filled(data.text, record) for record in records(name, split))
    yield from (text for text in found if len(text) > data.longer_than)


def prompts(name: str) -> Iterator[str]:
    """What a generator is given: the beginning of, or the question in, each record of the train split."""
    data = hub_data()[name]
    for record in records(name, "train"):
        if len(filled(data.text or data.prompt, record)) > data.longer_than:
            yield filled(data.prompt, record)[: data.head]


def filled(template: str, record: dict) -> str:
    r"""A record as text; lines of the template whose fields the record does not have are left out.

    >>> filled("{instruction}\n{input}\n", {"instruction": "Sum up.", "input": ""})
    'Sum up.\n'
    """
    kept = [line for line in template.split("\n") if all(record.get(name) for name in _FIELD.findall(line))]
    return "\n".join(kept).format(**record)

"""Many prompts -> what a model writes after each: in batches, with progress, and going on after a kill.

Batches are made of prompts of like length, the longest first, and follow from prompts and parameters alone. A finished
batch is appended to a journal, whose name is a hash of all that decides the outcome: the weights, the prompts, the
sampling. A call that finds batches there goes on with the next one, so that an interrupted call and one that was left
alone write the same.

A beginning that all prompts share (few-shot examples) is computed once and attended to in place; see ``prefix``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitdistiller.errors import UserError
from bitdistiller.evaluate.likelihood import by_length, common_length, inference
from bitdistiller.reasoning.decoding import Prompt, Sampling, Written, decode
from bitdistiller.reasoning.prefix import shared_prefix, supports_prefix

_WORTH_SHARING = 64  # tokens


@dataclass(frozen=True)
class Writer:
    """A model that answers.

    Attributes:
        batch_tokens: bounds the states that are kept: sequences of a batch times their greatest length.
        journals: folder of the journals of unfinished calls.
        identity: hash of the weights, so that no journal of another model is continued.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_tokens: int
    journals: Path
    identity: str

    def write(self, prompts: Sequence[Prompt], sampling: Sampling, description: str) -> list[Written]:
        """Continue all prompts; the order is that of ``prompts``.

        Raises:
            UserError: a prompt and its answer do not fit the model's context, or two prompts share a key.
        """
        self._refuse(prompts, sampling)
        journal = self.journals / f"{description}-{self._fingerprint(prompts, sampling)}.jsonl"
        done = _read(journal)
        shared = shared_length([prompt.tokens for prompt in prompts]) if supports_prefix(self.model) else 0
        own = [replace(prompt, tokens=prompt.tokens[shared:]) for prompt in prompts]
        parts = by_length([len(prompt.tokens) + prompt.limit(sampling) for prompt in own], self.batch_tokens)
        left = [part for part in parts if not all(own[index].key in done for index in part)]
        progress = tqdm(total=len(prompts), initial=len(done), desc=description, unit="answer", disable=None)
        with progress, inference(self.model), shared_prefix(self.model, prompts[0].tokens[:shared]) as prefix:
            for part in left:
                written = decode(self.model, self.tokenizer, [own[index] for index in part], sampling, prefix)
                _append(journal, written)
                done |= {answer.key: answer for answer in written}
                progress.update(len(part))
        return [done[prompt.key] for prompt in prompts]

    def text(self, written: Written, stop: Sequence[str] = ()) -> str:
        """What was written as text, without special tokens, up to the first stop word."""
        text = self.tokenizer.decode(written.tokens, skip_special_tokens=True)
        return text[: min([text.find(word) for word in stop if word in text], default=len(text))]

    def _refuse(self, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        if len({prompt.key for prompt in prompts}) < len(prompts):
            raise UserError("two prompts share a key; every prompt needs one of its own")
        context = getattr(self.model.config, "max_position_embeddings", None)
        longest = max(prompts, key=lambda prompt: len(prompt.tokens) + prompt.limit(sampling))
        size, limit = len(longest.tokens), longest.limit(sampling)
        if context is not None and size + limit > context:
            raise UserError(
                f"a prompt of {size} tokens and {limit} to write do not fit the model's context "
                f"of {context}; lower max_new_tokens or the examples"
            )

    def _fingerprint(self, prompts: Sequence[Prompt], sampling: Sampling) -> str:
        identity = [self.identity, self.batch_tokens, asdict(sampling), [asdict(prompt) for prompt in prompts]]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def unfinished(path: Path) -> Path:
    """Folder of the journals of what is going to be ``path``; it may be deleted when that is complete."""
    return path.with_suffix(".unfinished")


def shared_length(sequences: Sequence[Sequence[int]]) -> int:
    """How many tokens all sequences have in common at their beginning, leaving each at least one of its own.

    0 if they are too few to be worth a computation of their own.
    """
    common = min(common_length(sequences), min(map(len, sequences)) - 1)
    return common if common >= _WORTH_SHARING else 0


def _read(journal: Path) -> dict[str, Written]:
    if not journal.exists():
        return {}
    lines = journal.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]  # a kill may cut the last one short
    if len(whole) < len(lines):
        staging = journal.with_suffix(".tmp")
        staging.write_text("".join(whole))
        staging.replace(journal)
    return {entry["key"]: Written(**entry) for entry in map(json.loads, whole)}


def _append(journal: Path, written: Sequence[Written]) -> None:
    journal.parent.mkdir(parents=True, exist_ok=True)
    with open(journal, "a") as handle:
        handle.writelines(json.dumps(asdict(answer)) + "\n" for answer in written)

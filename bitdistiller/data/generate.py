"""Teacher-generated data: a model continues prompts cut from train text.

BitDistiller trains on text that the teacher itself wrote (arXiv 2402.10631, section 3.3): sampled at temperature 0.7,
top-p 1. A sequence is the start token, a prompt of real words and what the model made of them, until it ends the
text or the length is reached. Sampling can fall into loops, which teach a student nothing; how much it did is stored
beside the data as repetition statistics.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm import tqdm
from transformers import set_seed

from bitdistiller.assets import sha256_file
from bitdistiller.config import TextParams
from bitdistiller.data.blocks import encode, packed_blocks, start_token
from bitdistiller.data.text import Document, load_text, text_provenance
from bitdistiller.device import device, has_bf16
from bitdistiller.errors import UserError
from bitdistiller.models import LoadedModel, require_context


@dataclass(frozen=True)
class TrainingSequence:
    """Token ids to train on, how many of them a person wrote, and the document they start from."""

    document: str
    prompt_length: int
    input_ids: list[int]
    text: str


def make_text(params: TextParams, source: LoadedModel, path: Path) -> dict:
    """Write a training text as JSONL, one sequence a line, and return its provenance and statistics.

    Args:
        source: the generator.

    Raises:
        UserError: too little train text for the prompts or corpus sequences, or no sequences asked for.
    """
    require_context(source, params.length)
    documents = load_text(params.text, "train")
    path.parent.mkdir(parents=True, exist_ok=True)
    finished = path.with_suffix(f".{_fingerprint(params, documents)}.partial")
    generated = generate(source.model, source.tokenizer, documents, params, finished) if params.sequences else []
    sequences = generated + list(islice(corpus(source.tokenizer, documents, params), params.corpus_sequences))
    if len(sequences) < params.sequences + params.corpus_sequences or not sequences:
        wanted = params.sequences + params.corpus_sequences
        raise UserError(
            f"the text gives {len(sequences)} of {wanted} sequences of {params.length} tokens; ask for fewer"
        )
    _append(path, sequences, mode="w")
    finished.unlink(missing_ok=True)
    return {
        "generator": params.generator,
        "generator_origin": source.origin,
        "text": text_provenance(params.text, documents),
        "sha256": sha256_file(path),
        "sequences": len(sequences),
        "tokens": sum(len(sequence.input_ids) for sequence in sequences),
        "statistics": statistics(generated, source.tokenizer.eos_token_id) if generated else None,
    }


def generate(model, tokenizer, documents: list[Document], params: TextParams, finished: Path) -> list[TrainingSequence]:
    """Sample continuations of the first ``prompt_length`` tokens of shuffled documents, in batches, seeded.

    When there are fewer documents than sequences, later prompts are cut from further inside the documents. Every batch
    has a seed of its own and is appended to ``finished`` when done, so an interrupted call goes on where it stopped and
    ends with the same sequences.
    """
    prompts = _prompts(tokenizer, documents, params)
    model = model.to(device(), torch.bfloat16 if has_bf16() else torch.float32)
    kept = read_sequences(finished) if finished.exists() else []
    kept = kept[: len(kept) - len(kept) % params.batch_size]
    _append(finished, kept, mode="w")  # without the torn batch that a kill may leave
    with tqdm(total=len(prompts), initial=len(kept), desc="generating", unit="seq") as progress:
        for start in range(len(kept), len(prompts), params.batch_size):
            batch = prompts[start : start + params.batch_size]
            set_seed(params.seed + start)
            written = list(_continue(model, tokenizer, batch, params))
            _append(finished, written, mode="a")
            kept += written
            progress.update(len(batch))
    return kept


def _continue(model, tokenizer, batch: list[tuple[str, list[int]]], params: TextParams) -> Iterator[TrainingSequence]:
    ids = torch.tensor([prompt for _, prompt in batch], device=device())
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=0,
        max_length=params.length,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    for (document, prompt), row in zip(batch, output.tolist(), strict=True):
        written = _until_end(row[len(prompt) :], tokenizer.eos_token_id)
        text = tokenizer.decode(prompt[1:] + written, skip_special_tokens=True)
        yield TrainingSequence(document, len(prompt), prompt + written, text)


def _prompts(tokenizer, documents: list[Document], params: TextParams) -> list[tuple[str, list[int]]]:
    """(document id, start token + ``prompt_length - 1`` tokens), ``sequences`` of them, in seeded order."""
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(params.seed)).tolist()
    shuffled = [documents[index] for index in order]
    ids = encode(tokenizer, [document.text for document in shuffled])
    first, size, prompts, start = start_token(tokenizer), params.prompt_length - 1, [], 0
    while len(prompts) < params.sequences:
        cuts = [(d.id, [first, *row[start : start + size]]) for d, row in zip(shuffled, ids, strict=True)]
        usable = [cut for cut in cuts if len(cut[1]) == params.prompt_length]
        if not usable:
            raise UserError(
                f"the text gives {len(prompts)} of {params.sequences} prompts of {size} tokens; ask for fewer"
            )
        prompts += usable
        start += size
    return prompts[: params.sequences]


def _until_end(row: list[int], eos: int) -> list[int]:
    return row[: row.index(eos) + 1] if eos in row else row


def corpus(tokenizer, documents: list[Document], params: TextParams) -> Iterator[TrainingSequence]:
    """The text itself in full blocks, in seeded order of documents."""
    if not params.corpus_sequences:
        return
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(params.seed + 1)).tolist()
    for row in packed_blocks(tokenizer, [documents[index] for index in order], params.length).tolist():
        yield TrainingSequence("corpus", len(row), row, tokenizer.decode(row, skip_special_tokens=True))


def statistics(sequences: list[TrainingSequence], eos: int) -> dict[str, float]:
    """How varied generated text is: mean length, share that ended by itself, distinct n-grams, share stuck in a loop.

    A sequence counts as a loop when its most frequent 4-gram of tokens makes up over a tenth of its 4-grams.
    """
    written = [sequence.input_ids[sequence.prompt_length :] for sequence in sequences]
    grams = {n: [Counter(zip(*(row[i:] for i in range(n)), strict=False)) for row in written] for n in (1, 2, 4)}
    shares = {
        f"distinct_{n}": len(set().union(*counts)) / max(1, sum(counts_of.total() for counts_of in counts))
        for n, counts in grams.items()
    }
    loops = [max(counts.values()) > 0.1 * counts.total() for counts in grams[4] if counts.total() >= 20]
    return {
        "mean_written_tokens": sum(map(len, written)) / len(written),
        "ended_by_itself": sum(row[-1:] == [eos] for row in written) / len(written),
        **shares,
        "loops": sum(loops) / max(1, len(loops)),
    }


def _fingerprint(params: TextParams, documents: list[Document]) -> str:
    """Names the half-finished file of exactly these parameters and this text."""
    identity = [params.model_dump(), text_provenance(params.text, documents)["sha256"]]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def _append(path: Path, sequences: Iterable[TrainingSequence], mode: str) -> None:
    with open(path, mode) as handle:
        handle.writelines(json.dumps(asdict(sequence)) + "\n" for sequence in sequences)


def read_sequences(path: Path) -> list[TrainingSequence]:
    """A training text as ``make_text`` wrote it."""
    if not path.exists():
        raise UserError(f"{path} does not exist; run `dvc repro` to make it")
    with open(path) as handle:
        lines = [line for line in handle if line.endswith("\n")]  # one that a kill cut short has no end
    try:
        return [TrainingSequence(**json.loads(line)) for line in lines]
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run `dvc repro`") from None


def padded(rows: Iterable[list[int]], pad: int, length: int) -> tuple[Int[Tensor, "N L"], Bool[Tensor, "N L"]]:
    """Token matrix padded on the right, and its mask (True for real tokens)."""
    rows = list(rows)
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros((len(rows), length), dtype=torch.bool)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = True
    return ids, mask

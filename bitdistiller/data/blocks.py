"""Documents -> token blocks of one length, the form in which models read text here."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from bitdistiller.data.text import Document
from bitdistiller.errors import UserError


def encode(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]


def start_token(tokenizer) -> int:
    """Id of the token that every document begins with, so that its first real token is predicted too.

    It is the one that the tokenizer itself puts before text (Llama 2: ``<s>``), and where it puts none, as those of
    SmolLM2, Qwen and the micro models, the end-of-text token.
    """
    return next(iter(tokenizer("")["input_ids"]), tokenizer.eos_token_id)


def packed_blocks(tokenizer, documents: Sequence[Document], length: int) -> Int[Tensor, "B T"]:
    """Documents, each after the start token, end to end, cut into full blocks; the remainder is dropped.

    Raises:
        UserError: the documents do not fill a single block.
    """
    stream: list[int] = []
    start = start_token(tokenizer)
    for ids in encode(tokenizer, [document.text for document in documents]):
        stream += [start, *ids]
    count = len(stream) // length
    if count == 0:
        raise UserError(f"{len(documents)} documents give {len(stream)} tokens, too few for one block of {length}")
    return torch.tensor(stream[: count * length]).view(count, length)


class BlockDataset(Dataset):
    """Rows of a token matrix as language-model examples."""

    def __init__(self, blocks: Int[Tensor, "B T"]):
        self.blocks = blocks

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.blocks[index], "labels": self.blocks[index]}

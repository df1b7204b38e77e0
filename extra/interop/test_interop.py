"""test_interop.py - other people's programs read our checkpoints, and ours read theirs.

It trains tiny models of every kind on this project's licence and compares `generate --score` with a
second implementation of the model below: numpy, double precision, one window at a time, written
from the papers and nothing else. Then the safetensors library rewrites checkpoints: in its own
order, as shards, in half precision; and as a Mixtral that knows nothing of ours. The tokenizers
library reads what we say of the vocabulary. Where torch and transformers are installed too, they
open an exported model. `make interop` installs what it needs; BIN is where the programs are, as
"build/"."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from harness import BIN, ROOT

np = pytest.importorskip("numpy")
safetensors = pytest.importorskip("safetensors")
tokenizers = pytest.importorskip("tokenizers")
import safetensors.numpy  # noqa: E402

LICENSE = (ROOT / "LICENSE").read_bytes()
TEXT = LICENSE[-150:]                    # windows of 16, the last one shorter
TINY = ("--width 32 --layers 2 --heads 4 --context 16 --experts 4 --hidden 12 --steps 30 --batch 8 "
        "--lr 0.02 --min-lr 0.02 --warmup 3 --threads 1").split()
EXACT, CLOSE, FAR = 1.5e-6, 1e-5, 1e-4   # a last digit; float against double; another model

# --- the model, a second time ---------------------------------------------------------------------
# c: config.json    w: the tensors by name    T: tokens of a window    x: [T, C]

def rms_norm(x, gain, c):
    return gain * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + c["rms_norm_eps"])


def softmax(r):
    e = np.exp(r - r.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def rotate(x, theta):
    """RoPE: at position t the pair (x[i], x[i + half]) turns by t * theta^(-i / half)."""
    half = x.shape[-1] // 2
    angle = np.outer(np.arange(len(x)), theta ** (-np.arange(half) / half))[:, None, :]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle),
                           b * np.cos(angle) + a * np.sin(angle)], axis=-1)


def attention(x, layer, c):
    """Each head of keys and values stands for a group of heads that lie side by side."""
    heads, theta = c["num_attention_heads"], (c.get("rope_parameters") or c)["rope_theta"]
    q, k, v = (x @ layer("self_attn.%s_proj" % name).T for name in "qkv")
    q = q.reshape(len(x), heads, -1)
    k, v = (y.reshape(len(x), -1, q.shape[-1]) for y in (k, v))
    k, v = (np.repeat(y, heads // y.shape[1], axis=1) for y in (k, v))
    score = np.einsum("thi,shi->hts", rotate(q, theta), rotate(k, theta)) / np.sqrt(q.shape[-1])
    score[:, np.triu(np.ones(score.shape[1:], bool), 1)] = -np.inf      # what comes later
    out = np.einsum("hts,shi->thi", softmax(score), v)
    return out.reshape(x.shape) @ layer("self_attn.o_proj").T


def choose(P, c):
    """The experts of one token, from its shares P: [E]."""
    order = sorted(range(len(P)), key=lambda e: (-P[e], e))
    if c.get("routing", "topk") == "topk":
        return order[:c["num_experts_per_tok"]]
    if c["top_p"] == 1:
        return order
    reached = np.cumsum(P[order]) >= c["top_p"]
    return order[:1 + int(reached.argmax())] if reached.any() else order


def moe(x, layer, c):
    y = np.zeros_like(x)
    for t, P in enumerate(softmax(x @ layer("block_sparse_moe.gate").T)):
        chosen = choose(P, c)
        total = P[chosen].sum() if c.get("norm_topk_prob", True) else 1
        for e in chosen:
            w1, w2, w3 = (layer("block_sparse_moe.experts.%d.w%d" % (e, i)) for i in (1, 2, 3))
            gate = w1 @ x[t]
            y[t] += P[e] / total * (w2 @ (gate / (1 + np.exp(-gate)) * (w3 @ x[t])))
    return y


def logits(w, c, ids):
    w = {name: tensor.astype(np.float64) for name, tensor in w.items()}
    x = w["model.embed_tokens.weight"][ids]
    for l in range(c["num_hidden_layers"]):
        def layer(name, l=l):
            return w["model.layers.%d.%s.weight" % (l, name)]
        x = x + attention(rms_norm(x, layer("input_layernorm"), c), layer, c)
        x = x + moe(rms_norm(x, layer("post_attention_layernorm"), c), layer, c)
    return rms_norm(x, w["model.norm.weight"], c) @ w["lm_head.weight"].T


def tokens(text, c):
    return np.array([c.get("vocab", range(256)).index(byte) for byte in text])


def loss(w, c, text):
    """The mean cross-entropy of all bytes but the first, in windows."""
    ids, T, n, total = tokens(text, c), c["max_position_embeddings"], len(text) - 1, 0
    for start in range(0, n, T):
        end = min(start + T, n)
        P = softmax(logits(w, c, ids[start:end]))
        total -= np.log(P[np.arange(end - start), ids[start + 1:end + 1]]).sum()
    return total / n


# --- checkpoints ----------------------------------------------------------------------------------

@pytest.fixture(autouse=True, scope="module")
def here(tmp_path_factory):
    """Everything is written into this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("interop"))
        patch.setenv("HF_HUB_OFFLINE", "1")     # all that is opened lies here
        Path("data").write_bytes(LICENSE * 2)
        Path("text").write_bytes(TEXT)
        yield


def read_config(folder):
    return json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))


def write_config(folder, c):
    Path(folder, "config.json").write_text(json.dumps(c), encoding="utf-8")


def read(folder):
    """The tensors and config.json."""
    return safetensors.numpy.load_file(folder + "/model.safetensors"), read_config(folder)


def save(name, w, c, metadata=None):
    """A new folder with a checkpoint as the library writes it."""
    os.mkdir(name)
    write_config(name, c)
    safetensors.numpy.save_file(w, name + "/model.safetensors", metadata)


def run(program, *arguments, status=0):
    """What a program prints where it ends with this status: a character for each byte."""
    done = subprocess.run([BIN / program, *arguments], capture_output=True)
    said = (done.stderr if done.returncode else done.stdout).decode("latin-1")
    assert done.returncode == status, said
    return said


def score(folder, file="text"):
    """What generate makes of a text."""
    said = run("generate", folder, "--threads", "1", "--score", file)
    found = re.fullmatch(r"nll (\d+\.\d{6}) nats/token over \d+ tokens\n", said)
    assert found, said
    return float(found[1])


def train(folder, *options, data="data"):
    assert "\nfinal: " in run("train_tiny", "--data", data, "--out", folder, *TINY, *options)


def trained(kind):
    """The folder of a model with these options; the first test that needs it trains it."""
    folder = "kind" + kind.replace(" ", "_")
    if not os.path.exists(folder):
        train(folder, *kind.split())
    return folder


def exported(kind):
    folder = trained(kind)
    out = "export" + folder
    if not os.path.exists(out):
        assert run("generate", folder, "--export-mixtral", out).startswith(out + ": ")
    return out


# --- our files ------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", [
    "--sizes homogeneous", "--sizes arithmetic", "--sizes geometric", "--sizes hybrid",
    "--sizes modse", "--sizes 3,1,2.5,2", "--k 1", "--k 1 --gate norm", "--k 3 --gate raw", "--k 4",
    "--routing topp", "--routing topp --p 0.3 --gate raw", "--routing topp --p 1", "--noisy",
    "--noisy --routing topp --p 0.8", "--experts 1", "--experts 9 --hidden 5",
    "--kv-heads 1", "--kv-heads 2", "--heads 1 --layers 3 --context 5", "--heads 16 --width 64 --context 100",
    "--context 1000 --steps 3 --batch 1"])
def test_numpy_computes_the_same_loss(kind):
    """Each way to route, to weigh and to size experts; and other windows, heads and layers."""
    w, c = read(trained(kind))
    assert score(trained(kind)) == pytest.approx(loss(w, c, TEXT), abs=CLOSE)
    if "--noisy" in kind:
        noise = w["model.layers.0.block_sparse_moe.noise.weight"]
        assert np.abs(noise).max() > 0, "it has learned its noise"


@pytest.mark.parametrize("key, value", {
    "rms_norm_eps": 0.01, "num_attention_heads": 2, "num_experts_per_tok": 1,
    "norm_topk_prob": False, "routing": "topp", "max_position_embeddings": 8,
    "rope_parameters": {"rope_theta": 5000}}.items())
def test_another_config_is_another_loss(key, value):
    """So the comparison above does not hold by chance."""
    folder = trained("--sizes arithmetic")
    w, c = read(folder)
    assert abs(loss(w, dict(c, **{key: value}), TEXT) - score(folder)) > FAR


def test_another_tensor_is_another_loss():
    folder = trained("--sizes arithmetic")
    (w, c), right = read(folder), score(folder)
    for name in w:
        if "layers.1.block" not in name:
            assert abs(loss(dict(w, **{name: w[name] * 1.5}), c, TEXT) - right) > CLOSE, name


@pytest.mark.parametrize("n", [2, 16, 17, 18, 34])
def test_text_of_some_windows(n, tmp_path):
    """A text of one window and less, of one and a token, of two and a token."""
    folder, part = trained("--sizes hybrid"), tmp_path / "part"
    part.write_bytes(TEXT[:n])
    assert score(folder, part) == pytest.approx(loss(*read(folder), TEXT[:n]), abs=CLOSE)


@pytest.mark.parametrize("kind", ["--sizes modse", "--routing topp"])
def test_generate_writes_the_likeliest_bytes(kind):
    """Up to the end of a window."""
    w, c = read(trained(kind))
    written = list(tokens(b"Permission", c))
    while len(written) < c["max_position_embeddings"]:
        written.append(int(logits(w, c, np.array(written))[-1].argmax()))
    seen = run("generate", trained(kind), "--prompt", "Permission", "-n", str(len(written) - 10),
               "--temperature", "0")
    assert seen == "".join(chr(c["vocab"][i]) for i in written)


# --- tokenizers -----------------------------------------------------------------------------------

def byte_character(byte):
    """GPT-2's alphabet: a byte that can be seen is itself, the others follow from 256 on."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in seen]
    return chr(byte if byte in seen else 256 + hidden.index(byte))


@pytest.fixture(scope="module")
def all_bytes():
    Path("bytes").write_bytes(bytes(range(256)) * 4)
    train("all-bytes", "--steps", "1", data="bytes")
    assert read_config("all-bytes")["vocab"] == list(range(256))
    return "all-bytes"


UTF8 = "".join(map(chr, itertools.chain(range(0x800), range(0x800, 0xd800, 61),
                                        range(0xe000, 0x110000, 4099))))


@pytest.mark.parametrize("folder, sample", [("licence", TEXT.decode()), ("all-bytes", UTF8)],
                         ids=["licence", "all-bytes"])
def test_tokenizers_reads_the_vocabulary(folder, sample, all_bytes):
    folder = all_bytes if folder == "all-bytes" else trained("--k 4")
    config = json.loads(Path(folder, "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config == {"tokenizer_class": "PreTrainedTokenizerFast"}
    vocab = read_config(folder)["vocab"]
    tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
    assert tokenizer.get_vocab() == {byte_character(byte): i for i, byte in enumerate(vocab)}
    parts = " a  b", "  ", "\n\n ", "it's 1000 'LL", ""      # nothing is put before a word
    for part in (sample, *(bytes(b for b in p.encode() if b in vocab).decode() for p in parts)):
        ids = tokenizer.encode(part).ids
        assert ids == [vocab.index(b) for b in part.encode()], part
        assert tokenizer.decode(ids) == part


@pytest.mark.parametrize("alphabet, unknown", {b"ab? \n": b"?", b"ab \n": b" ", b"ba\n": b"\n",
                                               b"ba": b"a"}.items())
def test_bytes_that_were_never_seen_are_one_known_byte(alphabet, unknown, tmp_path):
    """Not nothing: a text keeps its length in bytes."""
    (tmp_path / "data").write_bytes(alphabet * 700)
    folder = str(tmp_path / "run")
    train(folder, "--steps", "1", data=tmp_path / "data")
    tokenizer = tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")
    vocab, text = read_config(folder)["vocab"], "aaz\u00e9Zb\U0001f600a"
    seen = bytes(byte if byte in alphabet else unknown[0] for byte in text.encode())
    ids = tokenizer.encode(text).ids
    assert ids == [vocab.index(byte) for byte in seen]
    assert tokenizer.decode(ids) == seen.decode()


# --- files that safetensors writes ----------------------------------------------------------------

@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt", "from": "\"a\\b\n\""}])
def test_order_and_metadata_do_not_matter(metadata, tmp_path):
    """The library reads a checkpoint and writes it: other offsets, the same digits."""
    folder, again = trained("--sizes arithmetic"), str(tmp_path / "again")
    save(again, *read(folder), metadata)
    with safetensors.safe_open(folder + "/model.safetensors", "np") as ours, \
            safetensors.safe_open(again + "/model.safetensors", "np") as theirs:
        assert ours.metadata() == {"format": "pt"}, "the library knows the format"
        assert ours.offset_keys() != theirs.offset_keys()
    assert score(again) == score(folder)


def test_a_run_goes_on_from_a_file_of_the_library(tmp_path):
    straight, again = str(tmp_path / "straight"), str(tmp_path / "again")
    shutil.copytree(trained("--noisy"), straight)
    shutil.copytree(straight, again)
    name = again + "/training.safetensors"
    all_of_it, w = safetensors.numpy.load_file(name), read(again)[0]
    assert all_of_it.keys() == {k + end for k in w for end in ("", ".exp_avg", ".exp_avg_sq")}
    for k in w:
        np.testing.assert_array_equal(all_of_it[k].astype(np.float32), w[k], k)
    with safetensors.safe_open(name, "np") as file:
        said = file.metadata()
    assert (said["step"], said["tokens"]) == ("30", "3840")
    safetensors.numpy.save_file(all_of_it, name, metadata=said)
    weights = []
    for folder in (straight, again):
        train(folder, "--noisy", "--resume", "--steps", "35")
        weights.append(Path(folder, "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def save_shards(folder, n):
    """A trained model as files such as model-00001-of-00002.safetensors, with the index of what is
    where."""
    w, c = read(trained("--noisy"))
    os.mkdir(folder)
    write_config(folder, c)
    names = sorted(w, key=lambda name: (name[::-1], name))      # no order of ours
    index = {"metadata": {"total_size": sum(t.nbytes for t in w.values())}, "weight_map": {}}
    for i in range(n):
        file = "model-%05d-of-%05d.safetensors" % (i + 1, n)
        safetensors.numpy.save_file({name: w[name] for name in names[i::n]}, folder + "/" + file,
                                    metadata={"format": "pt"})
        index["weight_map"].update(dict.fromkeys(names[i::n], file))
    Path(folder, "model.safetensors.index.json").write_text(
        json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_shards_are_one_model(n):
    save_shards("shards%d" % n, n)
    assert score("shards%d" % n) == score(trained("--noisy"))


def test_a_missing_shard_is_named():
    save_shards("missing", 3)
    os.remove("missing/model-00002-of-00003.safetensors")
    assert "model-00002-of-00003.safetensors" in run("generate", "missing", "-n", "1", status=1)


def test_f16_is_read_exactly():
    w, c = read(trained("--sizes geometric"))
    half = {name: tensor.astype(np.float16) for name, tensor in w.items()}
    save("f16", half, c)
    assert score("f16") == pytest.approx(loss(half, c, TEXT), abs=CLOSE)


def round_bf16(x):
    """The upper halves of floats, to the nearest, ties to even."""
    bits = x.view(np.uint32)
    return ((bits + 0x7fff + (bits >> 16 & 1)) >> 16).astype(np.uint16)


@pytest.mark.parametrize("name, kept", [("bf16", ()), ("mixed", (1,))])
def test_bf16_is_read_exactly(name, kept):
    """mixed: vectors stay float32."""
    w, c = read(trained("--sizes geometric"))
    stored = {k: t if t.ndim in kept else round_bf16(t) for k, t in w.items()}
    rounded = {k: t if t.ndim in kept else (t.astype(np.uint32) << 16).view(np.float32)
               for k, t in stored.items()}
    save(name, w, c)
    safetensors.serialize_file({k: safetensors.TensorSpec(   # numpy has no such type
        dtype="float32" if t.ndim in kept else "bfloat16", shape=t.shape,
        data_ptr=t.ctypes.data, data_len=t.nbytes) for k, t in stored.items()},
        name + "/model.safetensors", metadata={"format": "pt"})
    seen = score(name)
    assert seen == pytest.approx(loss(rounded, c, TEXT), abs=CLOSE)
    assert abs(seen - loss(w, c, TEXT)) > CLOSE, "rounding shows"


# --- tokens that are no bytes ---------------------------------------------------------------------

def test_tokens_of_a_library(tmp_path):
    """tokens.py makes them of a text with letters outside ASCII; train_tiny learns from them,
    generate writes text, and the library reads in the checkpoint what it wrote."""
    text = LICENSE.decode() + "Grüße, ἄλφα 漢字\n" * 40
    (tmp_path / "text").write_text(text)
    made = tmp_path / "tokens"
    subprocess.run([sys.executable, ROOT / "extra/interop/tokens.py", tmp_path / "text", made,
                    "300"], check=True, capture_output=True)
    parts = [np.fromfile(made / name, "<u2").tolist() for name in ("train.bin", "val.bin")]
    library = tokenizers.Tokenizer.from_file(str(made / "tokenizer.json"))
    assert library.decode(parts[0]) + library.decode(parts[1]) == text
    out = tmp_path / "out"
    said = run("train_tiny", "--tokens", made / "train.bin", "--tokens-val", made / "val.bin",
               "--tokenizer", made / "tokenizer.json", *TINY, "--out", out)
    token, count = re.search(r"final: val_loss (\S+) nats/token over (\d+) tokens", said).groups()
    byte = re.search(r"val_loss (\S+) nats/byte", said)[1]
    size = sum(len(library.id_to_token(t)) for t in parts[1][1:])       # a character is a byte
    assert int(count) == len(parts[1]) - 1
    assert float(byte) == pytest.approx(float(token) * int(count) / size, abs=1e-5)
    shown = subprocess.run([sys.executable, ROOT / "extra/interop/tokens.py", "-",
                            out / "tokenizer.json"], input=b"Gr\xc3\xbc", capture_output=True)
    assert shown.stdout.decode().split() == [str(x) for x in library.encode("Grü").ids]
    kept = tokenizers.Tokenizer.from_file(str(out / "best" / "tokenizer.json"))
    assert kept.to_str() == library.to_str()
    numbers = [int(x) for x in run("generate", out, "--tokens", "70 71 72", "-n", "200").split()]
    assert len(numbers) == 203 and numbers[:3] == [70, 71, 72]
    run("train_tiny", "--resume", "--out", out, "--steps", "31")
    wrote = run("generate", out, "--seed", "5", "-n", "100")
    again = [int(x) for x in run("generate", out, "--seed", "5", "-n", "100", "--tokens", "").split()]
    assert wrote.encode("latin-1").decode("utf-8", "replace") == kept.decode(again)


# --- Mixtrals of others ---------------------------------------------------------------------------

def plain_mixtral(V, K, seed, heads=3, kv_heads=3):
    """A Mixtral as others make it: its config has Mixtral's keys alone, its weights are large."""
    draw, C, E, H = np.random.default_rng(seed), 24, 5, 17
    c = {"architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
         "eos_token_id": 2, "hidden_act": "silu", "hidden_size": C, "initializer_range": 0.02,
         "intermediate_size": H, "max_position_embeddings": 12, "model_type": "mixtral",
         "num_attention_heads": heads, "num_experts_per_tok": K, "num_hidden_layers": 2,
         "num_key_value_heads": kv_heads, "num_local_experts": E, "output_router_logits": False,
         "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02,
         "router_jitter_noise": 0.0, "sliding_window": None, "head_dim": C // heads,
         "tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.57.1",
         "use_cache": True, "vocab_size": V}
    w = {"model.embed_tokens": (V, C), "lm_head": (V, C), "model.norm": (C,)}
    for l in range(2):
        p = "model.layers.%d." % l
        w.update({p + "self_attn.%s_proj" % name: (C, C) for name in "qo"})
        w.update({p + "self_attn.%s_proj" % name: (C // heads * kv_heads, C) for name in "kv"})
        w.update({p + name: (C,) for name in ("input_layernorm", "post_attention_layernorm")})
        w[p + "block_sparse_moe.gate"] = (E, C)
        for e in range(E):
            p = "model.layers.%d.block_sparse_moe.experts.%d." % (l, e)
            w.update({p + "w1": (H, C), p + "w2": (C, H), p + "w3": (H, C)})
    w = {name + ".weight": (draw.normal(0, 2 / np.sqrt(shape[-1]), shape) if len(shape) == 2
                            else draw.normal(1, 0.3, shape)).astype(np.float32)
         for name, shape in w.items()}
    return w, c


@pytest.mark.parametrize("name, changes", {
    "as-is": {}, "small": {"vocab_size": 128}, "one-expert": {"num_experts_per_tok": 1},
    "grouped": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4},
    "window": {"sliding_window": 12}, "no-head_dim": {"head_dim": None},
    "scaling-null": {"rope_scaling": None, "quantization_config": None},
    "dtype": {"dtype": "bfloat16", "torch_dtype": None},
    "rope_parameters": {"rope_theta": None, "rope_parameters": {
        "rope_theta": 500000.0, "rope_type": "default"}}}.items())
def test_a_plain_mixtral_opens(name, changes):
    """256 tokens without a word are bytes; of other numbers there are files of tokens. Routers are
    sure of themselves here and logits reach 10, so that float32 has fewer digits left."""
    w, c = plain_mixtral(changes.get("vocab_size", 256), changes.get("num_experts_per_tok", 2),
                         len(name), changes.get("num_attention_heads", 3),
                         changes.get("num_key_value_heads", 3))
    c = {key: value for key, value in {**c, **changes}.items()
         if value is not None or key not in ("head_dim", "rope_theta", "torch_dtype")}
    save("plain-" + name, w, c)
    bytes_only = c["vocab_size"] == 256
    Path("numbers").write_bytes(np.array(list(TEXT), dtype="<u2").tobytes())
    assert score("plain-" + name, "text" if bytes_only else "numbers") == \
        pytest.approx(loss(w, c, TEXT), abs=CLOSE)
    said = run("generate", "plain-" + name, "-n", "9")
    assert len(said if bytes_only else said.split()) == 9, "it writes bytes, or numbers"


def test_300_tokens_are_no_bytes_but_can_be_exported():
    w, c = plain_mixtral(300, 2, 1)
    save("plain-300", w, c)
    assert "300 tokens are no bytes" in run("generate", "plain-300", "--prompt", "a", status=1)
    assert "tokens are 0 to 299" in run("generate", "plain-300", "--score", "text", status=1)
    assert all(int(token) < 300 for token in run("generate", "plain-300").split())
    said = run("generate", "plain-300", "--export-mixtral", "plain-300-out")
    assert "plain-300-out" in said
    again = read("plain-300-out")[0]
    assert w.keys() == again.keys()
    for name in w:
        np.testing.assert_array_equal(w[name], again[name], name)


@pytest.mark.parametrize("key, value", {
    "num_key_value_heads": 2, "partial_rotary_factor": 0.5, "sliding_window": 8, "head_dim": 16,
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    "rope_scaling": {"type": "linear", "factor": 2.0}, "model_type": "llama", "hidden_act": "gelu",
    "attention_bias": True, "num_local_experts": 4,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0}}.items())
def test_what_is_not_computed_is_refused_by_name(key, value, tmp_path):
    w, c = plain_mixtral(256, 2, 3)
    folder = str(tmp_path / "refused")
    save(folder, w, dict(c, **{key: value}))
    said = run("generate", folder, "-n", "1", status=1)
    assert ("experts.4." if key == "num_local_experts" else key) in said
    assert said.count("\n") == 1, said


def test_what_others_leave_out_and_add():
    """A tied embedding, buffers that are computed here, shards under names of their own, and a
    config.json without what transformers knows by itself."""
    w, c = plain_mixtral(256, 2, 5)
    w["lm_head.weight"] = w["model.embed_tokens.weight"]
    c = {key: value for key, value in c.items() if key not in (
        "rms_norm_eps", "rope_theta", "max_position_embeddings", "num_experts_per_tok")}
    c.update(tie_word_embeddings=True, partial_rotary_factor=1.0)
    full = dict(c, rms_norm_eps=1e-5, rope_theta=1e6, max_position_embeddings=12,
                num_experts_per_tok=2)
    stored = {name: tensor for name, tensor in w.items() if name != "lm_head.weight"}
    for l in range(2):
        stored["model.layers.%d.self_attn.rotary_emb.inv_freq" % l] = np.ones(4, np.float32)
    save("foreign", stored, full)
    right = loss(w, full, TEXT)
    assert score("foreign") == pytest.approx(right, abs=CLOSE)
    os.mkdir("foreign-shards")
    write_config("foreign-shards", dict(c, max_position_embeddings=12))
    names = {"a": list(stored)[::2], "of the rest": list(stored)[1::2]}
    for name, part in names.items():
        safetensors.numpy.save_file({k: stored[k] for k in part},
                                    "foreign-shards/%s.safetensors" % name)
    index = {k: name + ".safetensors" for name, part in names.items() for k in part}
    Path("foreign-shards/model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index}), encoding="utf-8")
    assert score("foreign-shards") == pytest.approx(right, abs=CLOSE)
    said = run("generate", "foreign", "--export-mixtral", "foreign-out")
    assert "foreign-out" in said
    again, config = read("foreign-out")
    np.testing.assert_array_equal(again["lm_head.weight"], w["lm_head.weight"])
    assert config["tie_word_embeddings"] is False


def test_special_tokens_are_kept_and_never_written():
    """Tokens after the list of bytes: here they would be the likeliest by far."""
    w, c = plain_mixtral(300, 2, 9)
    c["vocab"] = list(range(256))
    w["lm_head.weight"][256:] = 0
    save("special-0", w, c)
    plain = run("generate", "special-0", "-n", "40", "--temperature", "0", "--prompt", "To be")
    w["lm_head.weight"][256:] = 3 * w["lm_head.weight"][:44]
    save("special", w, c)
    assert logits(w, c, tokens(b"To be", c))[-1].argmax() >= 256
    assert score("special") == pytest.approx(loss(w, c, TEXT), rel=CLOSE)
    for options in (("--temperature", "0"), ("--temperature", "5"), ("--top-k", "1")):
        said = run("generate", "special", "-n", "40", "--prompt", "To be", *options)
        assert len(said) == 45
        assert said == plain or "5" in options
    run("generate", "special", "--export-mixtral", "special-out")
    again, config = read("special-out")
    assert config["vocab_size"] == 300 and config["vocab"] == list(range(256))
    np.testing.assert_array_equal(again["lm_head.weight"], w["lm_head.weight"])
    tokenizer = tokenizers.Tokenizer.from_file("special-out/tokenizer.json")
    assert tokenizer.get_vocab_size() == 256


def test_a_run_with_special_tokens_goes_on():
    """Two rows more in the embedding, the output matrix and their moments."""
    folder = "special-run"
    shutil.copytree(trained("--noisy"), folder)
    c = read_config(folder)
    V = c["vocab_size"]
    write_config(folder, dict(c, vocab_size=V + 2))
    name = folder + "/training.safetensors"
    with safetensors.safe_open(name, "np") as file:
        metadata = file.metadata()
    arrays = safetensors.numpy.load_file(name)
    for k, t in arrays.items():
        if "embed_tokens" in k or "lm_head" in k:
            arrays[k] = np.concatenate([t, np.full((2, t.shape[1]), 0.01, t.dtype)])
    kept = arrays["model.embed_tokens.weight"][V:]
    safetensors.numpy.save_file(arrays, name, metadata=metadata)
    train(folder, "--noisy", "--resume", "--steps", "35")
    w, c = read(folder)
    assert c["vocab_size"] == V + 2 and len(c["vocab"]) == V
    assert w["model.embed_tokens.weight"].shape[0] == V + 2
    assert np.abs(w["model.embed_tokens.weight"][V:] - kept).max() > 0, "they decay"
    assert score(folder) == pytest.approx(loss(w, c, TEXT), abs=CLOSE)


@pytest.mark.parametrize("dtype, says", {"float8_e4m3fn": "floats of 8 bits or fewer",
                                         "int32": "integers"}.items())
def test_quantised_numbers_are_named(dtype, says, tmp_path):
    w, c = plain_mixtral(256, 2, 3)
    folder = str(tmp_path / "quantised")
    save(folder, w, c)
    stored = {k: (np.zeros(t.shape, np.uint8) if "w1" in k else t) for k, t in w.items()}
    if dtype == "int32":
        stored = {k: t.astype(np.int32) if "w1" in k else t for k, t in w.items()}
    safetensors.serialize_file({k: safetensors.TensorSpec(
        dtype=dtype if "w1" in k else "float32", shape=t.shape, data_ptr=t.ctypes.data,
        data_len=t.nbytes) for k, t in stored.items()}, folder + "/model.safetensors")
    said = run("generate", folder, "-n", "1", status=1)
    assert says in said and "dequantise" in said and said.count("\n") == 1


def test_f64_is_refused_by_name():
    w, c = plain_mixtral(256, 2, 3)
    w["model.norm.weight"] = w["model.norm.weight"].astype(np.float64)
    save("refused64", w, c)
    said = run("generate", "refused64", "-n", "1", status=1)
    assert "model.norm.weight" in said
    assert "F64" not in said


# --- exports --------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["--sizes homogeneous", "--sizes arithmetic", "--sizes geometric",
                                  "--sizes hybrid", "--sizes modse", "--sizes 3,1,2.5,2",
                                  "--noisy", "--kv-heads 2"])
def test_an_export_is_a_mixtral_that_computes_the_same(kind):
    """Padded with zeros, a model of any widths is an ordinary Mixtral."""
    folder, out = trained(kind), exported(kind)
    (w, c), (wide, cw) = read(folder), read(out)
    assert score(out) == pytest.approx(score(folder), abs=EXACT)
    assert loss(wide, cw, TEXT) == pytest.approx(loss(w, c, TEXT), abs=1e-12)
    H = c["intermediate_size"]
    assert H == max(c["expert_sizes"])
    changed = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral",
               "expert_sizes": [H] * c["num_local_experts"], "noisy_gating": False}
    for key, value in {**c, **changed}.items():
        assert key == "top_p" or cw[key] == value, key
    assert set(wide) == {name for name in w if "noise" not in name}
    for name in wide:
        cut = tuple(slice(n) for n in w[name].shape)
        is_expert = re.search(r"experts\.\d+\.w(\d)", name)
        shape = w[name].shape if not is_expert else (32, H) if is_expert[1] == "2" else (H, 32)
        assert wide[name].shape == shape, name
        padded = np.zeros(shape)
        padded[cut] = w[name]
        np.testing.assert_array_equal(wide[name], padded, name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert Path(out, file).read_bytes() == Path(folder, file).read_bytes()


@pytest.fixture
def transformers():
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers


@pytest.mark.parametrize("make, kind", [(trained, "--sizes homogeneous"),
                                        (exported, "--sizes modse"), (exported, "--noisy"),
                                        (exported, "--kv-heads 2")])
def test_transformers_opens(make, kind, transformers):
    """An export is a MixtralForCausalLM with the same logits, and writes; and what it saves comes
    back."""
    import torch
    folder = make(kind)
    w, c = read(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "MixtralForCausalLM"
    ids = transformers.AutoTokenizer.from_pretrained(folder)(TEXT.decode())["input_ids"]
    assert ids == tokens(TEXT, c).tolist()
    sampling = model.generation_config.to_diff_dict()    # found in config.json, if there is any
    assert not {"top_p", "top_k", "temperature"} & set(sampling), "no key of ours is for sampling"
    ids = ids[:c["max_position_embeddings"]]
    with torch.no_grad():
        seen = model(torch.tensor([ids])).logits[0].double().numpy()
    np.testing.assert_allclose(seen, logits(w, c, np.array(ids)), rtol=0, atol=FAR)
    writer = transformers.pipeline("text-generation", model=folder)
    said = writer("Permission", max_new_tokens=6, do_sample=False)[0]["generated_text"]
    assert said == run("generate", folder, "--prompt", "Permission", "-n", "6", "--temperature",
                       "0")
    for size in ("1GB", "20KB"):
        again = "%s-%s" % (folder, size)
        model.save_pretrained(again, max_shard_size=size)
        # what transformers does not know of is what config.json lost: which byte is which token
        write_config(again, dict(read_config(again), vocab=c["vocab"]))
        assert score(again) == pytest.approx(score(folder), abs=EXACT), size


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_mixtral_that_transformers_made_opens(dtype, transformers):
    import torch
    config = transformers.MixtralConfig(
        vocab_size=256, hidden_size=32, intermediate_size=20, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        max_position_embeddings=len(TEXT), sliding_window=None, initializer_range=0.3)
    torch.manual_seed(1)
    theirs = "theirs-" + dtype
    transformers.MixtralForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(theirs)
    model = transformers.AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32)
    ids = torch.tensor([list(TEXT)])
    with torch.no_grad():
        right = model(ids, labels=ids).loss.item()
    assert score(theirs) == pytest.approx(right, abs=CLOSE)
